"""The int8 product on a CPU: three routes to the same integers; what the processor can do decides which is taken.

    "int8"     oneDNN's int8 product by `torch._int_mm`, of the codes as they lie: no copy of the weight.
    "packed"   oneDNN's int8 product with a weight that was reordered for the processor, once: a second copy of its codes.
    "float32"  float32 products over few enough columns that every sum is exact: any processor, any Torch.

Without VNNI instructions oneDNN adds two products in 16 bits, which saturate: twice 127 * 255 does not fit (oneDNN's developer
guide, "Nuances of int8 computations"; pytorch/pytorch#136746). So an int8 route is taken only where the instructions are there and
the largest codes were multiplied correctly. Both checks are needed, because ONEDNN_MAX_CPU_ISA can
make oneDNN ignore instructions the CPU has.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

from .. import arguments
from ..derived import Derived
from ..weights import QuantizedWeight

ROUTES = ("int8", "packed", "float32")
_chosen: ContextVar[str | None] = ContextVar("route", default=None)

#: A sum of this many products of two codes is at most 2**24 in magnitude, up to which float32 holds every whole number.
EXACT_K = 2**24 // 128**2

#: Weight entries per thread in one piece of the product, and the minimum number of rows: oneDNN reorders X for each piece.
PIECE, LEAST_ROWS = 2**22, 512


@contextmanager
def route(name: str) -> Iterator[None]:
    """Within this context products take the route `name`; the results are the same wherever `is_exact(name)`.

    "int8" on a processor that would take "packed" halves the memory of a layer in use.

    Raises:
        ValueError: an unknown route.
    """
    token = _chosen.set(arguments.one_of("route", name, ROUTES))
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_route() -> str:
    """The route that products take here."""
    return _chosen.get() or best_route()


@cache
def best_route() -> str:
    """The fastest exact route of this processor: looked for at the first product, not at import."""
    if not (has_instructions("vnni") and is_exact("int8")):
        return "float32"
    # Without AMX packing loses for one row and gains little for many: not worth a second copy of every weight.
    return "packed" if has_instructions("amx_tile") and is_exact("packed") else "int8"


def has_instructions(instructions: str) -> bool:
    """Whether the processor has these instructions, by Torch's name of them."""
    supported = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return supported is not None and supported()


def is_exact(name: str) -> bool:
    """Whether the route `name` exists in this Torch and multiplies the largest codes right, for one row and for many."""
    largest = torch.full((64, 128), 127, dtype=torch.int8)
    multiply = {"int8": _by_int8, "packed": lambda b, a: _by_packed(a.T, pack(b)), "float32": _by_float32}[name]
    try:
        products = [multiply(sign * largest, rows.T) * sign for rows in (largest[:1], largest) for sign in (1, -1)]
    except (AttributeError, RuntimeError):  # a Torch without oneDNN, or without its quantized operators
        return False
    return all(bool((product == 128 * 127**2).all()) for product in products)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T in int32, contiguous, exact."""
    acc, _ = _product(a, b, torch.int32, None)
    return acc


def layer_product(codes: Tensor, weight: Tensor, dtype: torch.dtype, columns: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The product of codes (M, K) and a layer's codes (N, K), and some columns of the layer's codes.

    Args:
        codes: (M, K) int8.
        weight: (N, K) int8, the same tensor at every call, so that it can be packed.
        dtype: int32, or float32: each sum rounded once.
        columns: int64, which columns of the weight are wanted too; None for none.

    Returns:
        (M, N) of `dtype`, contiguous; weight[:, columns], or None.
    """
    if dtype == torch.float32 and chosen_route() == "packed" and codes.numel() and weight.numel():
        packed = packing_of(weight).of(weight)
        if packed is not None:
            return _by_packed(codes, packed), None if columns is None else weight.index_select(1, columns)
    return _product(codes, weight, dtype, columns)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype, columns: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """a @ b.T in `dtype`, and b[:, columns], by one walk over b.

    Columns lie K bytes apart, one entry a cache line, so gathering a few of them reads much of the weight. It is done piece by
    piece, of what the product has just brought into the cache.
    """
    (m, k), n = a.shape, b.shape[0]
    if 0 in (m, n, k):
        return a.new_zeros(m, n, dtype=dtype), None if columns is None else b.index_select(1, columns)
    multiply = _by_float32 if chosen_route() == "float32" else _by_int8
    rows = max(LEAST_ROWS, PIECE // k) * torch.get_num_threads()
    right, b = _standard(a).T, _standard(b)
    product = a.new_empty(m, n, dtype=dtype)
    gathered = []
    for piece, result in zip(b.split(rows), product.split(rows, 1), strict=True):
        # b is the left factor since oneDNN reorders the right one at every call, which had better be X; transposing the
        # result costs less.
        result.copy_(multiply(piece, right).T)
        if columns is not None:
            gathered.append(piece.index_select(1, columns))
    return product, torch.cat(gathered) if gathered else None


def _by_int8(b: Tensor, a: Tensor) -> Tensor:
    """b (N, K) @ a (K, M), by oneDNN."""
    if b.shape[1] == 1:
        # Torch 2.13 then passes oneDNN 1 as the length of a row of M entries; oneDNN refuses, Torch does not look, and the result is
        # what the memory held before.
        return b.int() * a.int()
    return torch._int_mm(b, a)


def _by_float32(b: Tensor, a: Tensor) -> Tensor:
    """b (N, K) @ a (K, M), by float32 products that are exact."""
    acc = b.new_zeros(b.shape[0], a.shape[1], dtype=torch.int32)
    for left, right in zip(b.split(EXACT_K, 1), a.split(EXACT_K), strict=True):
        acc += (left.float() @ right.float()).int()
    return acc


def _standard(codes: Tensor) -> Tensor:
    """Contiguous, with row stride K even for a single row: Torch leaves that stride open, and oneDNN reads it
    (pytorch/pytorch#195066)."""
    codes = codes.contiguous()
    return codes if codes.stride(0) == codes.shape[1] else codes.view(-1).view(codes.shape)


def pack(codes: Tensor) -> Tensor:
    """The codes (N, K) of a weight, in the order in which this processor's int8 instructions take them; opaque to Torch."""
    return torch.ops.onednn.qlinear_prepack(_standard(codes), None)


def _by_packed(codes: Tensor, packed: Tensor) -> Tensor:
    """float32(acc): exact sums, in int32 and modulo 2**32, rounded once.

    Packed weights take unsigned codes only (signed ones end in a reference loop, some thousand times slower): so code + 128 with the
    zero point 128, which oneDNN takes off the int32 sum.
    """
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    unsigned = (_standard(codes) ^ -128).view(torch.uint8)
    return torch.ops.onednn.qlinear_pointwise(unsigned, 1.0, 128, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], "")


class _Packing:
    """The packed copy of a weight, from the second time on that it is asked for.

    Packing takes as long as some tens of products with few rows (150 ms at K = N = 4096), so a weight that is quantized for one
    product is not packed. Neither is an inference tensor, whose writes cannot be seen (`Derived`).
    """

    def __init__(self, _: Tensor) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self.packed: Tensor | None = None

    def of(self, codes: Tensor) -> Tensor | None:
        """The packed copy of `codes`, the tensor that this was derived from; None at the first call."""
        with self._lock:
            if self.packed is None and self._asked:
                self.packed = pack(codes)
            self._asked = True
            return self.packed


packing_of = Derived(_Packing)


def corrected(acc: Tensor, codes: Tensor, zero_point: Tensor, weight: QuantizedWeight) -> Tensor:
    """The sum of (Xq - zx) (Wq - zw), (M, N), in integers, from the sum of Xq Wq."""
    k = codes.shape[1]
    # Each of the four terms is at most K * 2**14, so int32 holds every partial sum up to here.
    dtype = torch.int32 if k < 2**15 else torch.int64
    zx, zw = zero_point.to(dtype), weight.zero_point.to(dtype).T  # type: ignore[union-attr]
    code_sum = codes.sum(-1, keepdim=True, dtype=dtype)
    acc = acc.to(dtype).addcmul_(zx, k * zw - weight.code_sum.to(dtype))  # type: ignore[union-attr]
    return acc.addcmul_(zw, code_sum, value=-1)
