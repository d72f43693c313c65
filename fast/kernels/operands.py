"""What the kernels take: matrices and what belongs to them, as records, and how they lie in memory.

Triton takes a NamedTuple apart: its fields reach the compiled kernel one by one, as separate arguments would. A field that is None, like
an argument that is None, is compiled out. Tensor descriptors stay arguments of their own: Triton's launcher, which makes them what the copy
engine reads, finds none in a record (3.6 and 3.7).
"""

from typing import Any, NamedTuple

from torch import Tensor

from ..weights import QuantizedWeight


class Matrix(NamedTuple):
    """A matrix in memory: its first entry, and the distances, in entries, from one row and from one column to the next."""

    pointer: Any
    stride_row: Any
    stride_column: Any

    @classmethod
    def of(cls, matrix: Tensor) -> "Matrix":
        """The record of a tensor (rows, columns)."""
        return cls(matrix, *matrix.stride())


class Outliers(NamedTuple):
    """The outlier columns of X, kept on the device; the host never reads them.

    columns: (K + 1,) int32: their numbers, ascending; the last entry is their count.
    x: (M, capacity), the first of them, side by side, filled up with zeros to a whole block of the gathering; None if not gathered.
    w: (N, capacity), the same columns of the outlier weight.
    capacity: how many columns x and w hold at most.
    """

    columns: Any
    x: Any = None
    w: Any = None
    capacity: Any = 0


class Quantized(NamedTuple):
    """X without its outlier columns, in int8, and what else the product needs of it.

    codes: (M, K) int8, contiguous.
    scale: (M, 1) or (1, 1) float32; None for bare codes.
    zero_point: int32, as scale; None for absmax.
    code_sum: (M,) int32, the sums of the rows of codes; None if not asked for.
    outliers: None if they were not looked for.
    """

    codes: Any
    scale: Any = None
    zero_point: Any = None
    code_sum: Any = None
    outliers: Any = None


class Side(NamedTuple):
    """One operand of the int8 product, X or W: (rows, K).

    codes: Matrix of int8.
    scale: float32; None where `absmax` is given, and for the bare accumulators.
    absmax: float32, the largest magnitudes, from which the kernel derives the scale; None where `scale` is given.
    zero_point: int32, as scale; None for absmax.
    code_sum: (rows,) int32, the sums of the rows of codes; None for absmax, and where the kernel takes them itself.
    per_row: 1 where scale or absmax and zero_point have one entry per row, 0 where they have one in all.
    """

    codes: Any
    scale: Any = None
    absmax: Any = None
    zero_point: Any = None
    code_sum: Any = None
    per_row: Any = 0

    @classmethod
    def of(cls, x: Quantized) -> "Side":
        """The record of a quantized X, or of codes alone."""
        per_row = 0 if x.scale is None else int(x.scale.numel() > 1)
        return cls(Matrix.of(x.codes), x.scale, None, x.zero_point, x.code_sum, per_row)

    @classmethod
    def of_weight(cls, w: QuantizedWeight, code_sum: Tensor | None = None) -> "Side":
        """The record of a weight, as its layer keeps it."""
        per_row = int(w.stored_scale.numel() > 1)
        return cls(Matrix.of(w.codes), None if w.absmax is not None else w.kept_scale, w.absmax, w.zero_point, code_sum, per_row)


def aligned(codes: Tensor) -> bool:
    """Whether the rows of `codes` can be read 16 bytes at a time, and by the copy engine."""
    return codes.stride(1) == 1 and codes.stride(0) % 16 == 0 and codes.data_ptr() % 16 == 0


def sixteen_bits(x: Tensor, float_weight: Tensor | None) -> bool:
    """Whether the outlier product has 16-bit matrix instructions: `has_matrix_product`, on the host."""
    return x.element_size() == 2 and (float_weight is None or float_weight.dtype == x.dtype)
