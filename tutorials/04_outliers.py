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
# # 04. Outliers: few, huge, and always in the same columns
#
# **Question.** Vector-wise quantization gives every token its own scale. Why does int8 still fail on large language
# models?
#
# **You need** [03, granularity](03_granularity.ipynb). **You leave with** the outliers of a real model found by the
# paper's criterion, a measurement of what they carry, and a dial that makes them larger.

# %%
import copy
import itertools

import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
import reference
from experiments.lm import dial
from experiments.lm.recording import readers
from reference import features
from tutorials import checks, model_data, pictures, predict, running_table, source
from tutorials.example import W, X

torch.set_grad_enabled(False)
np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## The idea
#
# A row of X is one token; its columns are features. If one feature is far larger than the others, it sets the scale of
# the row, and the other features share the few codes that remain. One scale per column would help, but chapter 03
# showed that the product does not allow it.
#
# In a transformer such features do not occur in single tokens only. They are the *same columns* for nearly all tokens,
# in many layers: the paper calls them emergent outlier features. Being in the same columns is what makes them harmful,
# since every row is affected; chapter 05 uses the same fact.
#
# ## By hand
#
# > **Predict.** The second row of X is 2.54, 0.36, 12.70, -1.10. With the row's own scale, 0.1, which code does 0.36
# > get? What would the scale be without the third column, and which code would 0.36 get then?

# %%
row = X[1:2]
without = np.where(np.abs(row) >= 6, np.float32(0), row)
(q1, s1), (q2, s2) = (
    reference.absmax_quantize(row, axis=-1),
    reference.absmax_quantize(without, axis=-1),
)
predict.number("the code of 0.36", q1[0, 1])
predict.number("the scale without the third column", s2.item(), ".2g")
predict.number("the code of 0.36 then", q2[0, 1])
figure = pictures.matrices(
    [
        ("the row", row, "{:g}", np.abs(row) >= 6),
        (f"codes, scale {s1.item():.2f}", q1, "{:d}", None),
        ("without the outlier", without, "{:g}", None),
        (f"codes, scale {s2.item():.2f}", q2, "{:d}", None),
    ],
)
pictures.show(
    figure,
    f"The second row of X with 12.70 framed; its codes with the scale {s1.item():.2f}; "
    "the row with 12.70 "
    f"set to zero; its codes with the scale {s2.item():.2f}.",
)
kept = np.abs(row) < 6
steps = [float(np.abs(q * s - row)[kept].max()) for q, s in ((q1, s1), (q2, s2))]
print(
    f"largest error of the other three: with the outlier {steps[0]:.3f}, without it "
    f"{steps[1]:.3f}"
)

# %% [markdown]
# One number out of four made the step of the other three five times as wide. (The error without it is zero because the
# numbers of the example were chosen to give integer codes.)
#
# ## Real data: where they are
#
# The inputs of the attention projections (`q_proj`, `k_proj` and `v_proj` read the same input) in all 30 blocks of
# SmolLM2-135M, 512 positions of English: an array of 30 layers x 512 positions x 576 features.
#
# > **Predict.** 30 x 512 x 576 is 8.8 million entries. How many have magnitude 6 or more? In how many of the 576
# > columns?

# %%
inputs = model_data.layer_inputs()
attention = np.stack([inputs[f"model.layers.{i}.self_attn.q_proj"] for i in range(30)])
large = np.abs(attention) >= 6
predict.number("entries of magnitude 6 or more", large.sum(), ",")
predict.number("columns that have one", large.any(axis=(0, 1)).sum())
print(f"{attention.size:,} entries; {large.mean():.3%} of them of magnitude 6 or more")
feature = int(large.sum(axis=(0, 1)).argmax())
print(f"column {feature} holds {large[:, :, feature].sum() / large.sum():.1%} of them")

tops = np.abs(attention).max(axis=1)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=[3, 2])
left.imshow(
    tops,
    aspect="auto",
    cmap=pictures.MAGNITUDE_STRONG,
    vmin=0,
    vmax=8,
    interpolation="nearest",
)
left.set(
    xlabel="feature column",
    ylabel="block",
    title="largest magnitude over 512 positions",
)
left.grid(False)
right.plot(
    tops[:, feature],
    "o-",
    color=pictures.ORANGE,
    markersize=4,
    label=f"column {feature}",
)
right.plot(
    np.median(tops, axis=1),
    "s-",
    color=pictures.BLUE,
    markersize=3,
    label="median column",
)
right.axhline(6, color=pictures.GREY, linestyle="--", linewidth=1)
right.set(xlabel="block", ylabel="largest magnitude", ylim=(0, 17))
right.legend(loc="upper left")
pictures.show(
    figure,
    f"Left: a map of blocks by feature columns; a vertical line, column {feature}, "
    "stands out from block "
    "10 on. Right: the largest magnitude of column "
    f"{feature} by block, up to {tops[:, feature].max():.1f}, against the median "
    f"column, about {np.median(tops):.1f}; a dashed line at 6.",
)

# %% [markdown]
# A few columns stand out, each in the same place from block to block; one of them passes 6 in half of the blocks. Some
# of the lines come from a single token, the first of the text. Which of them are *systematic*?
#
# ## The formula: the paper's criterion
#
# The paper (section 4) calls a feature an outlier feature if it has a magnitude of at least 6, in at least 25 % of the
# layers, and at at least 6 % of the positions. With $A_{\ell p k}$ the activation in layer $\ell$, at position $p$, of
# feature $k$:
#
# $$ \frac{1}{L} \sum_\ell \big[ \max_p |A_{\ell p k}| \ge 6 \big] \ge 0.25 \quad\text{and}\quad
# \frac{1}{P} \sum_p \big[ \max_\ell |A_{\ell p k}| \ge 6 \big] \ge 0.06 $$
#
# The first share counts *layers*, the second *positions*: a position counts once, in however many layers the feature is
# large there. `features.affected` returns both.

# %%
source.show(features.affected, features.outlier_features)

# %% [markdown]
# > **Predict.** Three columns hold an entry of 6 or more. How many of the three are outlier features?

# %%
mask = features.outlier_features(attention)
spread = features.affected(attention)
predict.number("outlier features", mask.sum())
for k in np.flatnonzero(large.any(axis=(0, 1))):
    print(
        f"column {k:>3}: {spread.layers[k]:>4.0%} of the layers, "
        f"{spread.positions[k]:>5.1%} of the positions",
        "<- outlier" if mask[k] else "",
    )

# %% [markdown]
# > **Predict.** How many features does the criterion find in the other projections: the MLP's `gate_proj` input, and
# > `down_proj`, which reads the product of two activations?

# %%
print(
    f"{'projection':<20} {'entries >= 6':>12} {'columns':>8} {'features':>9} "
    f"{'largest':>8}"
)
for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
    a = np.stack([inputs[f"model.layers.{i}.{name}"] for i in range(30)])
    big = np.abs(a) >= 6
    print(
        f"{name:<20} {big.sum():>12,} {big.any(axis=(0, 1)).sum():>8} "
        f"{features.outlier_features(a).sum():>9} {np.abs(a).max():>8.0f}"
    )
    if name in ("mlp.gate_proj", "mlp.down_proj"):
        predict.number(f"features in `{name}`", features.outlier_features(a).sum())

# %% [markdown]
# `down_proj` has the largest entries by far, but they are scattered over hundreds of columns, none of them large in a
# quarter of the layers. `gate_proj`'s are systematic at almost every position, but only in the last block.
# Decomposition (chapter 05) does not use the criterion: it looks at one input, and takes every column that reaches the
# threshold there.
#
# ## What the outliers do for the model
#
# If they are so inconvenient, why not clip them or drop them? Take the two columns of the residual stream that are
# outliers in the last block, set them to zero at the input of every attention and MLP, and measure how well the model
# still predicts the text.
#
# > **Predict.** Perplexity is, roughly, the number of tokens among which the model hesitates; on this text it is
# > about 20. What is it without 2 of the 576 features? And without 2 others, chosen at random?

# %%
model, tokens = model_data.model(), model_data.prose()


def perplexity_without(removed):
    def clear(module, arguments):
        x = arguments[0].clone()
        x[..., removed] = 0
        return (x,)

    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    hooks = [
        m.register_forward_pre_hook(clear)
        for n, m in model.named_modules()
        if n.endswith(readers)
    ]
    logits = model(tokens).logits[0]
    for hook in hooks:
        hook.remove()
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).exp().item()


two = np.flatnonzero(reference.outlier_columns(inputs[model_data.LAYER])).tolist()
rng = np.random.default_rng(0)
others = [
    perplexity_without(
        rng.choice(np.delete(np.arange(576), two), 2, replace=False).tolist()
    )
    for _ in range(5)
]
without = perplexity_without(two)
predict.number("without the two outlier features", without, ".3g", about="~")
predict.number("without two others, the worst draw", max(others), ".3g", about="~")
print(f"all features: {perplexity_without([]):.2f}")
print(f"without 2 random ones, five draws: {min(others):.2f} to {max(others):.2f}")

# %% [markdown]
# The model is destroyed. So this is the second hump of chapters 00 and 01: column 17 is no noise. Nearly every token
# has that feature, and without it the model cannot speak.
#
# The paper reports the same of larger models (section 4.2): without the outlier features, at
# most seven, perplexity rises by 600 to 1000 %; without seven random ones, by 0.1 %. Outliers cannot be dropped; they
# must be computed precisely.
#
# ## How they emerge with scale
#
# SmolLM2 has 135 million parameters, and one outlier feature in its attention inputs. The paper (sections 4.1 and 4.2)
# followed them up to 175 billion:
#
# | | small models | from about 6.7 billion parameters |
# | --- | --- | --- |
# | layers with outliers | a few, more with size | all |
# | positions | a few | about 75 % |
# | which columns | each layer its own | the same in all layers, up to about seven |
# | in 2048 tokens | | about 150,000 outliers, in six columns |
#
# The transition looks sudden when plotted against size, and is smooth when plotted against perplexity: the better a
# model predicts, the more outliers it has. That is why int8 inference that had worked on BERT failed on OPT-6.7B.
#
# ## The dial
#
# A linear layer's function does not change if a feature is made $f$ times larger and the weights that read it $f$ times
# smaller:
#
# $$ \sum_k x_k w_k = \sum_{k \ne c} x_k w_k + (f x_c) (w_c / f) . $$
#
# If $f$ is a power of two, not even the last place changes: only exponents do.
#
# > **Predict.** In the 4 x 4 example, turn the dial on the *first* column by 64: its 2.54 becomes 162.56, and the
# > weights of that column are divided by 64. What happens to Y in float? By which factor does the error of int8 grow?

# %%
turned_x, turned_w = X.copy(), W.copy()
turned_x[:, 0] *= 64
turned_w[:, 0] /= 64
same = np.array_equal(turned_x @ turned_w.T, X @ W.T)
stays, changes = options = "stays the same, bit for bit", "changes"
predict.choice("Y in float", options, stays if same else changes)
figure = pictures.matrices(
    [
        ("X, turned", turned_x, "{:g}", turned_x != X),
        ("W, turned", turned_w, "{:.4f}", turned_w != W),
        (
            "error of Y before",
            reference.quantized_matmul(X, W) - X @ W.T,
            "{:.3f}",
            None,
        ),
        (
            "error of Y after",
            reference.quantized_matmul(turned_x, turned_w) - X @ W.T,
            "{:.3f}",
            None,
        ),
    ]
)
worst = [
    np.abs(reference.quantized_matmul(a, b) - X @ W.T).max()
    for a, b in ((X, W), (turned_x, turned_w))
]
predict.number("the largest error grows by a factor of", worst[1] / worst[0], ".2g")
pictures.show(
    figure,
    "X with its first column 64 times as large, W with its first column a 64th, and "
    "the errors of the vector-wise product before "
    f"and after: the largest is {worst[0]:.3f} and {worst[1]:.3f}.",
)

# %% [markdown]
# In a whole model the larger feature comes from the normalization before the attention and the MLP: its gain is
# multiplied by $f$. So the dial (`experiments/lm/dial.py`) turns in every block at once, and the float model computes
# the same logits, bit for bit.
#
# Six columns of average size, as many as the paper counts at 6.7 billion parameters, are turned up in all 30 blocks.
#
# > **Predict.** At a factor of 64 the six columns reach about 50. What is the perplexity of the float model? With one
# > scale each? Vector-wise?


# %%
def perplexity(model):
    logits = model(tokens).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).exp().item()


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
read_by = readers(
    model, tokens[:, :8].numpy()
)  # for each norm, the linear layers that read it
factors = (1, 4, 16, 64, 256)
curves = {"float32": [], "absmax, one scale each": [], "absmax, vector-wise": []}
for factor in factors:
    turned = dial.turn(model, read_by, columns, factor)
    curves["float32"].append(perplexity(turned))
    for name, granularity in (
        ("absmax, one scale each", "tensor"),
        ("absmax, vector-wise", "vector"),
    ):
        int8 = fast.quantize_model(
            copy.deepcopy(turned), threshold=None, granularity=granularity
        )
        curves[name].append(perplexity(int8))
assert len(set(curves["float32"])) == 1  # the same function, bit for bit

figure, ax = plt.subplots()
for (name, values), marker in zip(curves.items(), "so^", strict=True):
    ax.plot(reach * np.array(factors), values, marker + "-", markersize=4, label=name)
ax.axvline(6, color=pictures.GREY, linestyle="--", linewidth=1)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="largest magnitude of the six turned columns",
    ylabel="perplexity (less is better)",
)
ax.legend()
pictures.show(
    figure,
    "Perplexity against the size of the six columns, both axes logarithmic; a dashed "
    "line at 6. The float model stays at "
    f"{curves['float32'][0]:.1f}. One scale each begins at "
    f"{model_data.about(curves['absmax, one scale each'][0])} and reaches a million; "
    "vector-wise stays low for longer, and rises at the end.",
)
for name, values in curves.items():
    value = values[factors.index(64)]
    if name == "absmax, one scale each":
        low, middle, high = options = "under 100", "100 to 1,000", "over 1,000"
        answer = low if value < 100 else middle if value <= 1000 else high
        predict.choice(f"{name}, at 64", options, answer)
    else:
        predict.number(f"{name}, at 64", value, ".3g", about=model_data.mark(value))
print(f"{'factor':<24}" + "".join(f"{factor:>11}" for factor in factors))
for name, values in curves.items():
    print(f"{name:<24}" + "".join(f"{model_data.about(value):>11}" for value in values))

# %% [markdown]
# (`~` marks numbers that may differ slightly on your processor: where a sum is rounded differently, a code changes, and
# all later layers change a little. `≈` marks those of a model that int8 has damaged; there the same goes further.)
#
# Six columns ruin the precision of the other 570. The vector-wise product of chapter 03, the best so far, lasts longer,
# but fails too: no scale that can be factored out of the sum protects a row from its own largest entry.
#
# The dashed line is the paper's threshold. Next chapter: what to do with the columns beyond it.
#
# ## The same call on `fast`
#
# Which columns reach the threshold is a comparison, so both implementations must give the same mask.

# %%
source.show(reference.outlier_columns)
for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
    for i in range(30):
        x = inputs[f"model.layers.{i}.{name}"]
        assert np.array_equal(
            reference.outlier_columns(x),
            fast.outlier_columns(torch.from_numpy(x)).numpy(),
        )
print("90 inputs: the same columns")

# %% [markdown]
# ## The law
#
# Raising the threshold never adds a column; an entry of exactly the threshold counts; the sign does not matter; an
# infinite entry is an outlier, a NaN is not (its row gets the scale NaN).

# %%
x = inputs["model.layers.29.mlp.down_proj"]
masks = [reference.outlier_columns(x, t) for t in (0, 1, 2, 4, 6, 8, 16, 64, None)]
assert all((higher <= lower).all() for lower, higher in itertools.pairwise(masks))
assert masks[0].all()
assert not masks[-1].any()
edge = np.array(
    [[6.0, np.nextafter(np.float32(6), np.float32(0)), -6.0, np.inf, np.nan]],
    np.float32,
)
assert reference.outlier_columns(edge).tolist() == [True, False, True, True, False]
print("columns by threshold:", [int(m.sum()) for m in masks])

# %% [markdown]
# ## Break it
#
# Two searches for outliers that seem reasonable, but are wrong. The first compares the signed value; the second takes
# "six standard deviations" for "six".

# %%
middle = attention[12]
print(
    "block 12: by magnitude",
    reference.outlier_columns(middle).sum(),
    "columns; by signed value",
    (middle >= 6).any(axis=0).sum(),
)
for block in (0, 12, 29):
    a = attention[block]
    sigma = 6 * a.std()
    by_sigma = (np.abs(a) >= sigma).any(axis=0).sum()
    print(
        f"block {block:>2}: six standard deviations are {sigma:.2f}, {by_sigma:>3} "
        f"columns; six is {reference.outlier_columns(a).sum()}"
    )
assert not (middle >= 6).any()
assert reference.outlier_columns(middle).any()

# %% [markdown]
# The outlier column of block 12 is negative throughout. And with six standard deviations, block 0, which quantizes
# well, would lose part of its columns to 16 bits.
#
# ## The running table
#
# No new method in this chapter. The layer of the table is the one whose two columns you dropped above.

# %%
running_table.show(*model_data.layer(), chapter=4)

# %% [markdown]
# ## Exercise
#
# Write `my_outlier_features(activations)`: from an array (layers, positions, features) to a mask (features,), by the
# criterion above with its limits 6, 25 % and 6 %, each of them "at least".


# %%
def my_outlier_features(activations):
    return NotImplemented  # mask


checks.outlier_features(my_outlier_features)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_outlier_features(activations):
#     large = np.abs(activations) >= 6
#     in_layers = large.any(axis=1).mean(axis=0)
#     at_positions = large.any(axis=0).mean(axis=0)
#     return (in_layers >= 0.25) & (at_positions >= 0.06)
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. Outliers are in few columns, the same for nearly all tokens; one scale per row cannot avoid them.
# 2. The model depends on them: dropping two outlier columns destroys it, dropping two others hardly matters.
# 3. They grow with the size of the model: what works on a small model says little about a large one, until you turn the
#    dial.
#
# The activations of every block, to look through: [a real model](../docs/theatre/explore.md).
# **Read on:** [05, decomposition](05_decomposition.ipynb). The criterion: `reference/features.py`. The paper: section 4
# and its figure 3.
