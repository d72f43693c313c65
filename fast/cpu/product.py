"""The int8 product on a CPU: two routes to the same integers; what the processor can do decides which is taken.

    "int8"     oneDNN's int8 product by `torch._int_mm`, of the codes as they lie: no copy of the weight.
    "float32"  float32 products over few enough columns that every sum is exact: any processor, any Torch.

Without VNNI instructions oneDNN adds two products in 16 bits, which saturate: twice 127 * 255 does not fit (oneDNN's developer
guide, "Nuances of int8 computations"; pytorch/pytorch#136746). So an int8 route is taken only where the instructions are there and
the largest codes were multiplied correctly. Both checks are needed, because ONEDNN_MAX_CPU_ISA can
make oneDNN ignore instructions the CPU has.
"""

from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor

from ..choice import Choice

ROUTES = ("int8", "float32")
_chosen = Choice("route", ROUTES)

#: A sum of this many products of two codes is at most 2**24 in magnitude, up to which float32 holds every whole number.
EXACT_K = 2**24 // 128**2

#: Weight entries per thread in one piece of the product, and the minimum number of rows: oneDNN reorders X for each piece.
PIECE, LEAST_ROWS = 2**22, 512


def route(name: str) -> AbstractContextManager[None]:
    """Within this context products take the route `name`; the results are the same wherever `is_exact(name)`.

    Raises:
        ValueError: an unknown route.
    """
    return _chosen.within(name)


def chosen_route() -> str:
    """The route that products take here."""
    return _chosen.get() or best_route()


@cache
def best_route() -> str:
    """The fastest exact route of this processor: looked for at the first product, not at import."""
    return "int8" if has_instructions("vnni") and is_exact("int8") else "float32"


def has_instructions(instructions: str) -> bool:
    """Whether the processor has these instructions, by Torch's name of them."""
    supported = getattr(torch.cpu, f"_is_{instructions}_supported", None)
    return supported is not None and supported()


def is_exact(name: str) -> bool:
    """Whether the route `name` exists in this Torch and multiplies the largest codes right, for one row and for many."""
    largest = torch.full((64, 128), 127, dtype=torch.int8)
    multiply = {"int8": _by_int8, "float32": _by_float32}[name]
    try:
        products = [multiply(sign * largest, rows.T) * sign for rows in (largest[:1], largest) for sign in (1, -1)]
    except (AttributeError, RuntimeError):  # a Torch without oneDNN
        return False
    return all(bool((product == 128 * 127**2).all()) for product in products)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T in int32, contiguous, exact."""
    acc, _ = layer_product(a, b, torch.int32, None)
    return acc


def layer_product(a: Tensor, b: Tensor, dtype: torch.dtype, columns: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The product of codes a (M, K) and b (N, K), and some columns of b, by one walk over b.

    Columns lie K bytes apart, one entry per cache line, so gathering a few of them reads much of the weight. It is done piece by
    piece, of what the product has just brought into the cache.

    Args:
        a, b: int8.
        dtype: int32, or float32: each sum rounded once.
        columns: int64, which columns of b are wanted, too; None for none.

    Returns:
        (M, N) of `dtype`, contiguous; b[:, columns], or None.
    """
    (m, k), n = a.shape, b.shape[0]
    if 0 in (m, n, k):
        return a.new_zeros(m, n, dtype=dtype), None if columns is None else b.index_select(1, columns)
    multiply = _by_float32 if chosen_route() == "float32" else _by_int8
    rows = max(LEAST_ROWS, PIECE // k) * torch.get_num_threads()
    right, b = _standard(a).T, _standard(b)
    # b is the left factor since oneDNN reorders its right operand at every call, so the smaller one, X, goes there; transposing
    # the result costs less.
    if n <= rows:
        sums = multiply(b, right).T
        sums = sums.contiguous() if dtype == torch.int32 else sums.to(dtype, memory_format=torch.contiguous_format)
        return sums, None if columns is None else b.index_select(1, columns)
    sums = a.new_empty(m, n, dtype=dtype)
    gathered = []
    for piece, result in zip(b.split(rows), sums.split(rows, 1), strict=True):
        result.copy_(multiply(piece, right).T)
        if columns is not None:
            gathered.append(piece.index_select(1, columns))
    return sums, torch.cat(gathered) if gathered else None


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


def corrected(acc: Tensor, codes: Tensor, zero_point: Tensor, w_zero_point: Tensor, w_sum: Tensor) -> Tensor:
    """The sum of (Xq - zx) (Wq - zw), (M, N), in integers, from the sum of Xq Wq.

    Args:
        acc: (M, N) int32.
        codes, zero_point: of X, (M, K) int8 and (M, 1) or (1, 1) int32.
        w_zero_point: of W, (N, 1) or (1, 1) int32.
        w_sum: (N,) int32, the sums of the rows of W's codes.
    """
    k = codes.shape[1]
    # Each of the four terms is at most K * 2**14, so int32 holds every partial sum up to here.
    dtype = torch.int32 if k < 2**15 else torch.int64
    zx, zw = zero_point.to(dtype), w_zero_point.to(dtype).T
    code_sum = codes.sum(-1, keepdim=True, dtype=dtype)
    acc = acc.to(dtype).addcmul_(zx, k * zw - w_sum.to(dtype))
    return acc.addcmul_(zw, code_sum, value=-1)
