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
# **You need** [03, granularity](03_granularity.ipynb). **Time:** 18 minutes. **You leave with** the outliers of a
# real model found by the paper's criterion, a measurement of what they carry, and a dial that makes them larger.

# %%
import itertools

import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
import reference
from tutorials import checks, model_data, pictures, running_table, source
from tutorials.example import X

np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## The idea
#
# A row of X is one token; its columns are features. If one feature is far larger than the others, it sets the scale
# of the row, and the other features share the few codes that remain. Chapter 03 said what would help, a scale for
# each column, and that the product does not allow it.
#
# In a transformer such features are no accident of one token. They are the *same columns* for nearly all tokens, in
# many layers: the paper calls them emergent outlier features. Being in the same columns is what hurts, since every
# row is affected; it is also what chapter 05 will use.
#
# ## By hand
#
# > **Predict.** The second row of X is 2.54, 0.36, 12.70, -1.10. With the row's own scale, 0.1, what is left of 0.36?
# > What would its scale be without the third column?

# %%
row = X[1:2]
without = np.where(np.abs(row) >= 6, np.float32(0), row)
(q1, s1), (q2, s2) = reference.absmax_quantize(row, axis=-1), reference.absmax_quantize(without, axis=-1)
figure = pictures.matrices(
    [
        ("the row", row, "{:.2f}", np.abs(row) >= 6),
        (f"codes, scale {s1.item():.2f}", q1, "{:d}", None),
        ("without the outlier", without, "{:.2f}", None),
        (f"codes, scale {s2.item():.2f}", q2, "{:d}", None),
    ],
)
pictures.show(
    figure,
    f"The second row of X with 12.70 framed; its codes with the scale {s1.item():.2f}; the row with 12.70 "
    f"set to zero; its codes with the scale {s2.item():.2f}.",
)
kept = np.abs(row) < 6
print("largest error beside the outlier:", np.abs(q1 * s1 - row)[kept].max(), "  without it:", np.abs(q2 * s2 - without)[kept].max())

# %% [markdown]
# One number out of four cost the other three a factor of five.
#
# ## Real data: where they are
#
# The inputs of the attention projections (`q_proj`, `k_proj` and `v_proj` read the same input) in all 30 blocks of
# SmolLM2-135M, 512 positions of English: an array of 30 layers x 512 positions x 576 features.
#
# > **Predict.** 30 x 512 x 576 is 8.8 million entries. How many have magnitude 6 or more? In how many of the 576 columns?

# %%
inputs = model_data.layer_inputs()
attention = np.stack([inputs[f"model.layers.{i}.self_attn.q_proj"] for i in range(30)])
large = np.abs(attention) >= 6
print(f"{attention.size:,} entries; {large.sum():,} of magnitude 6 or more ({large.mean():.3%}), in {large.any(axis=(0, 1)).sum()} columns")
feature = int(large.sum(axis=(0, 1)).argmax())
print(f"column {feature} holds {large[:, :, feature].sum() / large.sum():.1%} of them")

tops = np.abs(attention).max(axis=1)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=[3, 2])
left.imshow(tops, aspect="auto", cmap=pictures.MAGNITUDE_STRONG, vmin=0, vmax=8, interpolation="nearest")
left.set(xlabel="feature column", ylabel="block", title="largest magnitude over 512 positions")
left.grid(False)
right.plot(tops[:, feature], "o-", color=pictures.ORANGE, markersize=4, label=f"column {feature}")
right.plot(np.median(tops, axis=1), "s-", color=pictures.BLUE, markersize=3, label="median column")
right.axhline(6, color=pictures.GREY, linestyle="--", linewidth=1)
right.set(xlabel="block", ylabel="largest magnitude", ylim=(0, 17))
right.legend(loc="upper left")
pictures.show(
    figure,
    f"Left: a map of blocks by feature columns; a vertical line, column {feature}, stands out from block "
    "10 on. Right: the largest magnitude of column "
    f"{feature} by block, up to {tops[:, feature].max():.1f}, against the median column, about {np.median(tops):.1f}; a dashed line at 6.",
)

# %% [markdown]
# One column. The rest of the map is pale.
#
# ## The criterion
#
# The paper (section 4) calls a feature an outlier feature if it has a magnitude of at least 6, in at least 25 % of
# the layers, and at at least 6 % of the positions. With $A_{\ell p k}$ the activation in layer $\ell$, at position
# $p$, of feature $k$:
#
# $$ \frac{1}{L} \sum_\ell \big[ \max_p |A_{\ell p k}| \ge 6 \big] \ge 0.25 \quad\text{and}\quad
# \frac{1}{P} \sum_p \big[ \max_\ell |A_{\ell p k}| \ge 6 \big] \ge 0.06 $$
#
# The three limits separate what is systematic from what is only large once.

# %%
source.show(checks.outlier_features_of)

# %%
mask = checks.outlier_features_of(attention)
for k in np.flatnonzero(large.any(axis=(0, 1))):
    layers, positions = large[:, :, k].any(axis=1).mean(), large[:, :, k].any(axis=0).mean()
    print(f"column {k:>3}: {layers:>4.0%} of the layers, {positions:>6.1%} of the positions {'<- outlier feature' if mask[k] else ''}")

# %% [markdown]
# > **Predict.** Does the criterion find the same number of features in the other projections: the MLP's `gate_proj`
# > input, and `down_proj`, which reads the product of two activations?

# %%
print(f"{'projection':<20} {'entries >= 6':>12} {'columns':>8} {'features':>9} {'largest':>8}")
for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
    a = np.stack([inputs[f"model.layers.{i}.{name}"] for i in range(30)])
    big = np.abs(a) >= 6
    print(f"{name:<20} {big.sum():>12,} {big.any(axis=(0, 1)).sum():>8} {checks.outlier_features_of(a).sum():>9} {np.abs(a).max():>8.0f}")

# %% [markdown]
# `down_proj` has the largest entries by far, but scattered: hundreds of columns, none of them large in a quarter of
# the layers. `gate_proj`'s are systematic at almost every position, but only in the last block. Decomposition will
# not ask for the criterion; it looks at one input at a time, and takes whatever reaches the threshold.
#
# ## What the outliers carry
#
# If they are so inconvenient, why not clip them or drop them? Take the two columns of the residual stream that are
# outliers in the last block, set them to zero at the input of every attention and MLP, and ask how well the model
# still predicts the text.
#
# > **Predict.** Perplexity is the number of tokens among which the model hesitates, as it were; on this text it is
# > about 20. What is it without 2 of the 576 features? And without 2 others, chosen at random?

# %%
model = model_data.model()
tokens = model_data.prose()


def perplexity_without(features):
    def clear(module, arguments):
        x = arguments[0].clone()
        x[..., features] = 0
        return (x,)

    readers = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    hooks = [m.register_forward_pre_hook(clear) for n, m in model.named_modules() if n.endswith(readers)]
    with torch.inference_mode():
        logits = model(tokens).logits[0]
    for hook in hooks:
        hook.remove()
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).exp().item()


two = np.flatnonzero(reference.outlier_columns(inputs[model_data.LAYER])).tolist()
rng = np.random.default_rng(0)
others = [perplexity_without(rng.choice(np.delete(np.arange(576), two), 2, replace=False).tolist()) for _ in range(5)]
print(f"all features: {perplexity_without([]):.2f}")
print(f"without 2 random ones, five draws: {min(others):.2f} to {max(others):.2f}")
print(f"without columns {two}: {perplexity_without(two):.1e}")

# %% [markdown]
# The model is destroyed. The paper reports the same of larger models (section 4.2): without the
# outlier features, at most seven, perplexity rises by 600 to 1000 %; without seven random ones, by 0.1 %. Outliers
# cannot be dropped, and must be computed precisely.
#
# ## How they emerge with scale
#
# From the paper (sections 4.1 and 4.2), for models of up to 175 billion parameters: in small ones a few layers have
# outliers, with no agreement about the column. At about 6.7 billion parameters a phase shift occurs: all layers, and
# 75 % of the positions, now agree on the same columns, up to about seven of them, and magnitudes grow. A sequence of
# 2048 tokens then holds about 150,000 outliers, in only six columns. The shift depends on perplexity more smoothly
# than on size. That is why 8-bit inference that had worked on BERT failed on OPT-6.7B.
#
# A model of that size does not fit a laptop. But its outliers do.
#
# ## The dial
#
# A linear layer's function does not change if a feature is made $f$ times larger and the weights that read it $f$
# times smaller:
#
# $$ \sum_k x_k w_k = \sum_{k \ne c} x_k w_k + (f x_c) (w_c / f) . $$
#
# With $f$ a power of two it does not even change in the last place: only exponents move.
#
# > **Predict.** Turn the dial on one column of a layer that has no outlier. The float product stays as it is, bit for
# > bit. Which of the granularities suffers most, and does any remain unharmed?


# %%
def turn(x, w, column, factor):
    """The same function, with feature `column` of x made `factor` times larger."""
    x, w = x.copy(), w.copy()
    x[:, column] *= np.float32(factor)
    w[:, column] /= np.float32(factor)
    return x, w


x, w = model_data.layer("model.layers.5.mlp.gate_proj")
column = int(np.abs(x).mean(axis=0).argsort()[len(w.T) // 2])
exact = x.astype(np.float64) @ w.T.astype(np.float64)
factors = 2.0 ** np.arange(0, 11)
curves = {g: [] for g in ("tensor", "row", "vector")}
for factor in factors:
    xt, wt = turn(x, w, column, factor)
    assert np.array_equal(xt.astype(np.float64) @ wt.T.astype(np.float64), exact)  # the same products, the same sums
    for granularity, errors in curves.items():
        errors.append(running_table.error(reference.quantized_matmul(xt, wt, granularity), exact))

figure, ax = plt.subplots()
for (granularity, errors), marker in zip(curves.items(), "o^s", strict=True):
    ax.plot(factors * np.abs(x[:, column]).max(), 100 * np.array(errors), marker + "-", markersize=4, label=granularity)
ax.axvline(6, color=pictures.GREY, linestyle="--", linewidth=1)
ax.set(xscale="log", xlabel="largest magnitude of the turned column", ylabel="error of Y (%)", ylim=(0, None))
ax.legend()
end = {g: f"{100 * errors[-1]:.0f} %" for g, errors in curves.items()}
pictures.show(
    figure,
    "Error of Y against the size of one column, for the three granularities. All rise together once the "
    f"column exceeds the others, to {end}.",
)
print("the float function: unchanged, bit for bit; error of Y at the end:", end)

# %% [markdown]
# All three collapse: no granularity that can be pulled out of the sum protects a row from its own largest entry. 575
# well-behaved columns are lost to one.
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
        with fast.backend("cpu"):
            assert np.array_equal(reference.outlier_columns(x), fast.outlier_columns(torch.from_numpy(x)).numpy())
print("90 inputs: the same columns")

# %% [markdown]
# ## The law
#
# Raising the threshold never adds a column; an entry of exactly the threshold counts; the sign does not matter; an
# infinite entry is an outlier, a NaN is not (it spoils its own row, through the scale).

# %%
x = inputs["model.layers.29.mlp.down_proj"]
masks = [reference.outlier_columns(x, t) for t in (0, 1, 2, 4, 6, 8, 16, 64, None)]
assert all((higher <= lower).all() for lower, higher in itertools.pairwise(masks))
assert masks[0].all()
assert not masks[-1].any()
edge = np.array([[6.0, np.nextafter(np.float32(6), np.float32(0)), -6.0, np.inf, np.nan]], np.float32)
assert reference.outlier_columns(edge).tolist() == [True, False, True, True, False]
print("columns by threshold:", [int(m.sum()) for m in masks])

# %% [markdown]
# ## Break it
#
# Two ways to look for outliers that seem reasonable, and miss them. The first compares the signed value; the second
# takes "six standard deviations" for "six".

# %%
middle = attention[12]
print("block 12: by magnitude", reference.outlier_columns(middle).sum(), "columns; by signed value", (middle >= 6).any(axis=0).sum())
for block in (0, 12, 29):
    a = attention[block]
    sigma = 6 * a.std()
    by_sigma = (np.abs(a) >= sigma).any(axis=0).sum()
    print(f"block {block:>2}: six standard deviations are {sigma:.2f}, {by_sigma:>3} columns; six is {reference.outlier_columns(a).sum()}")
assert not (middle >= 6).any()
assert reference.outlier_columns(middle).any()

# %% [markdown]
# The outlier column of block 12 is negative throughout. And with six standard deviations, block 0, which quantizes
# without any trouble, would send part of its columns to 16 bits.
#
# ## The running table
#
# Nothing new this time: outliers explain the table, they do not add to it. The layer in the table is the one whose
# two columns you dropped above.

# %%
running_table.show(*model_data.layer(), chapter=4)

# %% [markdown]
# ## Exercise
#
# Write `my_outlier_features(activations)`: from an array (layers, positions, features) to a mask (features,), by the
# criterion above with its limits 6, 25 % and 6 %.


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
# 1. Outliers are few columns, the same for nearly all tokens; a row-wise scale cannot avoid them.
# 2. They carry the model: dropping two columns destroys it, dropping two others is hardly seen.
# 3. They grow with scale: what works on a small model says little about a large one, unless you turn the dial.
#
# **Read on:** [05, decomposition](05_decomposition.ipynb). The paper: section 4 and its figure 3.
