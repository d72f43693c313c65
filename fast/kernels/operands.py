"""How operands lie in memory, and what the kernels can make of it."""

from torch import Tensor


def aligned(codes: Tensor) -> bool:
    """Whether the rows of `codes` can be read 16 bytes at a time, and by the copy engine."""
    return codes.stride(1) == 1 and codes.stride(0) % 16 == 0 and codes.data_ptr() % 16 == 0


def sixteen_bits(x: Tensor, float_weight: Tensor | None) -> bool:
    """Whether the outlier product has 16-bit matrix instructions: `has_matrix_product`, on the host."""
    return x.element_size() == 2 and (float_weight is None or float_weight.dtype == x.dtype)
