# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11. What it costs: time, memory, accuracy, and when not to use it
#
# **Question.** int8 halves the bytes of the weights. What does that save, what does it cost, and when is it better not
# to use it?
#
# **You need** [06, the weights and the batch](06_weights_and_batch.ipynb); [10](10_layer_and_model.ipynb) helps. **You
# leave with** a cost model that you can compute by hand, and measurements to base a decision on.
#
# > **Careful.** Nothing is timed in this notebook. The times come from records written by the programs in
# > `experiments/`, each with its command, date and device; so do the sentences with figures in them. Your machine will
# > give different figures; the commands show you which.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
from experiments import contenders, records, shapes
from experiments.lm.losses import difference
from experiments.pages import memory, perplexity
from experiments.pages import speed as charts
from experiments.shapes import Shape
from tutorials import checks, model_data, pictures, predict, recorded, running_table
from tutorials.example import W, X

# %% [markdown]
# ## The idea
#
# A layer moves bytes (X, W, Y) and multiplies. The two overlap, so the slower one sets the time. int8 halves the bytes
# of W, and where the processor has int8 instructions, it multiplies faster. It also adds work that a float layer does
# not have: search X for outliers, quantize X, multiply the outlier columns.
#
# What is saved grows with $N K$ (bytes of W) or $M N K$ (multiplications). The added work grows with $M K$, plus a
# fixed cost for launching more steps. So wide layers gain and narrow ones lose, with a crossover in between. The rest
# of this chapter measures where.
#
# ## The formula
#
# $$ T \ \ge\ \max\!\Big( \frac{\text{bytes moved}}{\text{bandwidth}},\ \frac{\text{operations}}{\text{rate}} \Big), \qquad
# \text{bytes} = \begin{cases} 2MK + 2NK + 2MN & \text{16 bits} \\ 2MK + NK + 4N + 2MN & \text{int8} \end{cases} $$
#
# with $2MNK$ operations in both; `experiments/contenders.py` counts them so.
#
# ## By hand
#
# > **Predict.** The 4 x 4 example, X and Y in 16 bits: how many bytes does the layer move in 16 bits, and how many in
# > int8? And a layer of 4096 x 4096, for one token: which share of the bytes is left in int8?

# %%
assert X.shape == W.shape == (4, 4)
bytes_of = {}
print(f"{'M x K x N':<20} {'16 bits':>14} {'int8':>14} {'int8 / 16 bits':>15}")
for shape in (
    Shape(4, 4, 4, 0),
    Shape(1, 576, 576, 0),
    Shape(1, 4096, 4096, 0),
    Shape(512, 4096, 4096, 0),
    Shape(4096, 4096, 4096, 0),
):
    both = [
        work(shape).bytes
        for work in (contenders.float_work(torch.bfloat16), contenders.int8_work)
    ]
    name = f"{shape.m} x {shape.k} x {shape.n}"
    bytes_of[name] = both
    print(f"{name:<20} {both[0]:>14,} {both[1]:>14,} {both[1] / both[0]:>15.2f}")
predict.number("4 x 4, bytes in 16 bits", bytes_of["4 x 4 x 4"][0])
predict.number("4 x 4, bytes in int8", bytes_of["4 x 4 x 4"][1])
sixteen, eight = bytes_of["1 x 4096 x 4096"]
share = 100 * eight / sixteen
predict.number("left in int8, of the 4096 x 4096 layer", share, ".0f", "%")
predict.explain(
    "4 x 4: 2 x 16 + 2 x 16 + 2 x 16 bytes, and 2 x 16 + 16 + 16 + 2 x 16. Nothing is "
    "saved: the scales take the bytes that the codes save."
)

# %% [markdown]
# For one token nearly all bytes are W's, and int8 halves them. With thousands of rows X and Y take more bytes than W,
# and int8 has to win by multiplying faster.
#
# With the rates measured on the recording machine, the formula gives the lower bound on the time of either layer:
#
# > **Predict.** On a CPU: at which M, a power of two, does the 16-bit layer change from memory-bound to compute-bound? And
# > at best, how many times as fast is int8 at M = 1?

# %%
speed = recorded.read("speed-cpu")
limits = speed["settings"]["ceilings"]
rows = 2.0 ** np.arange(0, 13)
floors = {
    name: [1e3 * work(Shape(int(m), 4096, 4096, 0)).floor(**limits) for m in rows]
    for name, work in (
        ("bfloat16", contenders.float_work(torch.bfloat16)),
        ("int8", contenders.int8_work),
    )
}
memory_bound = [
    contenders.float_work(torch.bfloat16)(Shape(int(m), 4096, 4096, 0)).bytes
    / limits["bandwidth"]
    for m in rows
]
turns = rows[np.argmax(np.array(floors["bfloat16"]) > 1e3 * np.array(memory_bound))]
predict.number("compute-bound from M =", turns)
figure, ax = plt.subplots()
for (name, values), marker in zip(floors.items(), "so", strict=True):
    ax.plot(rows, values, marker + "-", markersize=4, label=f"{name}, at least")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="M, rows of X",
    ylabel="ms",
    title="K = N = 4096, from measured bandwidth and rates",
)
ax.set_xscale("log", base=2)
ax.legend()
gain = [b / a for a, b in zip(floors["int8"], floors["bfloat16"], strict=True)]
predict.number("times as fast at M = 1, at best", gain[0], ".2g")
pictures.show(
    figure,
    "The least time of a 4096 by 4096 layer against M, both axes logarithmic: flat "
    "where memory is the limit, then rising with M where "
    f"arithmetic is. int8 lies below by a factor of {gain[0]:.1f} at M = 1 and "
    f"{gain[-1]:.1f} at M = {rows[-1]:.0f}.",
)
rates = ", ".join(
    f"{name} {rate / 1e12:.2f}"
    for name, rate in limits["rates"].items()
    if name in ("int8", "bfloat16", "float32")
)
recorded.say(
    f"{recorded.source(speed)} Measured ceilings: {limits['bandwidth'] / 1e9:.0f} "
    f"GB/s; 10¹² operations per second: {rates}. At best int8 is "
    f"{gain[0]:.1f} times as fast at M = 1 and {gain[-1]:.1f} times at M = "
    f"{rows[-1]:.0f}."
)

# %% [markdown]
# ## Real measurements: time
#
# That was the best case. Now the measured one, with detection, quantization and the outlier columns in it.
#
# > **Predict.** In each sweep, from which size on is int8 faster than the 16-bit layer?

# %%
sweeps = charts.sweeps(charts.rows_of(speed, "crossover"))
figure, axes = plt.subplots(1, len(sweeps), figsize=(3.4 * len(sweeps), 4.2))
charts.draw_crossover(axes, sweeps)
said = []
for title, size, of_sweep in sweeps:
    at = {row[size]: recorded.ratio(row, "int8") for row in of_sweep}
    wins = [value for value, ratio in at.items() if ratio >= 1]
    ends = "; ".join(f"{end}: {recorded.times(at[end])}" for end in (min(at), max(at)))
    where = f"first faster at {min(wins)}" if wins else "never faster"
    said.append(f"{title}, {size.upper()} = {ends} ({where})")
    sizes = [f"{value}" for value in at]
    first = f"{min(wins)}" if wins else "never"
    asked = f"{title}: faster from {size.upper()} ="
    predict.choice(asked, [*sizes, "never"], first)
pictures.show(
    figure,
    "How many times as fast as F.linear in bfloat16 each layer is, above 1 where int8 "
    "wins. For our layer: " + ". ".join(said),
)
recorded.say(
    "Our layer against `F.linear` in bfloat16, median of a run:\n\n"
    + "\n".join(f"- {line}." for line in said)
)

# %% [markdown]
# ## What do small models gain?
#
# Less than large ones, since their layers are narrow: the fixed cost is the same, the saving is small. SmolLM2's own
# layers, and the whole model:

# %%
of_smollm2 = [
    row
    for row in charts.rows_of(speed, "layers")
    if (row["k"], row["n"]) in ((576, 576), (576, 1536), (1536, 576))
]
lines = [
    "| layer, M x K x N | F.linear, µs | ours, µs | |",
    "| --- | ---: | ---: | --- |",
]
for row in of_smollm2:
    micro = {
        name: 1e6 * row["contenders"][name]["seconds"]["median"]
        for name in (shapes.BASELINE, "int8")
    }
    name = f"{row['m']} x {row['k']} x {row['n']}"
    lines.append(
        f"| {name} | {micro[shapes.BASELINE]:,.0f} | {micro['int8']:,.0f} | "
        f"{recorded.times(recorded.ratio(row, 'int8'))} |"
    )
recorded.say("\n".join(lines))

generation = recorded.read("generation")
lines = [
    "| whole model | reading a prompt, tokens/s | writing, tokens/s | MB |",
    "| --- | ---: | ---: | ---: |",
]
for row in generation["rows"]:
    speeds = [
        row[kind]["tokens_per_second"]["median"] for kind in ("prefill", "decode")
    ]
    lines.append(
        f"| {row['label']} | {speeds[0]:,.0f} | {speeds[1]:,.1f} | "
        f"{row['bytes'] / 1e6:,.0f} |"
    )
recorded.say(f"{recorded.source(generation)}\n\n" + "\n".join(lines))

# %% [markdown]
# ## Isn't it expensive to look for outliers at every call?
#
# > **Predict.** Detection reads X once and compares. Which share of a layer's time is that, at the least and at the most?

# %%
detection = charts.rows_of(speed, "detection")
figure, ax = plt.subplots(figsize=(max(6, 1.3 + 0.75 * len(detection)), 4.2))
charts.draw_shares(ax, detection)
cost = {
    (row["m"], row["k"]): 100 * row["shares"]["detection"]["median"]
    for row in detection
}
least, most = min(cost, key=cost.get), max(cost, key=cost.get)
predict.number("at the least", cost[least], ".1f", "%")
predict.number("at the most", cost[most], ".1f", "%")
pictures.show(
    figure,
    f"Stacked bars of the parts of a layer's time over {len(detection)} combinations "
    f"of M and K = N. Detection takes {cost[least]:.0f} to "
    f"{cost[most]:.0f} percent.",
)
recorded.say(
    f"Detection takes from {cost[least]:.1f} % (M = {least[0]}, K = {least[1]}) to "
    f"{cost[most]:.1f} % (M = {most[0]}, K = {most[1]}) "
    "of the layer's time, measured as what the threshold adds to a layer that finds "
    "nothing."
)

# %% [markdown]
# ## Memory
#
# A model's memory is more than its linear layers: embeddings and head stay in 16 bits, and so do the keys and values of
# the context.
#
# > **Predict.** int8 halves the weights. Which share of its bytes in 16 bits is left of SmolLM2, with its table of 49,152
# > tokens? And of OPT-175B? And of OPT-175B with the 16-bit weights kept?

# %%
parts = recorded.read("memory")
by_model = {
    parts["settings"]["model"]: {
        row["policy"]: row["measured"] for row in parts["measured"]
    }
}
by_model |= {
    row["model"]: row["parts"]
    for row in parts["models"]
    if row["model"] in ("OPT-6.7B", "OPT-175B")
}
shares = []
for name, policies in by_model.items():
    whole = {policy: sum(of_policy.values()) for policy, of_policy in policies.items()}
    dequantized, kept = (
        whole[policy] / whole["16 bits"]
        for policy in ("int8, dequantized", "int8, float")
    )
    shares.append(
        f"{name}: {pictures.quantity(whole['16 bits'])} in 16 bits; {dequantized:.0%} "
        f"of it in int8, {kept:.0%} with 16-bit weights kept"
    )
    if name != "OPT-6.7B":
        predict.number(f"{name}, in int8", 100 * dequantized, ".0f", "%")
predict.number(f"{name}, with 16-bit weights kept", 100 * kept, ".0f", "%")
for figure in memory.pictures(parts):
    pictures.show(
        figure,
        "Bytes by part and policy, in percent of the model in 16 bits. "
        + "; ".join(shares),
    )
recorded.say(
    f"{recorded.source(parts)} Measured for {parts['settings']['model']}, calculated "
    "by the same formulas for the others, with a context "
    f"of {parts['settings']['context']} tokens.\n\n"
    + "\n".join(f"- {share}." for share in shares)
)

# %% [markdown]
# ## Accuracy
#
# Chapter 10 read 512 tokens. The record has more text, cut into windows, and compares each method with the float model
# *window by window*, which gives a 95 % confidence interval of the difference.
#
# > **Predict.** Of all the methods, which one is closest to float? And how many percent is LLM.int8() with absmax away
# > from it?

# %%
methods = recorded.read("perplexity-intervals")
compared = methods["rows"]
windows = sum(passage["windows"] for passage in methods["settings"]["passages"])
best = min(
    (row for row in compared if row["method"] != "float32"),
    key=lambda row: abs(row["to_float"]["percent"]),
)
worst = max(compared, key=lambda row: row["to_float"]["percent"])
int8 = [row["label"] for row in compared if row["method"] != "float32"]
predict.choice("closest to float", int8, best["label"])
for figure in perplexity.pictures(methods):
    pictures.show(
        figure,
        "Perplexity against float32 by method, in percent, with 95 % intervals. "
        "Farthest from float: "
        f"{worst['label']}, {worst['to_float']['percent']:+.0f} %; nearest: "
        f"{best['label']}, {best['to_float']['percent']:+.1f} %.",
    )
losses = {row["method"]: np.array(row["losses"]) for row in compared}
against_float = {row["method"]: recorded.interval(row["to_float"]) for row in compared}
change = {row["method"]: row["to_float"]["percent"] for row in compared}
predict.number("LLM.int8() with absmax", change["llm-int8-absmax"], ".1f", "%")
apart = difference(losses["llm-int8-zeropoint"], losses["llm-int8-absmax"])
answer = (
    "not established on this text"
    if apart["low"] <= 0 <= apart["high"]
    else "real on this text"
)
recorded.say(
    f"{recorded.source(methods)} {windows} windows of "
    f"{methods['settings']['tokens_per_window']} tokens.\n\n"
    f"- Farthest from float: {worst['label']}, {worst['to_float']['percent']:+.0f} %.\n"
    f"- LLM.int8() with absmax: {against_float['llm-int8-absmax']}; with zeropoint: "
    f"{against_float['llm-int8-zeropoint']}.\n"
    "- **Absmax or zeropoint?** Window by window, zeropoint's perplexity is "
    f"{recorded.interval(apart)} from absmax's: the difference "
    f"is {answer}."
)

# %% [markdown]
# ## The law
#
# Bytes: a loaded layer keeps exactly $NK + 4N$ bytes, and $2NK$ more with 16-bit weights, for any shape. Times: a time
# counts only if the result was right. Before anything is timed, the Y of each contender is checked; ours against the
# reference, within the contract's bound (`check_int8` in `experiments/contenders.py`).

# %%
for n, k in ((1, 1), (3, 7), (576, 1536)):
    for policy in ("dequantized", "float"):
        layer = fast.Int8Linear.from_float(
            torch.ones(n, k, dtype=torch.float16), outlier_weight=policy
        )
        kept = sum(tensor.nbytes for tensor in layer.state_dict().values())
        assert kept == n * k + 4 * n + (2 * n * k if policy == "float" else 0)
print("bytes of a layer: as counted, for both policies")

# %% [markdown]
# ## Break it
#
# Two ways to measure the wrong thing, shown on the records themselves.
#
# > **Predict.** In the first, our layer stays the same, and something else is changed until it looks fastest. Which
# > baseline is that? And how many times as fast is ours beside it?

# %%
row = next(
    row
    for row in charts.rows_of(speed, "layers")
    if (row["m"], row["k"]) == (256, 4096)
)
own = row["contenders"]["int8"]["seconds"]["median"]
lines = [
    f"**1. The baseline makes the headline.** One and the same layer, {row['m']} x "
    f"{row['k']} x {row['n']}:\n"
]
baselines = {}
for name in ("linear-bf16", "linear-fp32", "linear-fp16"):
    other = row["contenders"][name]
    ratio = baselines[other["label"]] = other["seconds"]["median"] / own
    lines.append(f"- {recorded.times(ratio)} as {other['label']}")
flattering = max(baselines, key=baselines.get)
predict.choice("the flattering baseline", list(baselines), flattering)
predict.number("times as fast beside it", baselines[flattering], ".2g")
cache = speed["settings"]["hardware"]["cache"]
size = 576 * 1536
lines.append(
    f"\n**2. The cache.** A layer of 576 x 1536 has {pictures.quantity(size)} of "
    "codes; this processor's last cache holds "
    f"{pictures.quantity(cache)}. Timed over and over it never leaves it, while in a "
    "model every layer's weight comes from memory. The "
    f"record used {max(r['copies'] for r in of_smollm2)} copies of such a layer in "
    "turn."
)
recorded.say("\n".join(lines))

# %% [markdown]
# ## The running table
#
# The complete table: error, bytes and time of one layer, `gate_proj` of SmolLM2's last block, 512 rows. The errors are
# those of the chapters before, the times those of the record (random inputs of this shape, half a percent of the
# columns outliers).

# %%
x, w = model_data.layer()
timed = next(
    row["contenders"]
    for row in of_smollm2
    if (row["m"], row["k"], row["n"]) == (512, 576, 1536)
)
seconds = {
    "float16 weights, float32 sums": "linear-bf16",
    "absmax, vector-wise": "int8-none",
    "LLM.int8(), weights from codes": "int8",
    "LLM.int8(), 16-bit W kept": "int8-float",
}
assert timed.keys() >= set(seconds.values())
running_table.show(
    x,
    w,
    chapter=11,
    seconds={name: timed[key]["seconds"]["median"] for name, key in seconds.items()},
)

# %% [markdown]
# (The first line's time is that of `F.linear` in bfloat16. The methods of chapters 01 to 03 with large errors are not
# timed.) The last two lines give the time of the two policies of chapter 06. Where they take about the same, memory
# decides.
#
# ## When not to use it
#
# - **The layers are narrow**, or there are few of them: the charts above show from which width on int8 is faster on
#   that machine.
# - **Memory is no concern, and there are many rows**: then only a higher multiplication rate helps; compare with your
#   16-bit layer.
# - **Most of the bytes are elsewhere.** Embeddings, the output head and the key-value cache stay in 16 bits.
# - **Results must not depend on the rest of the batch** (chapter 06): fix the batch, or set the threshold to None.
# - **Four bits are enough.** Weight-only formats save more memory; they do not multiply faster.
#
# And when to use it: wide layers, weights that do not fit in memory otherwise, no time to calibrate or retrain.

# %%
on_gpu = records.read("speed-cuda")
recorded.say(
    "**GPU.** There is no record from a GPU here; [measure on your "
    "GPU](../docs/howto/measure_on_your_gpu.md) says how to make one."
    if on_gpu is None
    else f"**GPU.** {recorded.source(on_gpu)} See the [speed page](../docs/speed.md)."
)

# %% [markdown]
# ## Exercise
#
# Write `my_layer_bytes(n, k, outlier_weight)`: how many bytes a loaded layer keeps, without bias. `outlier_weight` is
# "dequantized" or "float"; kept weights are float16.


# %%
def my_layer_bytes(n, k, outlier_weight):
    return NotImplemented  # bytes


checks.layer_bytes(my_layer_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_layer_bytes(n, k, outlier_weight):
#     codes, scales = n * k, 4 * n
#     return codes + scales + (2 * n * k if outlier_weight == "float" else 0)
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. Bytes and operations give a lower bound on the time; the extra steps of int8 come on top, and in narrow layers they
#    cost more than int8 saves.
# 2. A speed is a ratio to a named baseline, on a named machine, of results that were checked.
# 3. Compare models window by window: perplexity varies more between texts than between methods.
#
# **Read on:** [measure on your GPU](../docs/howto/measure_on_your_gpu.md); the records: `experiments/results/`; the
# programs that make them: `experiments/speed.py`, `generation.py`, `memory.py`, `perplexity.py`. The paper: section
# 3.3, table 2, appendix D.
