"""Solutions of the ladder that no chapter has; the others are kernels of chapters, by another name (`chapter_kernels.solution`)."""

import triton
import triton.language as tl


@triton.jit
def my_copy(x, y, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets))


@triton.jit
def my_dequantize(codes, scale, y, BLOCK_K: tl.constexpr):
    row = tl.program_id(0)
    offsets = row * BLOCK_K + tl.arange(0, BLOCK_K)
    values = tl.load(codes + offsets).to(tl.float32)
    tl.store(y + offsets, values * tl.load(scale + row))


@triton.jit
def my_masked_copy(x, y, K, stride, BLOCK_K: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    inside = columns < K
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    tl.store(y + row * K + columns, values, mask=inside)


@triton.jit
def my_row_absmax(x, absmax, K, stride, BLOCK_K: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    values = tl.load(x + row * stride + columns, mask=columns < K, other=0.0)
    tl.store(absmax + row, tl.max(tl.abs(values), axis=0))


@triton.jit
def my_round(steps, codes, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    values = tl.load(steps + lanes)
    rounded = (values + 12582912.0) - 12582912.0  # 1.5 * 2**23
    tl.store(codes + lanes, rounded.to(tl.int8))


@triton.jit
def my_tile(a, b, y, stride_a, stride_b, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    rows, ks = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    left = tl.load(a + rows[:, None] * stride_a + ks[None, :])
    right = tl.load(b + rows[:, None] * stride_b + ks[None, :])
    acc = tl.dot(left, right.T, out_dtype=tl.int32)
    tl.store(y + rows[:, None] * BLOCK + rows[None, :], acc)
