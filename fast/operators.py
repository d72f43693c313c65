"""The fast path as PyTorch operators, so that torch.compile and torch.export see one opaque node each.

Inside, `implementation(x)` decides who computes, at run time: the data-dependent parts (how many columns are outliers) never
break a graph. The shapes, dtypes and the gradient are all that PyTorch needs to know from outside.
"""

import torch
from torch import Tensor

from . import arguments
from .derived import Derived
from .dispatch import implementation
from .weights import QuantizedWeight, absmax_scale

torch.library.define("llm_int8::quantize", "(Tensor x, bool per_row, str quantizer) -> (Tensor, Tensor, Tensor)")
torch.library.define("llm_int8::int8_matmul", "(Tensor a, Tensor b) -> Tensor")
torch.library.define("llm_int8::outlier_columns", "(Tensor x, float? threshold) -> Tensor")
torch.library.define(
    "llm_int8::linear",
    "(Tensor x, Tensor codes, Tensor? absmax, Tensor? scale, Tensor? zero_point, Tensor? float_weight, Tensor? bias,"
    " float? threshold, bool per_row) -> Tensor",
)

scale_of = Derived(absmax_scale)
code_sum_of = Derived(lambda codes: codes.sum(-1, dtype=torch.int32))


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
    limit = arguments.threshold(threshold)
    if limit is None:
        return x.new_zeros(x.shape[1], dtype=torch.bool)
    return implementation(x).outlier_columns(x, limit)


@torch.library.register_fake("llm_int8::outlier_columns")
def _outlier_columns_fake(x: Tensor, threshold: float | None) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.bool)


def quantized_weight(
    codes: Tensor, absmax: Tensor | None, scale: Tensor | None, zero_point: Tensor | None, float_weight: Tensor | None
) -> QuantizedWeight:
    """What a layer stores, with what follows from it; arguments as in `int8_linear`."""
    if absmax is not None:
        scale = scale_of(absmax)
    elif scale is None:
        raise ValueError("scale must be given where absmax is None")
    return QuantizedWeight(codes, scale, zero_point, None if zero_point is None else code_sum_of(codes), float_weight)


@torch.library.impl("llm_int8::linear", "default")
def _linear(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    float_weight: Tensor | None,
    bias: Tensor | None,
    threshold: float | None,
    per_row: bool,
) -> Tensor:
    weight = quantized_weight(codes, absmax, scale, zero_point, float_weight)
    with torch.autocast(x.device.type, enabled=False):  # the contract's float32 sums, whatever the caller's context
        return implementation(x).linear(x, weight, bias, arguments.threshold(threshold), per_row)


@torch.library.register_fake("llm_int8::linear")
def _linear_fake(x, codes, absmax, scale, zero_point, float_weight, bias, threshold, per_row):
    return x.new_empty(x.shape[0], codes.shape[0])


def _save_for_backward(ctx, inputs, output) -> None:
    _, codes, absmax, scale, zero_point, float_weight, bias, _, _ = inputs
    ctx.save_for_backward(codes, absmax, scale, zero_point, float_weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_backward(ctx, gradient: Tensor):
    """Gradients to x and bias; quantizing x counts as the identity, the weight is frozen."""
    codes, absmax, scale, zero_point, float_weight = ctx.saved_tensors
    x_gradient = bias_gradient = None
    if ctx.needs_input_grad[0]:
        w = float_weight
        if w is None:
            w = (codes if zero_point is None else codes - zero_point) * (absmax_scale(absmax) if scale is None else scale)
        x_gradient = gradient @ w.to(gradient.dtype)
    if ctx.needs_input_grad[6]:
        bias_gradient = gradient.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return x_gradient, None, None, None, None, None, bias_gradient, None, None


torch.library.register_autograd("llm_int8::linear", _linear_backward, setup_context=_save_for_backward)


def int8_linear(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    float_weight: Tensor | None,
    bias: Tensor | None,
    threshold: float | None,
    granularity: str,
) -> Tensor:
    """Returns x @ weight.T + bias by the inference phase of LLM.int8(), in x's dtype.

    Args:
        x: (..., K) float16, bfloat16 or float32.
        codes: (N, K) int8, the weight.
        absmax: float32, (N, 1) or (1, 1), from which an absmax weight's scale follows; None if `scale` is given.
        scale: float32, likewise, for zeropoint or where there is no absmax.
        zero_point: int32, the shape of scale; None for absmax.
        float_weight: (N, K), where the outlier columns take their weights from; None to take them from the codes.
        bias: (N,) of a floating dtype, or None.
        threshold: as in `outlier_columns`.
        granularity: "tensor" gives x one scale, "row" and "vector" one a row.

    Raises:
        TypeError, ValueError: an argument is none of these; the message names it.
    """
    x = arguments.floats("x", x)
    arguments.same_k("x", x, "weight", codes)
    y = torch.ops.llm_int8.linear(
        arguments.rows_of(x), codes, absmax, scale, zero_point, float_weight, bias, threshold, granularity != "tensor"
    )
    return y.reshape(*x.shape[:-1], codes.shape[0])
