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
# # 10. A layer, a model: load once, infer often, generate text
#
# **Question.** What does a model in int8 compute once, what at every token, and does it still give the same answers?
#
# **You need** [06, the weights and the batch](06_weights_and_batch.ipynb). **You leave with** a language model whose
# linear layers run in int8, a checkpoint of it, and measurements of the effect.

# %%
import copy
import io
import json
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM

import fast
import fast.huggingface
import reference
from fast.bitsandbytes_checkpoint import to_bitsandbytes
from tutorials import checks, model_data, pictures, predict, source
from tutorials.example import W, X

torch.set_grad_enabled(False)
np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The idea
#
# A layer in int8 has two phases.
#
# - **Load.** The weight is quantized once, with one scale per row. The float weight can then be freed.
# - **Inference.** At every call the input is searched for outlier columns, quantized, multiplied and rescaled.

# %%
x, w = model_data.layer()
n, k = w.shape
figure = pictures.movement(
    [
        ("W, on disk", f"{n} x {k}, float16", 2 * n * k),
        "load,\nonce",
        ("kept", f"{n} x {k} codes, {n} scales", n * k + 4 * n),
        "every\ncall",
        ("X of 1 token", f"1 x {k}, float16", 2 * k),
        "int8 +\noutliers",
        ("Y", f"1 x {n}, float16", 2 * n),
    ]
)
pictures.show(
    figure,
    f"W, {n} by {k} in float16, {2 * n * k} bytes, is quantized once; {n * k + 4 * n} "
    "bytes are kept. At "
    f"every call X, for one token {2 * k} bytes, meets them and "
    f"gives Y, {2 * n} bytes: for one token nearly all the bytes that move are the "
    "weight's.",
)

# %% [markdown]
# > **Predict.** A model that writes text reads every weight once for each token. If the memory is the bottleneck, how
# > many times as fast can this layer become at best?

# %%
bytes_moved = {2: 2 * n * k + 2 * k + 2 * n, 1: n * k + 4 * n + 2 * k + 2 * n}
predict.number("times as fast, at best", bytes_moved[2] / bytes_moved[1], ".2f")
predict.explain(
    "Nearly twice, if the work of quantizing is hidden. If the arithmetic is the "
    "bottleneck, the int8 units have to be faster than the 16-bit ones. Which of the "
    "two holds depends on the number of rows of X; chapter 11 measures it."
)

# %% [markdown]
# ## The formula
#
# $$ \text{load:}\quad s^W_n = \frac{\max_k |W_{nk}|}{127}, \quad q^W = \operatorname{rint}(W / s^W) \qquad
# \text{infer:}\quad Y = (q^X q^{W\top}) \odot s^X s^{W\top} + X_{:,O} (s^W q^W)_{:,O}^\top + b $$
#
# ## The code

# %%
source.show(reference.Int8Linear.from_float, reference.Int8Linear.__call__)

# %% [markdown]
# ## By hand
#
# > **Predict.** The 4 x 4 W has 64 bytes in float32 and 32 in float16. How many does the loaded layer keep? And how many
# > per weight, for large K?

# %%
layer = reference.Int8Linear.from_float(W)
kept = layer.weight.nbytes + layer.weight_scale.nbytes
predict.number("bytes kept", kept)
large_k = 2**20
per_weight = layer.weight.itemsize + layer.weight_scale.itemsize / large_k
predict.number("bytes per weight, for large K", per_weight, ".0f")
print(f"{layer.weight.nbytes} bytes of codes, {layer.weight_scale.nbytes} of scales")
y = layer(X)
exact = X.astype(np.float64) @ W.T.astype(np.float64)
float_kept = reference.Int8Linear.from_float(W, outlier_weight="float")(X)
figure = pictures.matrices(
    [
        ("codes of W", layer.weight, "{:d}", reference.outlier_columns(X)),
        ("scales", layer.weight_scale, "{:.3f}", None),
        ("Y", y, "{:.4f}", None),
        ("Y, float weights", float_kept, "{:.4f}", None),
        ("error of Y", y - exact, "{:.4f}", None),
    ],
    width=2.5,
)
pictures.show(
    figure,
    "The codes of W with the third column framed, which will be multiplied by the "
    "outliers; its four "
    "scales; Y; Y with the original weights in the outlier column; "
    f"the error of Y, at most {np.abs(y - exact).max():.4f}.",
)

# %% [markdown]
# The framed codes multiply the outliers. Times the scales they are exactly the weights, by the choice of the example, so
# both policies give the same result. On a real layer they differ by a tenth (chapter 06).
#
# ## The same call on `fast`
#
# > **Predict.** Codes and scales of the loaded layer: must every correct implementation have the same, bit for bit, or
# > only close ones? And Y? (The second answer is found with the columns of X and W written back to front: the same layer,
# > its sums taken in another order.)

# %%
x, w = model_data.layer()
mine = reference.Int8Linear.from_float(w)
theirs = fast.Int8Linear.from_float(torch.from_numpy(w))
y_fast = theirs(torch.from_numpy(x)).numpy()
y = mine(x)
y_turned = reference.Int8Linear.from_float(w[:, ::-1])(x[:, ::-1])
o = reference.outlier_columns(x)
kept = reference.absmax_dequantize(mine.weight, mine.weight_scale)
magnitudes = np.abs(x[:, o]).astype(np.float64) @ np.abs(kept[:, o]).T
part = np.abs(reference.quantized_matmul(np.where(o, np.float32(0), x), w))
same = np.array_equal(theirs.weight.numpy(), mine.weight) and np.array_equal(
    theirs.weight_absmax.numpy(), mine.weight_absmax
)
assert same
equal, close = options = "equal", "close"
predict.choice("codes and scales", options, equal if same else close)
predict.choice("Y", options, equal if np.array_equal(y, y_turned) else close)
# As in chapter 05, and the scale of W on either side of the sum.
bound = 2 * (o.sum() + 4) * 2.0**-24 * (magnitudes + part)
assert (np.abs(y - y_fast) <= bound).all()
assert (np.abs(y - y_turned) <= bound).all()
print("Y lies within its bound: the sum over the outlier columns may have any order")

# %% [markdown]
# ## What is stored
#
# A checkpoint of `fast.Int8Linear` stores the largest magnitude of each row instead of the scale, as bitsandbytes does
# under the name `SCB`.
#
# > **Predict.** How many bytes do the tensors of this layer of 1536 x 576 weights have in the file? And how many tensors
# > has a file that bitsandbytes reads?

# %%
states = {
    "ours": theirs.state_dict(),
    "bitsandbytes": to_bitsandbytes(theirs.state_dict()),
}
predict.number("bytes", sum(t.nbytes for t in states["ours"].values()), ",")
predict.number("tensors for bitsandbytes", len(states["bitsandbytes"]))
for title, state in states.items():
    print(title)
    for name, tensor in state.items():
        print(
            f"  {name:<14} {str(tensor.dtype).removeprefix('torch.'):<8} "
            f"{tuple(tensor.shape)!s:<12} {tensor.nbytes:>8,} bytes"
        )

file = io.BytesIO()
torch.save(to_bitsandbytes(theirs.state_dict()), file)
empty = fast.Int8Linear(k, n, bias=False, device="meta")  # shapes, and no memory
empty.load_state_dict(torch.load(io.BytesIO(file.getvalue())), assign=True)
assert torch.equal(empty(torch.from_numpy(x)), theirs(torch.from_numpy(x)))
print("saved under bitsandbytes' names, loaded into an empty layer: the same Y")

# %% [markdown]
# ## A model
#
# `quantize_model` replaces every linear layer but the last (`lm_head`, which stays float in the paper, too), one after
# the other, so that at most one layer exists twice.
# The experts of [a mixture of experts](../docs/howto/mixture_of_experts.md) become int8 as well, each a layer of its own.
#
# > **Predict.** SmolLM2-135M takes 538 MB in float32. What in int8, if the table of 49,152 tokens stays as it is?

# %%
original = model_data.model()
tokens = model_data.prose()
quantized = fast.quantize_model(copy.deepcopy(original))
size = sum(t.nbytes for t in (*quantized.parameters(), *quantized.buffers()))
predict.number("MB in int8", size / 1e6, ".0f")
print(quantized.quantization_summary)

# %% [markdown]
# > **Predict.** Perplexity on 512 tokens of English is about 20 in float. What is it with absmax and one scale per
# > tensor, vector-wise, and with decomposition?


# %%
def perplexity(model):
    logits = model(tokens).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).exp().item()


def in_int8(**options):
    return fast.quantize_model(copy.deepcopy(original), **options)


variants = {
    "float32": original,
    "absmax, one scale each": in_int8(granularity="tensor", threshold=None),
    "absmax, one scale per row of X": in_int8(granularity="row", threshold=None),
    "absmax, vector-wise": in_int8(threshold=None),
    "LLM.int8(), weights from codes": quantized,
    "LLM.int8(), float W kept": in_int8(outlier_weight="float"),
}
results = {name: perplexity(model) for name, model in variants.items()}
for name in list(results)[1::2]:
    predict.number(name, results[name], ".1f", about=model_data.mark(results[name]))
figure, ax = plt.subplots(figsize=(7.2, 2.6))
ax.barh(
    list(results),
    list(results.values()),
    color=[pictures.GREY] + [pictures.BLUE] * 3 + [pictures.ORANGE] * 2,
    alpha=0.7,
)
for i, value in enumerate(results.values()):
    ax.text(value + 0.2, i, f"{value:.1f}", va="center")
ax.invert_yaxis()
ax.set(xlabel="perplexity on 512 tokens (less is better)")
pictures.show(
    figure,
    "Perplexity by method: "
    + "; ".join(f"{name} {model_data.about(value)}" for name, value in results.items())
    + ".",
)

# %% [markdown]
# 512 tokens are few; chapter 11 has more, with intervals. The order is that of the paper.
#
# ## Text
#
# Greedy decoding, so that two runs can be compared.
#
# > **Predict.** Two models in int8, LLM.int8() and absmax with one scale each: how many of them write the same sentence as
# > the float model?


# %%
def write(model, prompt, count=24):
    ids = model.generate(
        **tokenizer(prompt, return_tensors="pt"),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.decode(ids[0])


tokenizer = model_data.tokenizer()
prompt = "The difference between a list and a tuple in Python is that"
written = {
    name: write(variants[name], prompt)
    for name in ("float32", "LLM.int8(), weights from codes", "absmax, one scale each")
}
same = [name for name, text in written.items() if text == written["float32"]]
predict.number("models that write the same", len(same) - 1)
for name, text in written.items():
    print(name, *textwrap.wrap(text, 84), sep="\n  ")

# %% [markdown]
# Sentences may diverge where two tokens were almost equally likely, and neither is wrong. A better measure is how often
# both models choose the same next token after the *same* text:


# %%
def choices(model):
    return model(tokens).logits[0].argmax(dim=-1)


reference_choice = choices(original)
agreement = {
    name: (choices(model) == reference_choice).float().mean().item()
    for name, model in variants.items()
    if model is not original
}
for name, share in agreement.items():
    print(f"{name:<32} the same next token at ~{share:.1%} of the positions")

# %% [markdown]
# ## The law
#
# Loading is idempotent: a dequantized weight gets the same codes when it is quantized again, so a checkpoint can be
# converted back and forth without further loss. Proof: the largest magnitude of a row has the code 127 exactly, so the
# scale is the same up to its last place, and the other values are whole steps, far from any tie.

# %%
codes, scale = reference.absmax_quantize(w, axis=-1)
for _ in range(3):
    again, scale_again = reference.absmax_quantize(
        reference.absmax_dequantize(codes, scale), axis=-1
    )
    assert np.array_equal(again, codes)
    assert (np.abs(scale_again - scale) <= 2.0**-23 * scale).all()
print("quantized, dequantized and quantized again, three times: the same codes")

# %% [markdown]
# ## Break it
#
# Three errors beside a right product.
#
# > **Predict.** Which of them harms the model least? And which perplexity does it then have, if it was about 20?


# %%
def damaged(how):
    model = copy.deepcopy(quantized)
    for module in model.modules():
        if isinstance(module, fast.Int8Linear):
            absmax = module.weight_absmax
            if how == "in float8, as a stray cast would leave them":
                absmax.copy_(absmax.to(torch.float8_e4m3fn).float())
            elif how == "of the rows in reverse order":
                absmax.copy_(absmax.flip(0))
            elif how == "divided by 127 once more":
                absmax.div_(127)
    return model


mistakes = {
    how: perplexity(damaged(how))
    for how in (
        "in float8, as a stray cast would leave them",
        "of the rows in reverse order",
        "divided by 127 once more",
    )
}
mildest = min(mistakes, key=mistakes.get)
predict.choice("the least harm: largest magnitudes", list(mistakes), mildest)
damaged = mistakes[mildest]
predict.number("its perplexity", damaged, ".1f", about=model_data.mark(damaged))
right = results["LLM.int8(), weights from codes"]
print(f"{'largest magnitudes as they should be':<44} perplexity ~{right:.1f}")
for how, value in mistakes.items():
    print(f"{how:<44} perplexity {model_data.about(value)}")

# %% [markdown]
# The last occurs when a checkpoint that stores scales is read as one of largest magnitudes, the first when a whole model
# is cast. `fast.Int8Linear` keeps its float32 numbers:

# %%
half = copy.deepcopy(theirs).half()
assert torch.equal(half.weight_absmax, theirs.weight_absmax)
print(
    "after .half():",
    {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in half.state_dict().items()
    },
)

# %% [markdown]
# ## The Hugging Face way
#
# With `import fast.huggingface`, `from_pretrained` quantizes each weight as it is read, so that the whole float model is
# never in memory, and `save_pretrained` writes a checkpoint that loads again.
#
# > **Predict.** The float model's weights take 538 MB in the folder. How many do those of the int8 model take?

# %%
with tempfile.TemporaryDirectory() as folder:
    original.save_pretrained(f"{folder}/float")
    loaded = AutoModelForCausalLM.from_pretrained(
        f"{folder}/float", quantization_config=fast.huggingface.Int8Config()
    )
    loaded.save_pretrained(f"{folder}/int8")
    again = AutoModelForCausalLM.from_pretrained(f"{folder}/int8")
    sizes = {
        name: sum(f.stat().st_size for f in Path(folder, name).glob("*.safetensors"))
        for name in ("float", "int8")
    }
    settings = json.loads(Path(folder, "int8", "config.json").read_text())[
        "quantization_config"
    ]
assert torch.equal(loaded(tokens[:, :64]).logits, again(tokens[:, :64]).logits)
assert torch.equal(loaded(tokens[:, :64]).logits, quantized(tokens[:, :64]).logits)
predict.number("MB of the int8 model", sizes["int8"] / 1e6, ".0f")
print(f"float: {pictures.quantity(sizes['float'])}")
print("three ways to the same int8 model: equal, bit for bit. In config.json:")
for name in ("threshold", "outlier_weight", "quantizer", "granularity"):
    print(f"  {name}: {settings[name]}")

# %% [markdown]
# ## The running table
#
# For a whole model: bytes of all its linear layers but the last, and perplexity.


# %%
def bytes_of_linears(model):
    """Without lm_head; float weights count 2 bytes per entry, as in a checkpoint."""
    total = 0
    for layer, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and layer != "lm_head":
            tensors = module.state_dict().values()
            total += sum(
                t.numel()
                * (
                    2
                    if t.dtype == torch.float32 and t.shape[1] > 1
                    else t.element_size()
                )
                for t in tensors
            )
    return total


print(f"{'method':<32} {'perplexity':>10} {'bytes of W':>13}")
for name, model in variants.items():
    print(
        f"{name:<32} {model_data.about(results[name]):>10} "
        f"{bytes_of_linears(model):>13,}"
    )

# %% [markdown]
# ## Exercise
#
# Write the two phases. `my_load(weight)` returns codes and scales, one per row; `my_infer(x, codes, scale)` computes Y
# with the outlier columns (threshold 6.0) taken from the *codes*. The checker runs one after the other; `my_infer` has
# no access to the float weight.


# %%
def my_load(weight):
    return NotImplemented  # codes (N, K) int8, scale (N, 1) float32


def my_infer(x, codes, scale):
    return NotImplemented  # y (M, N) float32


my_layer = my_load, my_infer
checks.layer(my_layer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_load(weight):
#     return tuple(reference.absmax_quantize(weight, axis=-1))
#
#
# def my_infer(x, codes, scale):
#     outliers = (np.abs(x) >= 6).any(axis=0)
#     xq, sx = reference.absmax_quantize(np.where(outliers, np.float32(0), x), axis=-1)
#     acc = xq.astype(np.int32) @ codes.astype(np.int32).T
#     regular = (acc.astype(np.float32) * sx) * scale.T
#     return regular + x[:, outliers] @ (codes[:, outliers] * scale).T
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. The weight is quantized once; the input is searched for outliers and quantized at every call.
# 2. A loaded layer keeps one byte per weight and four bytes per row.
# 3. Judge a quantized model by its loss and its choices on the same text, not by one generated sentence.
#
# **Read on:** [11, what it costs](11_costs.ipynb). For your own model:
# [quantize a model](../docs/howto/quantize_a_model.md), and `python -m experiments.generate` to compare it with float.
