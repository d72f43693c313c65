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
# # 00. Bits, tokens, layers: what is stored, and what is multiplied
#
# **Question.** A language model is a few hundred matrices of numbers. What is one such number, in bits? And which
# numbers are multiplied with which when the model reads a sentence?
#
# **You need** Python, and what a matrix product is. **You leave with** the bits of a float16 read by yourself, the
# three words *token*, *feature* and *projection*, and a mystery.
#
# > **Tip.** You can just read. To work along, clone the repository and run `make learn`: it sets up `.venv`, copies the
# > notebooks to `work/`, where your answers are never overwritten, and opens them in JupyterLab. You need neither a GPU
# > nor a download. Where the text says *Predict*, stop and write down a guess: you will remember what surprised you.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

from tutorials import checks, model_data, pictures, predict, running_table
from tutorials.example import W, X

torch.set_grad_enabled(False)
np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The idea
#
# A number in 16 bits is a number in scientific notation, in base two: a **sign**, an **exponent** and a **fraction**.
# 5.5 is 1.375 x $2^2$. The exponent says between which two powers of two the number lies, the fraction where
# between them. **float16** has 1 + 5 + 10 bits for the three: between two neighbouring powers of two there are always
# 1024 steps, so the steps get larger as the numbers do.
#
# An **int8** has no parts: its 8 bits are a whole number from -128 to 127. All its steps are equal.
#
# That is the difference which this course is about. A float spends its bits on being equally precise *relative* to each
# number. An int8 is equally precise in *absolute* terms, over one range, and half as large. And int8 products are
# exact: whole numbers have nothing to round.
#
# ## The formula
#
# $$ x = (-1)^{\text{sign}} \cdot 2^{\,e - 15} \cdot \Big(1 + \frac{f}{1024}\Big), \qquad e = 1 \ldots 30, \quad f = 0
# \ldots 1023 $$
#
# The 15, the *bias*, makes an exponent without a sign out of one with a sign. The 1 before the fraction is not stored:
# every number but zero has one. Two exponents are reserved. With $e = 0$ there is no leading 1, and the number is
# $2^{-14} \cdot f/1024$: this gives zero, and the *subnormal* numbers just above it. With $e = 31$ it is infinite
# ($f = 0$) or not a number, NaN.
#
# **bfloat16** has 1 + 8 + 7 bits and the bias 127: the range of float32, with 128 steps between two powers of two.
#
# In an **int8** the eight bits count -128, 64, 32, 16, 8, 4, 2 and 1.
#
# <!-- bits to flip, on the site -->
#
# ## By hand
#
# > **Predict.** 12.70 is an entry of the matrix that we follow through the course. Between which powers of two does it
# > lie? Which exponent $e$ is stored? 12.70 / 8 = 1.5875; which fraction $f$ comes nearest, and which number is that?


# %%
def bits_of(x, dtype, unsigned):
    return f"{np.array(x, dtype).view(unsigned):0{8 * np.dtype(dtype).itemsize}b}"


def draw(ax, y, name, bits, widths, colors):
    ax.text(-0.4, y + 0.4, name, ha="right", va="center")
    at = 0
    for width, color in zip(widths, colors, strict=True):
        for place in range(at, at + width):
            pictures.box(ax, place + 0.06, y, 0.88, 0.8, color)
            ax.text(place + 0.5, y + 0.4, bits[place], ha="center", va="center")
        at += width


half = bits_of(12.70, np.float16, np.uint16)
byte = bits_of(127, np.int8, np.uint8)
sign, exponent, fraction = int(half[0], 2), int(half[1:6], 2), int(half[6:], 2)
figure, ax = plt.subplots(figsize=(7.2, 1.9))
colors = (pictures.RED, pictures.GREEN, pictures.BLUE)
draw(ax, 1.3, "12.70 in float16", half, (1, 5, 10), colors)
draw(ax, 0.0, "127 in int8", byte, (8,), (pictures.ORANGE,))
for place, label in ((0.5, "sign"), (3.5, "exponent"), (11, "fraction")):
    ax.text(place, 2.3, label, ha="center")
pictures.blank(ax, (-4.6, 16.2), (-0.2, 2.8))
pictures.show(
    figure,
    f"The bits of 12.70 in float16: sign {half[0]}, exponent {half[1:6]}, fraction "
    f"{half[6:]}. Below it the eight bits of 127 in int8: {byte}.",
)
stored = (-1) ** sign * 2.0 ** (exponent - 15) * (1 + fraction / 1024)
predict.number("the exponent that is stored", exponent)
predict.number("the fraction", fraction)
predict.number("the number that is stored", stored, ".6f")
predict.explain(
    f"It lies between 8 and 16, so the power is 2^3, and {exponent} - 15 = 3. "
    f"0.5875 x 1024 = 601.6, so the fraction is {fraction}. Between 8 and 16 a step is "
    f"8/1024 = {8 / 1024:.4f}, and 12.70 is off by less than half of it."
)

# %% [markdown]
# ## How far apart the numbers are
#
# > **Predict.** An int8 for which one step is worth 0.1 reaches to 12.7. From which size on is it *more* precise than a
# > float16? And bfloat16?

# %%
sizes = 2.0 ** np.linspace(-8, 7, 400)
inside = sizes <= 12.7
options = ["nowhere", "from some size on"]
figure, ax = plt.subplots()
for name, fractions, color in (
    ("float16", 10, pictures.BLUE),
    ("bfloat16", 7, pictures.PURPLE),
):
    steps = 2.0 ** (np.floor(np.log2(sizes)) - fractions)
    ax.plot(sizes, steps, color=color, label=name)
    wider = bool((steps[inside] > 0.1).any())
    predict.choice(f"int8 is more precise than {name}", options, options[wider])
ax.plot(
    sizes[inside],
    np.full(inside.sum(), 0.1),
    color=pictures.ORANGE,
    label="int8, one step 0.1",
)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="magnitude of the number",
    ylabel="distance to the next",
)
ax.legend()
pictures.show(
    figure,
    "Distance between neighbouring numbers against their size, both axes logarithmic. "
    "float16 and bfloat16 are staircases that double at every power of two; int8 is a "
    "level line at 0.1 that ends at 12.7. It lies above both everywhere; bfloat16 "
    "comes nearest, from 8 on.",
)
for size in (0.08, 1.0, 12.0):
    step = float(np.spacing(np.float16(size)))
    print(f"at {size:>5}: float16 step {step:.5f}, int8 step 0.1")
predict.explain(
    "So eight bits lose precision, most of all in small numbers: 0.08 itself is less "
    "than one step."
)

# %% [markdown]
# The course asks how little of the difference matters, once the step of the int8 is chosen well.
#
# ## What a layer multiplies
#
# A language model reads **tokens**: words or pieces of words, each with a number in a list of 49,152. Here is the
# beginning of the text that this course uses, as SmolLM2-135M reads it.

# %%
model, tokens = model_data.model(), model_data.prose()
pieces = model_data.tokenizer().convert_ids_to_tokens(tokens[0, :8].tolist())
print(
    " | ".join(
        piece.replace("\u0120", " ").replace("\u010a", "(end)") for piece in pieces
    )
)
hidden = model.model.embed_tokens(tokens)[0]
print("each token becomes a row of features:", tuple(hidden.shape))

# %% [markdown]
# Each token becomes a row of 576 numbers, its **features**. The model, a **transformer**, is a stack of 30 **blocks**.
# Each block has two parts: **attention**, where a token's row takes in something from the rows of earlier tokens, and
# the **MLP**, where each row is worked on alone. Each part adds its result to the row: this running sum is the
# **residual stream**.
#
# Nearly all of the work in a block is seven matrix products. Each is a **linear layer**, also called a **projection**:
#
# $$ Y = X\, W^\top $$
#
# X has one row per token and one column per input feature. W, the weight, has one row per output feature. Entry $mn$ of
# Y is the sum over $k$ of $X_{mk} W_{nk}$: the row of one token times the row of one output feature.
#
# > **Predict.** `gate_proj` makes 1536 features out of 576. How many rows and columns has its W? How many
# > multiplications does it take per token? Which share of the model's numbers is in such layers?

# %%
x, w = model_data.layer()
linears = {
    name: module
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"
}
in_linears = sum(module.weight.numel() for module in linears.values())
total = sum(parameter.numel() for parameter in model.parameters())
predict.text("rows and columns of the W of gate_proj", np.array(w.shape))
predict.number("multiplications per token", w.size, ",d")
predict.number("share in linear layers", 100 * in_linears / total, ".0f", "%")
for name, module in list(linears.items())[:7]:
    n, k = module.weight.shape
    print(f"{name.removeprefix('model.layers.0.'):<18} W is {n:>4} x {k:>4}")
print(f"in {len(linears)} linear layers: {in_linears:,} of {total:,} numbers")
print(
    f"two bytes each: {pictures.quantity(2 * in_linears)}; one byte each: "
    f"{pictures.quantity(in_linears)}"
)

# %% [markdown]
# The larger the model, the larger that share. To halve the bytes of these weights, and to multiply in int8, is the aim
# of [LLM.int8()](https://arxiv.org/abs/2208.07339), the method of this course.
#
# The 4 x 4 example that we follow by hand is such a layer in small: X has four tokens (rows) and four features
# (columns), W four output features.

# %%
print("X\n", X, "\nW\n", W, "\nY = X W'\n", X @ W.T, sep="")

# %% [markdown]
# ## A mystery
#
# Here are all entries of one real X: 512 tokens of English, at the `gate_proj` of the last block.
#
# > **Predict.** Half of all magnitudes are at most an eighth. How large is the largest? And how many humps has the
# > histogram?

# %%
figure, ax = plt.subplots()
heights, *_ = ax.hist(x.ravel(), bins=80, color=pictures.BLUE)
risen = np.concatenate([[False], heights >= 20])
predict.number("the largest", x.max(), ".1f")
predict.number("humps", int((risen[1:] & ~risen[:-1]).sum()))
large = x > 5
columns, counts = np.unique(np.nonzero(large)[1], return_counts=True)
most = int(columns[counts.argmax()])
ax.annotate(
    "who are you?",
    (7.3, 300),
    (13, 3000),
    arrowprops={"arrowstyle": "->", "color": pictures.GREY},
)
ax.set(
    yscale="log",
    xlabel="entry of X",
    ylabel="entries",
    title=f"{x.shape[0]} x {x.shape[1]}",
)
pictures.show(
    figure,
    "Histogram of the entries of X with logarithmic counts: nearly all lie between -2 "
    "and 2. A second, separate hump of a few hundred entries lies around 7, and a "
    f"single entry at {x.max():.0f}.",
)
print(f"median magnitude {np.median(np.abs(x)):.3f}")
for column, count in zip(columns, counts, strict=True):
    print(f"above 5 in column {column}: {count} of {len(x)} tokens")
predict.explain(
    "There is a second hump, far from everything else, and all of it is in *one* "
    f"column of {x.shape[1]}, column {most}. Nearly every token has it, whatever word "
    "it is. "
    "(The single entry farthest out is in another column; it belongs to the first "
    "token of the text.)"
)

# %% [markdown]
# What is such a feature for, and what does one such column do to eight bits? Chapter 01 shows what it costs. Chapter 04
# finds out what it is. Chapter 05 is the answer of the paper.
#
# ## The law
#
# Two laws of float16. The formula gives every one of the 65,536 patterns of bits its number. And a number within the
# range is off by at most half a step, which is $2^{-11}$ of its size.

# %%
every = np.arange(2**16, dtype=np.uint16)
sign = np.where(every >> 15, -1.0, 1.0)
exponent, fraction = (every >> 10 & 31).astype(int), every & 1023
with np.errstate(over="ignore", invalid="ignore"):
    normal = sign * 2.0 ** (exponent - 15) * (1 + fraction / 1024)
    subnormal = sign * 2.0**-14 * fraction / 1024
    special = np.where(fraction == 0, sign * np.inf, np.nan)
    value = np.select([exponent == 0, exponent == 31], [subnormal, special], normal)
    assert np.array_equal(value, every.view(np.float16).astype(float), equal_nan=True)
print("65,536 patterns: the formula and NumPy agree")

numbers = x[np.abs(x) >= 2.0**-14].astype(np.float64)
relative = np.abs(numbers.astype(np.float16).astype(np.float64) - numbers) / np.abs(
    numbers
)
assert relative.max() <= 2.0**-11
print(f"the real X: off by at most {relative.max() * 2**11:.3f} of 2^-11, relative")

# %% [markdown]
# ## Break it
#
# > **Predict.** What is 70000 in float16? 2048 + 1? And 127 + 1 in int8?

# %%
with np.errstate(over="ignore"):
    predict.text("70000 in float16", np.float32(70000).astype(np.float16))
    predict.number("2048 + 1 in float16", float(np.float16(2048) + np.float16(1)))
    predict.number("127 + 1 in int8", int(np.int8(127) + np.int8(1)))
    print("200.7 cast to int8:", np.array([200.7]).astype(np.int16).astype(np.int8)[0])

# %% [markdown]
# The largest float16 is 65504; what is larger becomes infinite. From 2048 on the steps are 2. An int8 wraps around: 128
# becomes -128, and nothing says so. Every chapter meets one of these again.
#
# ## The running table
#
# One table accompanies the course: how far off Y is, and the bytes of W, for the real layer above. Its first line is
# where we start: weights in float16.

# %%
running_table.show(x, w, chapter=0)

# %% [markdown]
# ## Exercise
#
# Write `my_float16(bits)`: the number, a Python float, that a pattern of 16 bits stands for, given as an integer from 0
# to 65535. `bits >> 10` drops the last ten bits, `bits & 1023` keeps them. `np.inf` and `np.nan` are what their names
# say.


# %%
def my_float16(bits):
    return NotImplemented  # a float


checks.float16(my_float16)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_float16(bits):
#     sign = -1.0 if bits >> 15 else 1.0
#     exponent, fraction = bits >> 10 & 31, bits & 1023
#     if exponent == 31:
#         return sign * np.inf if fraction == 0 else np.nan
#     if exponent == 0:
#         return sign * 2.0**-14 * fraction / 1024
#     return sign * 2.0 ** (exponent - 15) * (1 + fraction / 1024)
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. A float16 has 1024 steps between two powers of two, so its error is relative; an int8 has 255 equal steps, so its
#    error is absolute.
# 2. A linear layer multiplies a row of features per token with a row of weights per output feature: Y = X W'.
# 3. One column of a real X is far larger than all others. Remember it.
#
# **Read on:** [01, absmax](01_absmax.ipynb): from a float to eight bits. IEEE 754 specifies float16 as *binary16*.
