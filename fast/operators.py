"""The fast path as PyTorch operators, so that torch.compile and torch.export see one opaque node each.

Inside, `implementation(x)` decides who computes, at run time: the data-dependent parts (how many columns are outliers) never
break a graph. From outside, PyTorch sees only the shapes, the dtypes and the gradient.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import arguments
from .dispatch import implementation
from .transforms import in_transform, is_transformed
from .weights import QuantizedWeight

torch.library.define("llm_int8::quantize", "(Tensor x, bool per_row, str quantizer) -> (Tensor, Tensor, Tensor)")
torch.library.define("llm_int8::int8_matmul", "(Tensor a, Tensor b) -> Tensor")
torch.library.define("llm_int8::outlier_columns", "(Tensor x, float? threshold) -> Tensor")
torch.library.define(
    "llm_int8::linear",
    "(Tensor x, Tensor codes, Tensor? absmax, Tensor? kept_scale, Tensor? zero_point, Tensor? float_weight, Tensor? bias,"
    " float? threshold, bool per_row) -> Tensor",
)


@torch.library.impl("llm_int8::quantize", "default")
def _quantize(x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero_point = implementation(x).quantize(x, per_row, quantizer)
    codes = codes.contiguous()  # where x has other strides, elementwise operations keep them
    return codes, scale, scale.new_empty(0, dtype=torch.int32) if zero_point is None else zero_point


@torch.library.register_fake("llm_int8::quantize")
def _quantize_fake(x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor]:
    slices = (x.shape[0] if per_row else 1, 1)
    zero_point = x.new_empty(0 if quantizer == "absmax" else slices, dtype=torch.int32)
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(slices, dtype=torch.float32), zero_point


def quantize(x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (M, K) int8, scale float32 and, for zeropoint, zero_point int32 of `x` (M, K); scales (M, 1) or (1, 1)."""
    codes, scale, zero_point = torch.ops.llm_int8.quantize(x, per_row, quantizer)
    return codes, scale, None if quantizer == "absmax" else zero_point


@torch.library.impl("llm_int8::int8_matmul", "default")
def _int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    return implementation(a).int8_matmul(a, b)


@torch.library.register_fake("llm_int8::int8_matmul")
def _int8_matmul_fake(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0], dtype=torch.int32)


@torch.library.impl("llm_int8::outlier_columns", "default")
def _outlier_columns(x: Tensor, threshold: float | None) -> Tensor:
    threshold = arguments.threshold(threshold)
    if threshold is None:
        return x.new_zeros(x.shape[1], dtype=torch.bool)
    return implementation(x).outlier_columns(x, threshold)


@torch.library.register_fake("llm_int8::outlier_columns")
def _outlier_columns_fake(x: Tensor, threshold: float | None) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.bool)


# What `linear` takes beside x: the fields of a weight, in their order, and these.
Flat = Tensor | float | bool | None
BIAS = 1 + len(QuantizedWeight._fields)


def _unflattened(flat: tuple[Any, ...]) -> tuple[QuantizedWeight, Tensor | None, float | None, bool]:
    """Weight, bias, threshold and per_row from the arguments that follow x."""
    return QuantizedWeight(*flat[: BIAS - 1]), *flat[BIAS - 1 :]


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context with the contract's float32 sums, whatever the caller's."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@torch.library.impl("llm_int8::linear", "default")
def _linear(x: Tensor, *flat: Flat) -> Tensor:
    weight, bias, threshold, per_row = _unflattened(flat)
    rows, limit = arguments.rows_of(x), arguments.threshold(threshold)
    with without_autocast(x):
        y = implementation(x).linear(rows, weight, bias, limit, per_row)
    # Not `view`: an operator's output that is a view cannot be changed in place under autograd.
    return y if x.ndim == 2 else torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[1]))


@torch.library.register_fake("llm_int8::linear")
def _linear_fake(x: Tensor, *flat: Flat) -> Tensor:
    weight, *_ = _unflattened(flat)
    return x.new_empty(*x.shape[:-1], weight.codes.shape[0])


def _save_for_backward(ctx, inputs, output) -> None:
    weight, bias, *_ = _unflattened(inputs[1:])
    ctx.save_for_backward(*weight)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.arguments = len(inputs)


def _derivative(weight: QuantizedWeight) -> Tensor:
    """(N, K), what stands for the layer's derivative: quantizing x counts as the identity."""
    return weight.dequantized() if weight.float_weight is None else weight.float_weight


def _linear_backward(ctx, gradient: Tensor):
    """Gradients to x and bias; the weight is frozen."""
    gradients: list[Tensor | None] = [None] * ctx.arguments
    if ctx.needs_input_grad[0]:
        w = _derivative(QuantizedWeight(*ctx.saved_tensors))
        gradients[0] = gradient @ w.to(gradient.dtype)
    if ctx.needs_input_grad[BIAS]:
        gradients[BIAS] = arguments.rows_of(gradient).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return tuple(gradients)


torch.library.register_autograd("llm_int8::linear", _linear_backward, setup_context=_save_for_backward)


@torch.library.register_vmap("llm_int8::linear")
def _linear_vmap(info, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
    """One after the other: a column is an outlier for the rows of one x, and with one scale per tensor, x is the tensor."""

    def at(index: int) -> list[Any]:
        return [value if dim is None else value.select(dim, index) for value, dim in zip(inputs, in_dims, strict=True)]

    return torch.stack([torch.ops.llm_int8.linear(*at(index)) for index in range(info.batch_size)]), 0


class _Transformed(torch.autograd.Function):
    """The operator under torch.func's transforms and in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return torch.ops.llm_int8.linear(*inputs)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _save_for_backward(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:BIAS])
        ctx.shape, ctx.dtype = output.shape, output.dtype
        ctx.set_materialize_grads(False)  # a tangent that is not there is told from one of zeros

    @staticmethod
    def backward(ctx, gradient: Tensor | None):
        return (None,) * ctx.arguments if gradient is None else _linear_backward(ctx, gradient)

    @staticmethod
    def jvp(ctx, x: Tensor | None, *flat: Tensor | None) -> Tensor | None:
        if any(tangent is not None for tangent in flat[: BIAS - 1]):
            raise NotImplementedError("the weight of an Int8Linear is frozen: it has no tangent; give one to the input or the bias")
        w, bias = _derivative(QuantizedWeight(*ctx.saved_tensors)), flat[BIAS - 1]
        if x is None:
            return None if bias is None else bias.expand(ctx.shape).to(ctx.dtype)
        y = torch.nn.functional.linear(x, w.to(x.dtype))
        return y if bias is None else y + bias.to(y.dtype)


def int8_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None, threshold: float | None = 6.0, granularity: str = "vector"
) -> Tensor:
    """Returns x @ weight.T + bias by the inference phase of LLM.int8(), in x's dtype.

    Gradients, of any order and in either mode, reach x and bias; the rounding of x counts as the identity.

    Args:
        x: (..., K) float16, bfloat16 or float32.
        weight: of (N, K).
        bias: (N,) of a floating dtype, or None.
        threshold: as in `outlier_columns`.
        granularity: "tensor" gives x one scale, "row" and "vector" one per row.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device; the message names it.
    """
    x = arguments.floats("x", x)
    arguments.same_k("x", x, "weight", weight.codes)
    inputs = (x, *weight, bias, threshold, granularity != "tensor")
    return in_transform(_Transformed, *inputs) if is_transformed() else torch.ops.llm_int8.linear(*inputs)
