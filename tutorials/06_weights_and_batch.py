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
# # 06. What the formula leaves open: the weights and the batch
#
# **Question.** The formula multiplies the outlier columns by columns of a 16-bit W, but a loaded layer is to keep only
# codes. And the outlier columns are those of the whole batch. Where do the weights come from, and what does the rest of
# the batch do to my tokens?
#
# **You need** [05, decomposition](05_decomposition.ipynb). **You leave with** a layer of one byte per weight, a bound
# on what that costs, and the reason why a result may change with the batch.

# %%
import copy

import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
import reference
from experiments.lm import dial
from experiments.lm.recording import readers
from reference import Int8Linear, bounds
from tutorials import checks, model_data, pictures, predict, running_table, source
from tutorials.example import W, X

torch.set_grad_enabled(False)
np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The idea
#
# The codes of W have all columns in them, those of O as well: W was quantized when the layer was loaded, and which
# columns are outliers depends on X, which nobody had seen then. So there is a second source for the weights of the
# outlier columns. Two policies:
#
# - **dequantized**: take those columns of the codes and multiply by the scales of their rows. No second copy of W. The
#   outlier columns then have the weight's quantization error, but none of the input's. The default, and what
#   bitsandbytes does.
# - **float**: keep the 16-bit W beside the codes. Closest to the paper; three bytes per weight.
#
# ## The formula
#
# $$ Y^{\text{outlier}} = \underbrace{X_{:,O}\, W_{:,O}^\top}_{\text{float}} \quad\text{or}\quad
# \underbrace{X_{:,O}\, \big(W_q \odot s^W\big)_{:,O}^\top}_{\text{dequantized}}, \qquad O = \bigcup_m O_m, \quad
# O_m = \{k : |X_{mk}| \ge 6\} $$
#
# The right part says what the batch does: O is the union over all rows that are computed together.
#
# ## By hand
#
# > **Predict.** The outlier column of the 4 x 4 example is the third. W has 0.04, -0.15, 0.508 and 0.05 there, the
# > codes are 40, -75, 127 and 10, the scales of the rows 0.001, 0.002, 0.004 and 0.005. Which weights come back? And if
# > the first weight had been 0.0404, how far off would the second row of Y be, whose outlier is 12.70?

# %%
wq, sw = reference.absmax_quantize(W, -1)
outliers = reference.outlier_columns(X)
back = reference.absmax_dequantize(wq, sw)
figure = pictures.matrices(
    [
        ("W", W, "{:g}", np.broadcast_to(outliers, W.shape)),
        ("codes", wq, "{:d}", np.broadcast_to(outliers, W.shape)),
        ("scales", sw, "{:g}", None),
        ("column from codes", back[:, outliers], "{:.3f}", None),
    ],
    width=2.6,
)
pictures.show(
    figure,
    "W and its codes, the third column of both framed; the four scales of the rows; "
    "and that column dequantized: "
    f"{', '.join(f'{value:.3f}' for value in back[:, outliers].ravel())}.",
)
moved = W.copy()
moved[0, 2] = 0.0404
kept, taken = (
    Int8Linear.from_float(moved, outlier_weight=policy)(X)[1, 0]
    for policy in ("float", "dequantized")
)
predict.text("the weights that come back", back[:, outliers].ravel())
predict.number("missing from Y, second row", kept - taken, ".5f")
predict.explain(
    "All four weights are whole steps, by the choice of the example: they come back "
    "exactly. 0.0404 is 40.4 steps; it comes back as 0.04, 0.0004 too small, and 12.70 "
    f"x 0.0004 is missing: {taken:.5f} in place of {kept:.5f}."
)

# %% [markdown]
# A weight can be off by half a step, never by more. The outlier multiplies that.
#
# ## The code

# %%
source.show(Int8Linear.__call__, reference.decomposition.outlier_product)

# %% [markdown]
# ## Where do the 16-bit weights come from?
#
# > **Predict.** On the layer of the running table, how much larger is the error with weights from the codes? How many
# > bytes does the other policy keep?

# %%
x, w = model_data.layer()
exact = x.astype(np.float64) @ w.T.astype(np.float64)
errors = []
for policy in ("dequantized", "float"):
    layer = Int8Linear.from_float(w, outlier_weight=policy)
    size = w.size + 4 * len(w) + (2 * w.size if policy == "float" else 0)
    errors.append(running_table.error(layer(x), exact))
    print(
        f"{policy:<12} error of Y {errors[-1]:.3%}, bytes of W {size:>9,} "
        f"({size / w.size:.2f} per weight)"
    )
more = errors[0] / errors[1] - 1
predict.number("more error from the codes", 100 * more, ".0f", "%")
predict.number("bytes per weight with W kept", size / w.size, ".2f")

# %% [markdown]
# A little more error against a third of the memory: the codes are precise enough. That is why they are the default. The
# time of both is in chapter 11.
#
# ## The dial once more
#
# Chapter 05 turned six columns of the inputs up, and the weights that read them down by the same factor.
#
# > **Predict.** Those weights share the scale of their row with weights of ordinary size. What happens to their codes,
# > and to the perplexity, as the dial is turned?


# %%
model, tokens = model_data.model(), model_data.prose()


def perplexity(model):
    logits = model(tokens).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).exp().item()


inputs = model_data.layer_inputs()
read = np.stack(
    [
        inputs[f"model.layers.{i}.{p}"]
        for i in range(30)
        for p in ("self_attn.q_proj", "mlp.gate_proj")
    ]
)
by_size = np.abs(read).mean(axis=(0, 1)).argsort()
columns = by_size[len(by_size) // 2 - 3 :][:6].tolist()
reach = np.abs(read[:, :, columns]).max()
read_by = readers(model, tokens[:, :8].numpy())
factors = (1, 8, 64, 256)
methods = {
    "weights from codes": {"outlier_weight": "dequantized"},
    "16-bit W kept": {"outlier_weight": "float"},
}
curves = {name: [] for name in methods}
for factor in factors:
    turned = dial.turn(model, read_by, columns, factor)
    for name, options in methods.items():
        curves[name].append(
            perplexity(fast.quantize_model(copy.deepcopy(turned), **options))
        )
in_float = perplexity(model)

reader = (
    dial.turn(model, read_by, columns, 256)
    .get_submodule("model.layers.5.mlp.gate_proj")
    .weight.numpy()
)
zero_codes = (reference.absmax_quantize(reader, axis=-1).codes[:, columns] == 0).mean()
predict.number("codes that are 0 at factor 256", 100 * zero_codes, ".0f", "%")
rise = curves["weights from codes"][-1] / curves["weights from codes"][0] - 1
options = ["stays within 2 %", "rises by more"]
predict.choice("perplexity, with weights from codes", options, options[rise > 0.02])
figure, ax = plt.subplots()
for (name, values), marker, color in zip(
    curves.items(), "os", (pictures.ORANGE, pictures.BLUE), strict=True
):
    ax.plot(
        reach * np.array(factors),
        values,
        marker + "-",
        markersize=4,
        color=color,
        label=name,
    )
ax.axhline(in_float, color=pictures.GREY, linestyle=":", linewidth=1.5, label="float32")
ax.set(
    xscale="log",
    xlabel="largest magnitude of the six turned columns",
    ylabel="perplexity (less is better)",
    ylim=(19, 23),
)
ax.legend(loc="upper left")
pictures.show(
    figure,
    "Perplexity against the size of six turned columns; float32 is a "
    f"dotted line at {in_float:.1f}. With the 16-bit weights it stays near that line; "
    "with weights from the codes it rises at the right end.",
)
print(
    f"float32: {in_float:.2f}\n{'factor':<20}"
    + "".join(f"{factor:>11}" for factor in factors)
)
for name, values in curves.items():
    print(f"{name:<20}" + "".join(f"{model_data.about(value):>11}" for value in values))

# %% [markdown]
# The orange line rises at the end, since a weight whose code is 0 is lost, unless it is kept elsewhere. A real model
# has no such dial. But if you see LLM.int8() fail on one, look at this first: large features are often read by small
# weights.
#
# ## What does the rest of the batch do to my tokens?
#
# A column is an outlier if *any* row reaches the threshold: the whole batch decides. So the more rows are computed
# together, the more columns go to 16 bits, and the result of a row depends on the other rows.
#
# > **Predict.** `down_proj` of block 27 has 1536 input features. One row alone has 4 outlier columns. How many have 512
# > rows together? Do other rows make a row's result better or worse?

# %%
sizes = 2 ** np.arange(10)
print(f"{'rows together':<20}" + "".join(f"{size:>5}" for size in sizes))
figure, ax = plt.subplots()
for name, marker in (
    ("model.layers.20.mlp.down_proj", "o"),
    ("model.layers.27.mlp.down_proj", "^"),
    ("model.layers.27.self_attn.q_proj", "s"),
):
    counts = [
        int(reference.outlier_columns(inputs[name][-rows:]).sum()) for rows in sizes
    ]
    short = name.removeprefix("model.layers.")
    label = f"{short} (of {inputs[name].shape[1]})"
    ax.plot(sizes, counts, marker + "-", markersize=4, label=label)
    print(f"{short:<20}" + "".join(f"{count:>5}" for count in counts))
ax.set(xscale="log", xlabel="rows computed together", ylabel="outlier columns")
ax.legend()
pictures.show(
    figure,
    "Outlier columns against the number of rows in the batch: two down_proj layers "
    "climb steadily with "
    "every doubling, q_proj stays at one column.",
)

name = "model.layers.27.mlp.down_proj"
xb, wb = model_data.layer(name)
exact_b = xb.astype(np.float64) @ wb.T.astype(np.float64)
together = reference.llm_int8_matmul(xb, wb)
alone = np.concatenate([reference.llm_int8_matmul(row[None], wb) for row in xb[-64:]])
columns_b = int(reference.outlier_columns(xb).sum())
errors = [running_table.error(y, exact_b[-64:]) for y in (together[-64:], alone)]
options = ["worse", "better"]
predict.number("outlier columns of 512 rows", columns_b)
predict.choice("in a batch a row's result is", options, options[errors[0] < errors[1]])
print(f"\nthe last 64 rows, computed together with all: error {errors[0]:.2%}")
print(f"the same rows, each computed alone:           error {errors[1]:.2%}")
print(
    f"rows whose result differs: {int((together[-64:] != alone).any(axis=1).sum())} of "
    "64"
)

# %% [markdown]
# Systematic outliers, as in `q_proj`, are in every row, so other rows change nothing. Scattered ones, as in
# `down_proj`, accumulate. In a batch, a row gets more 16-bit columns than it needs, so its error tends to fall, and its
# result is not reproducible from one batch to another. For reproducible results, fix the batch or turn decomposition
# off.
#
# ## Absmax or zeropoint, continued
#
# Chapter 02 found that zeropoint's step is finer on one-sided inputs, because of outliers. Now we can take these out.
#
# > **Predict.** Over the 210 layers, how much smaller is zeropoint's error vector-wise? And with the outlier columns in
# > 16 bits?

# %%
ratios = {"vector-wise": [], "LLM.int8()": []}
for name in (name for name in inputs if name != "lm_head"):
    xa, wa = inputs[name][:64], model.get_submodule(name).weight.numpy()
    exact_a = xa.astype(np.float64) @ wa.T.astype(np.float64)
    for how, threshold in (("vector-wise", None), ("LLM.int8()", 6.0)):
        errors = [
            running_table.error(
                reference.llm_int8_matmul(xa, wa, threshold, q), exact_a
            )
            for q in ("absmax", "zeropoint")
        ]
        ratios[how].append(errors[1] / errors[0])
figure, ax = plt.subplots()
bins = np.linspace(0.5, 1.1, 31)
for (how, values), color in zip(
    ratios.items(), (pictures.BLUE, pictures.ORANGE), strict=True
):
    ax.hist(values, bins, color=color, alpha=0.6, label=how)
ax.set(
    xlabel="error of Y with zeropoint / with absmax",
    ylabel="linear layers",
    title="210 layers, 64 positions",
)
ax.legend()
pictures.show(
    figure,
    "Histogram over the layers of zeropoint's error divided by absmax's. Vector-wise: "
    f"median {np.median(ratios['vector-wise']):.2f}. "
    f"LLM.int8(): median {np.median(ratios['LLM.int8()']):.2f}.",
)
for how, values in ratios.items():
    predict.number(f"zeropoint's error over absmax's, {how}", np.median(values), ".2f")
for how, values in ratios.items():
    low, middle, high = np.percentile(values, [10, 50, 90])
    print(f"{how:<12} median layer {middle:.2f}; 80 % of them {low:.2f} to {high:.2f}")

# %% [markdown]
# Zeropoint's error is smaller by about a quarter before decomposition and a sixth after: without the outliers, inputs
# are much less one-sided. Its price is the corrections in every product and a wider accumulator. Absmax with
# decomposition is the method of the paper, and the rest of this tutorial uses it. Perplexity by both: chapter 11.
#
# ## The law
#
# Two laws, one for each question. **The weights**: the two policies differ only in the outlier part, and there each
# weight by half a step at most, so entry $mn$ of Y by $\sum_{k \in O} |X_{mk}| \cdot s^W_n / 2$. **The batch**: more
# rows never remove an outlier column, and a row is computed as its own outlier columns and those of the others require,
# nothing else.
#
# > **Predict.** On the real layer, which share of its bound does the largest difference reach?

# %%
outliers = reference.outlier_columns(x)
step = bounds.round_trip_bound(reference.absmax_quantize(w, -1).scale).T
in_codes, kept = (
    Int8Linear.from_float(w, outlier_weight=policy)(x).astype(np.float64)
    for policy in ("dequantized", "float")
)
of_weights = np.abs(x[:, outliers]).sum(axis=1, keepdims=True) * step
# what float32 may add: two sums of |O| products and the regular part, each in any order
regular = np.where(outliers, np.float32(0), x)
largest = np.abs(reference.quantized_matmul(regular, w)).astype(np.float64)
largest += np.abs(x[:, outliers]).astype(np.float64) @ np.abs(w[:, outliers]).T
of_sums = 2 * (outliers.sum() + 2) * bounds.U * (largest + of_weights)
assert (np.abs(in_codes - kept) <= of_weights + of_sums).all()
ratio = np.abs(in_codes - kept) / of_weights
predict.number("largest difference over its bound", ratio.max(), ".2f")

for rows in range(1, len(x)):
    more = reference.outlier_columns(x[: rows + 1])
    assert (more >= reference.outlier_columns(x[:rows])).all()
y = reference.llm_int8_matmul(x, w)
enough = [np.abs(x[:, k]).argmax() for k in np.flatnonzero(outliers)]
for row in range(0, len(x), 50):
    few = x[[row, *enough]]  # the row, and one row for each outlier column
    assert np.array_equal(reference.outlier_columns(few), outliers)
    alone = np.where(outliers, np.float32(0), few)
    assert np.array_equal(
        reference.quantized_matmul(alone, w)[0],
        reference.quantized_matmul(regular, w)[row],
    )
print(f"int8 part of a row: equal in a batch of {len(x)} and in one of {len(few)}")

# %% [markdown]
# ## Break it
#
# Batches are padded to a common length. A padding row is a row like any other: nothing tells the layer that its result
# will be thrown away.
#
# > **Predict.** Eight rows of padding are added, first zeros, then memory that nobody has written, here 1000 in every
# > entry. How many columns go to 16 bits? Do the results of the real rows get worse?

# %%
before = running_table.error(reference.llm_int8_matmul(x, w), exact)
options = ["worse", "as good", "better"]
for name, value in (("none", None), ("zeros", 0), ("not written", 1000)):
    rows = [] if value is None else [np.full((8, x.shape[1]), value, np.float32)]
    padded = np.concatenate([x, *rows])
    columns = int(reference.outlier_columns(padded).sum())
    after = running_table.error(reference.llm_int8_matmul(padded, w)[: len(x)], exact)
    if rows:
        predict.number(f"padding {name}: columns in 16 bits", columns)
        change = options[1 + (after < 0.99 * before) - (after > 1.01 * before)]
        predict.choice(f"padding {name}: the real rows are", options, change)
    print(f"padding {name:<12} error of the real rows {after:.2%}")

# %% [markdown]
# If every column goes to 16 bits, nothing is wrong, and nothing is in int8 any more: the method has become the float
# product, without a word, and slow. Zeros are the right padding: they reach no threshold, and change no scale, since
# every row has its own.
#
# A second mistake is to take a scale for the wrong axis when the column is dequantized: one scale belongs to a *row* of
# W, which is a *column* of Y.

# %%
codes, scale = reference.absmax_quantize(W, -1)
o = reference.outlier_columns(X)
right = X[:, o] @ (codes[:, o] * scale).T
wrong = (X[:, o] * scale) @ codes[:, o].T.astype(np.float32)
print(f"scales on the rows of Y: off by up to {np.abs(wrong - right).max():.3f}")

# %% [markdown]
# On a square layer it runs, as here. On any other NumPy stops it.
#
# ## The running table

# %%
running_table.show(x, w, chapter=6)

# %% [markdown]
# The error is a twelfth of where it started, at half the bytes of float16.
#
# ## Exercise
#
# Write `my_outlier_part(x, codes, scale, threshold)`: the outlier columns of x times their weights, which are taken
# from the codes. x is float32 (M, K), codes int8 (N, K), scale float32 (N, 1).


# %%
def my_outlier_part(x, codes, scale, threshold):
    return NotImplemented  # float32 (M, N)


checks.outlier_part(my_outlier_part)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_outlier_part(x, codes, scale, threshold):
#     outliers = (np.abs(x) >= threshold).any(axis=0)
#     return x[:, outliers] @ (codes[:, outliers] * scale).T
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. The weights of the outlier columns come from the codes: one byte per weight, and half a step of W times the outlier
#    as the price.
# 2. Any row of the batch can send a column to 16 bits, for all rows; padding counts as a row.
# 3. For results that do not depend on the batch, fix the batch or set the threshold to None.
#
# **Read on:** [07, a Triton kernel from nothing](07_quantize_kernel.ipynb), or, to stay with models,
# [10](10_layer_and_model.ipynb). The code: `reference/linear.py`, `fast/linear.py`.
