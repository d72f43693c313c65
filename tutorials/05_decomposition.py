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
# # 05. LLM.int8(): the outliers stay out of int8
#
# **Question.** Outliers must be computed precisely, and they occur in a few columns. Can the product be split so that
# int8 does nearly all the work and the outliers do no harm?
#
# **You need** [03](03_granularity.ipynb) and [04](04_outliers.ipynb). **You leave with** the method of the paper, its
# bound, and an answer to: why 6.0?

# %%
import copy

import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
import reference
from experiments.lm import dial
from experiments.lm.recording import readers
from reference import bounds
from tutorials import checks, model_data, pictures, predict, running_table, source
from tutorials.example import W, X

torch.set_grad_enabled(False)
np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The idea
#
# A sum over $k$ may be split into two sums over disjoint sets of $k$. Put the columns that contain an outlier into the
# set $O$, compute their part in the precision in which they arrived (16 bits in the paper), and the rest in int8. The
# outlier columns are then left out of the int8 part, so they no longer set a scale.
#
# The split takes out whole *columns*, not single outlier *entries*: then both parts are dense products, and the second
# is a narrow one.

# %%
x, w = model_data.layer()
m, k, n, o = *x.shape, len(w), int(reference.outlier_columns(x).sum())
regular = f"{k - o} regular columns\nint8 codes: {pictures.quantity(m * k)}"
outlying = f"{o} outlier columns\n16 bits: {pictures.quantity(2 * m * o)}"
in_int8 = f"int8 product\n{m * n * k:,}\nmultiply-adds"
in_float = f"float product\n{m * n * o:,}\nmultiply-adds"


def draw(size, limits, boxes, arrows):
    figure, ax = plt.subplots(figsize=size)
    for (x, y, width, height), color, text in boxes:
        pictures.box(ax, x, y, width, height, color)
        at = x + width / 2, y + height / 2
        ax.text(*at, text, ha="center", va="center", fontsize=9.5)
    for start, end in arrows:
        pictures.arrow(ax, start, end)
    pictures.blank(ax, *limits)
    return figure


texts = (f"X\n{m} x {k}", regular, outlying, in_int8, in_float, f"Y\n{m} x {n}")
colors = [
    getattr(pictures, c) for c in ("BLUE", "GREEN", "ORANGE", "GREEN", "ORANGE", "BLUE")
]
across = (
    (0, 0.9, 1.7, 1.3), (2.5, 1.8, 2.2, 1.2), (2.5, 0, 2.2, 1.2),
    (5.4, 1.8, 1.9, 1.2), (5.4, 0, 1.9, 1.2), (8.1, 0.9, 1.6, 1.3),
)  # fmt: skip
down = (
    (1.4, 6, 2.2, 0.9), (0, 4, 2.4, 1.1), (2.6, 4, 2.4, 1.1),
    (0, 1.9, 2.4, 1.3), (2.6, 1.9, 2.4, 1.3), (1.4, 0, 2.2, 0.9),
)  # fmt: skip
figure = draw(
    (8.6, 3.2),
    ((-0.1, 9.8), (-0.1, 3.1)),
    zip(across, colors, texts, strict=True),
    [((1.75, 1.55), (2.45, y)) for y in (2.4, 0.6)]
    + [((4.75, y), (5.35, y)) for y in (2.4, 0.6)]
    + [((7.35, y), (8.05, 1.55)) for y in (2.4, 0.6)],
)
narrow = draw(
    (3.9, 4.6),
    ((-0.1, 5.1), (-0.1, 7)),
    zip(down, colors, texts, strict=True),
    [((2.5, 5.95), (x, 5.15)) for x in (1.2, 3.8)]
    + [((x, 3.95), (x, 3.25)) for x in (1.2, 3.8)]
    + [((x, 1.85), (2.5, 0.95)) for x in (1.2, 3.8)],
)
pictures.show(
    figure,
    f"X, {m} by {k}, is split into {k - o} regular columns, as int8 codes, and {o} "
    "outlier columns in "
    f"the 16 bits in which they arrive. The int8 product takes {m * n * k:,} "
    "multiply-adds (the outlier columns are multiplied as zeros), the float product "
    f"{m * n * o:,}; the sum of both is Y.",
    narrow,
)

# %% [markdown]
# ## The formula
#
# $$ O = \{ k : \exists m,\ |X_{mk}| \ge 6 \}, \qquad Y \approx \underbrace{X_{:,O}\, W_{:,O}^\top}_{\text{as it arrived}} +
# \underbrace{\big(X^{\setminus O}_q\, W_q^\top\big) \odot s^X s^{W\top}}_{\text{int8}} $$
#
# where $X^{\setminus O}$ is X with the columns of O set to zero (equation 8 of the paper). W is quantized once, over
# all its columns, when the layer is loaded: which columns are outliers depends on X.
#
# **What "16 bits" means.** In the paper X and W arrive in float16, and the outlier columns are multiplied in that
# precision. Here every input is widened to float32 first and never narrowed, so the code multiplies
# $X_{:,O}\, W_{:,O}^\top$ in float32. If X and W arrive in 16 bits, each product is the same number: the product of two
# float16 (or two bfloat16) numbers is exact in float32, within its range. If they arrive in float32, as on this page,
# `x.astype(np.float16)` would lose digits, and beyond 65504 become infinite; the checker rejects it. So read "in 16
# bits" as "in the precision in which it arrived, not in int8"; bytes are counted for 16-bit inputs.
#
# ## By hand
#
# > **Predict.** In the 4 x 4 example, which columns are in O? Without them, what are the four row scales, and the codes
# > of the second row, 2.54, 0.36, (12.70), -1.10? A column in O is multiplied as zeros.

# %%
outliers = reference.outlier_columns(X)
regular = np.where(outliers, np.float32(0), X)
(xq, sx), (wq, sw) = (
    reference.absmax_quantize(regular, -1),
    reference.absmax_quantize(W, -1),
)
predict.text("columns in O, counted from 0", np.flatnonzero(outliers))
predict.text("the four row scales", sx.ravel())
predict.text("the codes of the second row", xq[1])
figure = pictures.matrices(
    [
        ("X", X, "{:g}", np.broadcast_to(outliers, X.shape)),
        ("regular part", regular, "{:g}", None),
        ("scales", sx, "{:.3f}", None),
        ("codes", xq, "{:d}", None),
        ("outlier part", X[:, outliers], "{:g}", None),
    ],
    width=2.5,
)
pictures.show(
    figure,
    "X with its third column framed; the regular part, that column zero; its row "
    "scales "
    f"{', '.join(f'{s:.3g}' for s in sx.ravel())}; its codes; the outlier column "
    "alone.",
)

# %% [markdown]
# Row two by hand, first result: the int8 sum is 127 x 100 + 18 x (-127) + 0 x 40 + (-55) x 60 = 7114, times 0.02 x
# 0.001 is 0.1423; in float 12.70 x 0.04 = 0.508; together 0.6503.
#
# > **Predict.** Rows two and four contain an outlier, rows one and three none. Which rows of Y get better?

# %%
int8_part = reference.vectorwise.rescale(reference.int8_matmul(xq, wq), sx, sw)
float_part = X[:, outliers] @ W[:, outliers].T
exact = X.astype(np.float64) @ W.T.astype(np.float64)
figure = pictures.matrices(
    [
        ("int8 part", int8_part, "{:.4f}", None),
        ("float part", float_part, "{:.4f}", None),
        ("sum", int8_part + float_part, "{:.4f}", None),
        ("X W' in float64", exact, "{:.4f}", None),
    ],
    width=2.8,
)
pictures.show(
    figure,
    "Four 4 by 4 matrices: the int8 part; the float part, large in rows two and four; "
    "their sum; the product in float64. The largest "
    "difference between the last two is "
    f"{np.abs(int8_part + float_part - exact).max():.4f}.",
)
errors = {
    name: np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)
    for name, y in (
        ("vector-wise", reference.quantized_matmul(X, W)),
        ("LLM.int8()", int8_part + float_part),
    )
}
better = errors["LLM.int8()"] < 0.99 * errors["vector-wise"]
predict.text("rows of Y that get better, counted from 1", np.flatnonzero(better) + 1)
for name, of_rows in errors.items():
    print(f"{name:<12} error of each row of Y: {of_rows}")
predict.explain(
    "The second row has finer codes now; in chapter 03 they were 25, 4, 127 and -11. "
    "The other two contain no outlier; they lose nothing when their third entry is "
    "left out of int8, too."
)

# %% [markdown]
# ## The code

# %%
source.show(
    reference.outlier_columns,
    reference.llm_int8_matmul,
    reference.decomposition.outlier_product,
)

# %% [markdown]
# ## The same call on `fast`
#
# The regular part is equal, bit for bit. The outlier part is a float32 sum, which each implementation may compute in
# its own order, so equality cannot be required. The standard bound can: a sum of the regular part and $|O|$ products in
# float32, in any order, lies within $(|O| + 1) \cdot 2^{-24}$ of the exact one, relative to the sum of the magnitudes;
# two such sums lie within twice that.

# %%
y = reference.llm_int8_matmul(x, w)
columns = reference.outlier_columns(x)
cleared = np.where(columns, np.float32(0), x)
part = reference.quantized_matmul(cleared, w)
y_fast = fast.llm_int8_matmul(torch.from_numpy(x), torch.from_numpy(w)).numpy()
assert np.array_equal(columns, fast.outlier_columns(torch.from_numpy(x)).numpy())
assert np.array_equal(
    part, fast.quantized_matmul(torch.from_numpy(cleared), torch.from_numpy(w)).numpy()
)
magnitudes = np.abs(x[:, columns]).astype(np.float64) @ np.abs(w[:, columns]).T
bound = 2 * (o + 1) * 2.0**-24 * (np.abs(part) + magnitudes)
difference = np.abs(y.astype(np.float64) - y_fast)
assert (difference <= bound).all()
print("mask and regular part equal, bit for bit; Y within its bound, entry by entry")

# %% [markdown]
# ## Why 6.0?
#
# The threshold trades error for 16-bit work. Measure both on the inputs of all `q_proj`, `gate_proj` and `down_proj` in
# every third block.
#
# > **Predict.** Vector-wise, without outlier columns, the error is 2.5 %. What is it with the threshold 6, and with 1?
# > Which share of the work is then in 16 bits?

# %%
thresholds = [0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 12, 20, 50, 1000]
names = [
    f"model.layers.{i}.{p}"
    for i in range(2, 30, 3)
    for p in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")
]
layers = [model_data.layer(name) for name in names]
layers = [
    (a[:128], b, a[:128].astype(np.float64) @ b.T.astype(np.float64)) for a, b in layers
]
work = sum(a.shape[1] * len(b) for a, b, _ in layers)
errors, shares = [], []
for t in thresholds:
    errors.append(
        np.mean(
            [
                running_table.error(reference.llm_int8_matmul(a, b, t), e)
                for a, b, e in layers
            ]
        )
    )
    shares.append(
        sum(reference.outlier_columns(a, t).sum() * len(b) for a, b, _ in layers) / work
    )

for t in (6, 1):
    place = thresholds.index(t)
    predict.number(f"error at threshold {t}", 100 * errors[place], ".2f", "%")
    predict.number(f"16-bit work at threshold {t}", 100 * shares[place], ".1f", "%")
figure, ax = plt.subplots()
ax.plot(
    thresholds, 100 * np.array(errors), "o-", color=pictures.BLUE, label="error of Y"
)
ax.plot(
    thresholds,
    100 * np.array(shares),
    "s-",
    color=pictures.ORANGE,
    label="share of the work in 16 bits",
)
ax.axvline(6, color=pictures.GREY, linestyle="--", linewidth=1)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="threshold",
    ylabel="percent",
    title=f"{len(layers)} layers, 128 positions",
)
ax.legend()
at = {
    t: (f"{e:.2%}", f"{s:.2%}")
    for t, e, s in zip(thresholds, errors, shares, strict=True)
}
pictures.show(
    figure,
    "Mean error of Y and share of 16-bit work against the threshold, both axes "
    "logarithmic. At 2: error "
    f"{at[2][0]}, share {at[2][1]}; at 6: {at[6][0]}, "
    f"{at[6][1]}; at 1000: {at[1000][0]}, {at[1000][1]}.",
)
for t in (1, 2, 4, 6, 12, 1000):
    print(f"threshold {t:>4}: error {at[t][0]}, 16-bit work {at[t][1]}")

# %% [markdown]
# There is no cliff at 6.0. Each halving of the threshold reduces the error by about the same factor, and multiplies the
# 16-bit columns several times: near 6 the two curves cross. The paper chose 6.0 because treating the columns beyond it
# was enough to bring the degradation of its models close to zero (section 3.2). Your model may need another: measure
# it, as here; the [results](../docs/results.md) have the same sweep in perplexity.
#
# ## The dial again
#
# Chapter 04 turned six columns up in the whole model, without changing its function, and vector-wise quantization
# collapsed.
#
# > **Predict.** What will LLM.int8() do, below the threshold and above it?


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
    "absmax, vector-wise": {"threshold": None},
    "LLM.int8()": {"outlier_weight": "float"},
}
curves = {name: [] for name in methods}
for factor in factors:
    turned = dial.turn(model, read_by, columns, factor)
    for name, options in methods.items():
        curves[name].append(
            perplexity(fast.quantize_model(copy.deepcopy(turned), **options))
        )
in_float = perplexity(model)

less = in_float * 1.05
predict.choice(
    "LLM.int8() at factor 256",
    ["within 5 % of float", "worse"],
    "within 5 % of float" if curves["LLM.int8()"][-1] < less else "worse",
)
predict.choice(
    "vector-wise at factor 256",
    ["a little worse", "at least twice as bad"],
    "at least twice as bad"
    if curves["absmax, vector-wise"][-1] > 2 * in_float
    else "a little worse",
)
figure, ax = plt.subplots()
for (name, values), marker, color in zip(
    curves.items(), "^o", (pictures.GREEN, pictures.BLUE), strict=True
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
ax.axvline(6, color=pictures.GREY, linestyle="--", linewidth=1)
ax.set(
    xscale="log",
    xlabel="largest magnitude of the six turned columns",
    ylabel="perplexity (less is better)",
    ylim=(19, 26),
)
ax.legend(loc="upper left")
pictures.show(
    figure,
    "Perplexity against the size of six turned columns, cut off at 26; float32 is a "
    f"dotted line at {in_float:.1f}. Vector-wise leaves the "
    "picture beyond 6; LLM.int8() stays near the dotted line.",
)
print(
    f"float32: {in_float:.2f}\n{'factor':<22}"
    + "".join(f"{factor:>11}" for factor in factors)
)
for name, values in curves.items():
    print(f"{name:<22}" + "".join(f"{model_data.about(value):>11}" for value in values))

# %% [markdown]
# The error stays low, whatever the size of the outliers. That is the paper's result, on a model that runs on a laptop.
# (The [playground](../docs/playground/index.md) has such a dial to turn by hand, and [a real
# model](../docs/theatre/explore.md) one for each column of its activations.)
#
# ## The law
#
# Without a threshold the method is the vector-wise product, bit for bit. With threshold 0 every column is an outlier
# column, and it is the float product. Raising the threshold never adds a column (chapter 04).
#
# And there is a bound: the regular columns have the errors of chapter 03, with their own, smaller scales; the outlier
# columns have no quantization error of X.
#
# > **Predict.** On the real layer, how much smaller is it than the vector-wise bound?

# %%
assert np.array_equal(
    reference.llm_int8_matmul(x, w, None), reference.quantized_matmul(x, w)
)
assert np.array_equal(
    reference.llm_int8_matmul(x, w, np.inf), reference.quantized_matmul(x, w)
)
assert np.array_equal(reference.llm_int8_matmul(x, w, 0), x @ w.T)
print("threshold None: the vector-wise product; threshold 0: the float product")

bound = bounds.llm_int8_matmul_bound(x, w)
assert (
    np.abs(
        reference.llm_int8_matmul(x, w) - x.astype(np.float64) @ w.T.astype(np.float64)
    )
    <= bound
).all()
vectorwise_bound = bounds.llm_int8_matmul_bound(x, w, None)
ratio = np.median(vectorwise_bound) / np.median(bound)
predict.number("vector-wise bound over LLM.int8()'s, medians", ratio, ".1f")
print(
    f"median bound of an entry of Y: vector-wise {np.median(vectorwise_bound):.1f}, "
    f"LLM.int8() {np.median(bound):.1f}"
)

# %% [markdown]
# ## Break it
#
# > **Predict.** The first mistake forgets to clear the outlier columns before quantizing. Is the result a little worse,
# > or plainly wrong?

# %%
twice = reference.quantized_matmul(X, W) + float_part
options = ["a little worse", "plainly wrong"]
wrong = running_table.error(twice, exact) > 0.5
predict.choice("the result is", options, options[wrong])
negative = X * np.array([1, 1, -1, 1], np.float32)
print(
    "not cleared, so counted twice:", f"error {running_table.error(twice, exact):.1%}"
)
print(
    "signed comparison, the outliers negative: columns found",
    int((negative >= 6).any(axis=0).sum()),
    "of",
    int(reference.outlier_columns(negative).sum()),
)

# %% [markdown]
# A third mistake comes before the algorithm: some implementations convert every input to float16 first; bitsandbytes
# [warns of it](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/autograd/_functions.py):
# "inputs will be cast from ... to float16". The largest number there is 65504, and outliers are what is large:

# %%
large = X.copy()
large[1, 2] = 70000
with np.errstate(all="ignore"):
    print("as float16:", large.astype(np.float16)[1])
    print("Y in float32:           ", reference.llm_int8_matmul(large, W)[1].round())
    print(
        "Y through float16 first:",
        reference.llm_int8_matmul(large.astype(np.float16), W)[1],
    )

# %% [markdown]
# The contract widens every input to float32 and never narrows one.
#
# ## The running table

# %%
running_table.show(x, w, chapter=5)

# %% [markdown]
# The error is less than a twelfth of where it started. But look at the bytes: the outlier columns of W have to come
# from somewhere, and this layer keeps all of W in 16 bits beside its codes. That is more memory than float16 alone
# takes, not less. Chapter 06 gets rid of it.
#
# ## Exercise
#
# Write `my_llm_int8(x, w, threshold)`. You may use your `my_vectorwise` from chapter 03, or
# `reference.quantized_matmul`.


# %%
def my_llm_int8(x, w, threshold):
    return NotImplemented  # y, float32 (M, N)


checks.decomposition(my_llm_int8)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_llm_int8(x, w, threshold):
#     outliers = (np.abs(x) >= threshold).any(axis=0)
#     regular = np.where(outliers, np.float32(0), x)
#     return reference.quantized_matmul(regular, w) + x[:, outliers] @ w[:, outliers].T
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. Columns with an entry of magnitude 6 or more are computed in 16 bits (as they arrived), the others in int8; the
#    results are added.
# 2. Clear the outlier columns before quantizing, so that they set no scale and are not counted twice.
# 3. The batch decides which columns these are, at every call.
#
# You can now derive LLM.int8(). **Read on:** [06](06_weights_and_batch.ipynb), what the formula leaves open: where the
# weights of the outlier columns come from, and what the rest of the batch does. The paper: section 3.2.
