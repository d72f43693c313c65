"""One projection of all experts as PyTorch operators: torch.compile and torch.export see one opaque node each, as for a layer.

The rows come sorted by expert; `ends` says where the rows of each expert end. How many rows an expert has depends on the data, and is read
only inside: on a GPU by the kernels, so that the host never waits. On a CPU each expert computes as an `Int8Linear` with its weight does,
with the engine that this number of rows has. Few tokens (`experts_decode`) are not sorted where one launch does it all.
"""

from typing import Any

import torch
from torch import Tensor

from . import arguments
from .dispatch import implementation, native_engine
from .operators import without_autocast
from .transforms import in_transform, is_transformed
from .weights import QuantizedWeight

torch.library.define(
    "llm_int8::experts_linear",
    "(Tensor x, Tensor codes, Tensor absmax, Tensor? bias, Tensor ends, float? threshold) -> Tensor",
)
torch.library.define(
    "llm_int8::experts_decode",
    "(Tensor x, Tensor codes, Tensor absmax, Tensor? bias, Tensor chosen, bool by_pair, float? threshold) -> Tensor",
)
torch.library.define("llm_int8::experts_product", "(Tensor x, Tensor codes, Tensor absmax, Tensor ends, bool transposed) -> Tensor")

BIAS = 3

#: So many tokens fit in one tile of a matrix instruction: DECODE_ROWS of the kernels.
DECODE_TOKENS = 16


def _kernels(x: Tensor) -> Any:
    """`fast.kernels` if they compute for `x`, else None."""
    engine: Any = implementation(x)
    return engine if hasattr(engine, "experts_decode") else None


def _groups(ends: Tensor) -> list[tuple[int, int, int]]:
    """Each expert that has rows: its number, and where its rows start and end. Of tensors on a GPU the host would wait here."""
    stops = ends.tolist()
    return [(e, start, end) for e, (start, end) in enumerate(zip([0, *stops[:-1]], stops, strict=True)) if end > start]


@torch.library.impl("llm_int8::experts_linear", "default")
def _experts_linear(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, ends: Tensor, threshold: float | None) -> Tensor:
    limit = arguments.threshold(threshold)
    with without_autocast(x):
        kernels = _kernels(x)
        if kernels is not None:
            return kernels.experts_linear(x, codes, absmax, bias, ends, limit)
        native = native_engine()
        if native is not None:
            return native.experts_linear(x, codes, absmax, bias, ends, limit)
        y = x.new_zeros(len(x), codes.shape[1])  # rows of no expert are zero
        for e, start, end in _groups(ends):
            rows = x[start:end]
            weight = QuantizedWeight(codes[e], absmax[e])
            y[start:end] = implementation(rows).linear(rows, weight, None if bias is None else bias[e], limit, True)
    return y


@torch.library.register_fake("llm_int8::experts_linear")
def _experts_linear_fake(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, ends: Tensor, threshold: float | None) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[1])


@torch.library.impl("llm_int8::experts_decode", "default")
def _experts_decode(
    x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, chosen: Tensor, by_pair: bool, threshold: float | None
) -> Tensor:
    with without_autocast(x):
        kernels = _kernels(x)
        if kernels is not None:
            return kernels.experts_decode(x, codes, absmax, bias, chosen, by_pair, arguments.threshold(threshold))
    order, ends = sorted_by_expert(chosen, len(codes))
    y = torch.ops.llm_int8.experts_linear(x[order if by_pair else order // chosen.shape[1]], codes, absmax, bias, ends, threshold)
    return torch.empty_like(y).index_copy_(0, order, y)


@torch.library.register_fake("llm_int8::experts_decode")
def _experts_decode_fake(
    x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, chosen: Tensor, by_pair: bool, threshold: float | None
) -> Tensor:
    return x.new_empty(chosen.shape[0] * chosen.shape[1], codes.shape[1])


@torch.library.impl("llm_int8::experts_product", "default")
def _experts_product(x: Tensor, codes: Tensor, absmax: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    """x @ W_e for the rows of each expert e, or x @ W_e.T if `transposed`; W_e is what the codes stand for. Gradients are made of it."""
    y = x.new_zeros(len(x), codes.shape[1 if transposed else 2])
    with without_autocast(x):
        for e, start, end in _groups(ends):
            w = QuantizedWeight(codes[e], absmax[e]).dequantized().to(x.dtype)
            y[start:end] = x[start:end] @ (w.T if transposed else w)
    return y


@torch.library.register_fake("llm_int8::experts_product")
def _experts_product_fake(x: Tensor, codes: Tensor, absmax: Tensor, ends: Tensor, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[1 if transposed else 2])


def _save_product(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, codes, absmax, ends, ctx.transposed = inputs
    ctx.save_for_backward(codes, absmax, ends)


def _product_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.llm_int8.experts_product(gradient, *ctx.saved_tensors, not ctx.transposed), None, None, None, None


def _save_linear(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, codes, absmax, bias, ends, _ = inputs
    ctx.save_for_backward(codes, absmax, ends)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients to x and bias; quantizing x counts as the identity, and the weights are frozen."""
    codes, _, ends = ctx.saved_tensors
    gradients: list[Tensor | None] = [None] * 6
    if ctx.needs_input_grad[0]:
        gradients[0] = torch.ops.llm_int8.experts_product(gradient, *ctx.saved_tensors, False)
    if ctx.needs_input_grad[BIAS]:
        experts = expert_of_row(ends, gradient.shape[0])
        sums = gradient.new_zeros(len(codes) + 1, gradient.shape[1], dtype=torch.float32).index_add(0, experts, gradient.float())
        gradients[BIAS] = sums[:-1].to(ctx.bias_dtype)
    return tuple(gradients)


torch.library.register_autograd("llm_int8::experts_product", _product_backward, setup_context=_save_product)
torch.library.register_autograd("llm_int8::experts_linear", _linear_backward, setup_context=_save_linear)


def expert_of_row(ends: Tensor, rows: int) -> Tensor:
    """(rows,) int64: which expert each row belongs to, E for those behind the last one's."""
    return torch.searchsorted(ends, torch.arange(rows, device=ends.device), right=True)


def sorted_by_expert(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """The order (T * k,) int64 that sorts the pairs of `chosen` (T, k) by expert, and where the pairs of each end, (E,) int64."""
    numbers, order = torch.sort(chosen.reshape(-1), stable=True)
    return order, torch.searchsorted(numbers, torch.arange(experts, device=order.device, dtype=numbers.dtype), right=True)


def decodes(x: Tensor, chosen: Tensor, trained: bool) -> bool:
    """Whether `experts_decode` is for these tokens: few, in 16 bits, computed by the kernels, and nothing is to be differentiated.

    Args:
        x: (T, H), one row per token.
        chosen: (T, k), the experts of each.
        trained: whether a bias requires a gradient.
    """
    if x.element_size() != 2 or chosen.numel() == 0 or x.shape[1] == 0 or chosen.shape[0] > DECODE_TOKENS:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or trained):
        return False
    if torch.compiler.is_compiling():
        return x.is_cuda
    return not is_transformed() and not x.is_meta and _kernels(x) is not None


def experts_decode(
    x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, chosen: Tensor, by_pair: bool, threshold: float | None
) -> Tensor:
    """As `experts_linear`, of few tokens that are not sorted: (T * k, N), a row per pair of token and choice.

    Args:
        x: (T, K), one row per token, or (T * k, K), one per pair, if `by_pair`; float16 or bfloat16.
        codes, absmax, bias, threshold: as in `experts_linear`.
        chosen: (T, k) int64, contiguous, T at most 16: the experts of each token. E and more stand for no expert, and give zeros.
        by_pair: which of the two x has.
    """
    return torch.ops.llm_int8.experts_decode(x, codes, absmax, bias, chosen, by_pair, threshold)


def _one_after_the_other(operator: Any) -> Any:
    """A vmap rule: the experts of one input do not see the rows of another."""

    def rule(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        def at(index: int) -> list[Any]:
            return [value if dim is None else value.select(dim, index) for value, dim in zip(inputs, in_dims, strict=True)]

        return torch.stack([operator(*at(index)) for index in range(info.batch_size)]), 0

    return rule


for _name in ("experts_linear", "experts_product"):
    torch.library.register_vmap(f"llm_int8::{_name}", _one_after_the_other(getattr(torch.ops.llm_int8, _name)))


class _Transformed(torch.autograd.Function):
    """The operator under torch.func's transforms and in forward mode, as for a layer (operators.py)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return torch.ops.llm_int8.experts_linear(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _save_linear(ctx, inputs, output)
        ctx.save_for_forward(inputs[1], inputs[2], inputs[4])
        ctx.rows, ctx.dtype = output.shape[0], output.dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None,) * 6 if gradient is None else _linear_backward(ctx, gradient)

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, codes: Tensor | None, absmax: Tensor | None, bias: Tensor | None, *_: Any) -> Tensor | None:
        if codes is not None or absmax is not None:
            raise NotImplementedError("the weights of Int8Experts are frozen: they have no tangent; give one to the input or a bias")
        _, _, ends = ctx.saved_tensors
        y = None if x is None else torch.ops.llm_int8.experts_product(x, *ctx.saved_tensors, True)
        if bias is None:
            return y
        of_rows = torch.nn.functional.pad(bias, (0, 0, 0, 1))[expert_of_row(ends, ctx.rows)].to(ctx.dtype)
        return of_rows if y is None else y + of_rows


def experts_linear(x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, ends: Tensor, threshold: float | None) -> Tensor:
    """Returns x @ W_e.T + bias_e for the rows of each expert e, by the inference phase of LLM.int8(), (S, N) in x's dtype.

    Outlier columns are those of an expert's own rows. Gradients, of any order and in either mode, reach x and the biases.

    Args:
        x: (S, K) float16, bfloat16 or float32, the rows of expert 0 first, then those of expert 1, and so on.
        codes: (E, N, K) int8, by absmax.
        absmax: (E, N, 1) float32, the largest magnitude of each row of the float weights.
        bias: (E, N) of a floating dtype, or None.
        ends: (E,) int64, ascending: where the rows of each expert end. Rows from the last one on belong to no expert and give zeros.
        threshold: as in `outlier_columns`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or device; the message names it.
    """
    x = arguments.floats("x", x, ndim=2)
    arguments.same_k("x", x, "codes", codes)
    inputs = (x, codes, absmax, bias, ends, threshold)
    return in_transform(_Transformed, *inputs) if is_transformed() else torch.ops.llm_int8.experts_linear(*inputs)
