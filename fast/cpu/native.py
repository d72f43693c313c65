"""native.c as an engine: the functions of `fast.cpu`, each one call of the compiled library.

A call is a structure of addresses, sizes and flags (`Call` in native.c), packed into bytes here. The interpreter's lock is released
while it runs, and nothing outlives it: two threads may use one layer at once, and whatever is written to a weight holds from the next
call on.
"""

import ctypes
import functools
import math
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from ..weights import QuantizedWeight

#: The fields of `Call`: 13 addresses, 6 sizes, the limit, 7 flags.
CALL = struct.Struct("@13P6qf7i")
#: `Experts` in native_experts.h: a call, where the rows of each expert end, and how many experts there are.
EXPERTS = struct.Struct(f"{CALL.format}Pq")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INT8 = 4


class Native:
    """The engine that one compiled library makes.

    Attributes:
        name: of its set of instructions.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        library.llm_int8_instructions.restype = ctypes.c_char_p
        self.name: str = library.llm_int8_instructions().decode()
        if library.llm_int8_call_size() != CALL.size:
            raise ValueError(f"native.c's Call has {library.llm_int8_call_size()} bytes, native.py packs {CALL.size}")
        if library.llm_int8_experts_size() != EXPERTS.size:
            raise ValueError(f"native.c's Experts has {library.llm_int8_experts_size()} bytes, native.py packs {EXPERTS.size}")
        if library.llm_int8_prepare():
            raise ValueError(f"the system does not let this process use the instructions {self.name}")
        names = ("linear", "quantize", "outlier_columns", "matmul", "experts")
        functions = [getattr(library, f"llm_int8_{name}") for name in names]
        for function in functions:
            function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int
        self._linear, self._quantize, self._outlier_columns, self._matmul, self._experts = functions

    def linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None, limit: float | None, per_row: bool) -> Tensor:
        """As `fast.cpu.layer.linear`; `x` may have any leading dimensions.

        Raises:
            ValueError: shapes that do not belong together.
        """
        codes, absmax, _, zero_point, floats = weight
        n, k = codes.shape
        *leading, last = x.shape
        x, x_stride = rows_of(x, k)
        codes, codes_stride = rows_of(codes, k)
        factors = _ready(weight.stored_scale, torch.float32)
        slices = factors.numel()
        wrong = last != k or slices not in (1, n)
        zeros_at = floats_at = bias_at = float_stride = float_dtype = bias_dtype = 0
        if zero_point is not None:
            zeros = _ready(zero_point, torch.int32)
            wrong |= zeros.numel() != slices
            zeros_at = zeros.data_ptr()
        if floats is not None:
            wrong |= floats.shape != codes.shape
            floats, float_stride = rows_of(floats if floats.dtype in DTYPES else floats.float(), k)
            floats_at, float_dtype = floats.data_ptr(), DTYPES[floats.dtype]
        if bias is not None:
            bias = _ready(bias, bias.dtype if bias.dtype in DTYPES else torch.float32)
            wrong |= bias.numel() != n
            bias_at, bias_dtype = bias.data_ptr(), DTYPES[bias.dtype]
        if wrong:
            shapes = [None if t is None else tuple(t.shape) for t in (*weight, bias)]
            raise ValueError(f"x {(*leading, last)} and codes, absmax, scale, zero_point, float_weight, bias of shapes {shapes} do not fit")
        y = x.new_empty(*leading, n)  # sizes one by one, and after x: half the time of torch.empty
        factors_at = factors.data_ptr()
        packed = CALL.pack(
            x.data_ptr(),
            codes.data_ptr(),
            0 if absmax is None else factors_at,
            factors_at if absmax is None else 0,
            zeros_at,
            floats_at,
            bias_at,
            y.data_ptr(),
            *(0, 0, 0, 0, pool),
            math.prod(leading),
            k,
            n,
            x_stride,
            codes_stride,
            float_stride,
            math.inf if limit is None else limit,
            DTYPES[x.dtype],
            float_dtype,
            bias_dtype,
            per_row,
            slices != 1,
            zero_point is not None,
            torch.get_num_threads(),
        )
        if self._linear(packed):
            raise MemoryError(f"no memory for a layer of {(*leading, last)} x ({n}, {k})")
        return y

    def experts_linear(self, x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, ends: Tensor, limit: float | None) -> Tensor:
        """(S, N) of x's dtype: `linear` of each expert's rows with its weight, by absmax, all in one call.

        Args:
            x: (S, K), sorted by expert.
            codes: (E, N, K) int8.
            absmax: (E, N, 1) float32.
            bias: (E, N) of a floating dtype, or None.
            ends: (E,) integers, ascending: where the rows of each expert end; rows from the last one on give zeros.
            limit: as in `linear`.

        Raises:
            ValueError: shapes that do not belong together, or ends that do not ascend from 0 to at most S.
        """
        experts, n, k = codes.shape
        x, x_stride = rows_of(x, k)
        codes, absmax, ends = _ready(codes, torch.int8), _ready(absmax, torch.float32), _ready(ends, torch.int64)
        bias_at = bias_dtype = 0
        wrong = x.shape[1] != k or absmax.shape != (experts, n, 1) or ends.shape != (experts,)
        if bias is not None:
            bias = _ready(bias, bias.dtype if bias.dtype in DTYPES else torch.float32)
            wrong |= bias.shape != (experts, n)
            bias_at, bias_dtype = bias.data_ptr(), DTYPES[bias.dtype]
        if wrong:
            shapes = [None if t is None else tuple(t.shape) for t in (x, codes, absmax, bias, ends)]
            raise ValueError(f"x, codes, absmax, bias, ends of shapes {shapes} do not fit")
        stops = [0, *ends.tolist(), len(x)]  # they become addresses
        if stops != sorted(stops):
            raise ValueError(f"ends must ascend from 0 to at most {len(x)} rows, got {stops[1:-1]}")
        y = x.new_empty(len(x), n)
        addresses = (x.data_ptr(), codes.data_ptr(), absmax.data_ptr(), 0, 0, 0, bias_at, y.data_ptr(), 0, 0, 0, 0, pool)
        flags = (DTYPES[x.dtype], 0, bias_dtype, True, True, False, torch.get_num_threads())
        limit = math.inf if limit is None else limit
        if self._experts(EXPERTS.pack(*addresses, len(x), k, n, x_stride, k, 0, limit, *flags, ends.data_ptr(), experts)):
            raise MemoryError(f"no memory for {len(x)} rows x {experts} experts of ({n}, {k})")
        return y

    def quantize(self, x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `fast.cpu.quantization.quantize`."""
        m, k = x.shape
        x, stride = rows_of(x, k)
        codes = torch.empty((m, k), dtype=torch.int8)
        scale = torch.empty((m if per_row else 1, 1))
        zero_point = torch.empty(scale.shape, dtype=torch.int32) if quantizer == "zeropoint" else None
        addresses = (codes.data_ptr(), scale.data_ptr(), 0 if zero_point is None else zero_point.data_ptr(), 0, pool)
        flags = (DTYPES[x.dtype], 0, 0, per_row, False, zero_point is not None, torch.get_num_threads())
        packed = CALL.pack(x.data_ptr(), *[0] * 7, *addresses, m, k, 0, stride, 0, 0, math.inf, *flags)
        if self._quantize(packed):
            raise MemoryError(f"no memory to quantize {tuple(x.shape)}")
        return codes, scale, zero_point

    def outlier_columns(self, x: Tensor, limit: float) -> Tensor:
        """As `fast.cpu.outliers.outlier_columns`."""
        m, k = x.shape
        x, stride = rows_of(x, k)
        columns = torch.empty(k, dtype=torch.bool)
        flags = (DTYPES[x.dtype], 0, 0, True, False, False, torch.get_num_threads())
        packed = CALL.pack(x.data_ptr(), *[0] * 10, columns.data_ptr(), pool, m, k, 0, stride, 0, 0, limit, *flags)
        if self._outlier_columns(packed):
            raise MemoryError(f"no memory to look for outliers in {tuple(x.shape)}")
        return columns

    def int8_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """As `fast.cpu.product.int8_matmul`."""
        (m, k), n = a.shape, b.shape[0]
        (a, a_stride), (b, b_stride) = rows_of(a, k), rows_of(b, k)
        acc = torch.empty((m, n), dtype=torch.int32)
        flags = (INT8, 0, 0, True, False, False, torch.get_num_threads())
        packed = CALL.pack(
            a.data_ptr(), b.data_ptr(), *[0] * 5, acc.data_ptr(), *[0] * 4, pool, m, k, n, a_stride, b_stride, 0, math.inf, *flags
        )
        if self._matmul(packed):
            raise MemoryError(f"no memory for a product of {tuple(a.shape)} and {tuple(b.shape)}")
        return acc


def rows_of(x: Tensor, k: int) -> tuple[Tensor, int]:
    """A tensor whose rows, slices along the last axis, lie one stride apart, each without gaps; and that stride, in entries.

    It is `x` itself where it can be: where its leading dimensions, taken together, have one stride.
    """
    if x.is_contiguous():
        return x, k
    if x.ndim == 2 and (x.stride(1) == 1 or k == 1):
        return x, x.stride(0)
    return x.contiguous(), k


def _ready(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype == dtype and t.is_contiguous() else t.to(dtype).contiguous()


@functools.cache
def find_pool() -> int:
    """Address of the function that runs a region on Torch's own pool of threads; 0 where Torch has none.

    Every OpenMP library has it under this name. Asked of libtorch, so that it is the one that Torch itself uses.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


pool = find_pool()


def _without_a_pool() -> None:
    """After fork the pool's threads are not there, but its library believes so and would wait for them."""
    global pool
    pool = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_without_a_pool)
