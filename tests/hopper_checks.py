"""Runs of tests/test_hopper.py, in a process without Triton's interpreter (tests/compiled.py)."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

import emulator
import fast
from fast import kernels
from fast.kernels import configurations, hopper, operands, product

#: By the rows of X and of W: rows of the table of sm_90 that load by the copy engine, and one that does not.
SHAPES = {"few rows": (40, 24, 272), "more": (70, 30, 144), "unaligned": (40, 24, 33)}


@gluon.jit
def outdated(
    x_tiles, w_tiles, x_side, w_side, y, x, float_weight, bias, outliers, M, N, K, DECOMPOSE: gl.constexpr, WIDE: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, BLOCK_O: gl.constexpr, GROUP_M: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Written for a Gluon that has what this one has not."""
    mbarrier.of_another_version(K)


def codes(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (torch.arange(rows * k, dtype=torch.int32).mul(37).remainder(251).sub(125).to(torch.int8).reshape(rows, k) for rows in (m, n))
    return a, b


def launched(m: int, n: int, k: int) -> tuple[bool, list[str]]:
    """Whether `fast.int8_matmul` is right, and what it launches."""
    a, b = codes(m, n, k)
    with emulator.gpu("sm_90") as device:
        right = torch.equal(fast.int8_matmul(a, b), a.int() @ b.int().T)
    return right, [launch.kernel for launch in device.launches]


def chosen(shape: str) -> tuple[tuple[bool, list[str]], tuple[bool, list[str]]]:
    """`launched`, within `kernels.gluon` and after it."""
    with kernels.gluon():
        inside = launched(*SHAPES[shape])
    return inside, launched(*SHAPES[shape])


def layer() -> list[str]:
    """What a layer launches within `kernels.gluon`."""
    made = fast.Int8Linear.from_float(torch.randn(24, 64), None, 6.0)
    with emulator.gpu("sm_90") as device, kernels.gluon():
        made(torch.randn(20, 64).half())
    return [launch.kernel for launch in device.launches]


@contextmanager
def another_version(lacks: str) -> Iterator[None]:
    """Within this context Triton has no Gluon, or one that lacks something."""
    with mock.patch.dict(product.gluon_problems, clear=True):
        if lacks == "Gluon":
            with mock.patch.dict(sys.modules, {"fast.kernels.hopper": None}), mock.patch.object(kernels, "hopper"):
                del kernels.hopper
                yield
        else:
            with mock.patch.object(hopper, "hopper_product_kernel", outdated):
                yield


def without(lacks: str) -> tuple[list[tuple[bool, list[str]]], list[str], str]:
    """Two products within `kernels.gluon`, the warnings of both, and the error where the kernel in Gluon is asked for by name."""
    m, n, k = SHAPES["more"]
    with another_version(lacks), warnings.catch_warnings(record=True) as caught, kernels.gluon():
        warnings.simplefilter("always")
        found = [launched(m, n, k) for _ in range(2)]
        return found, [str(one.message) for one in caught if issubclass(one.category, RuntimeWarning)], by_name(m, n, k)


def by_name(m: int, n: int, k: int, **changes: object) -> str:
    """The error, if any, of a product whose configuration asks for the kernel in Gluon."""
    row = configurations.NARROW_HOPPER
    config = row._replace(gluon=True, **changes)
    a, b = codes(m, n, k)
    with emulator.gpu("sm_90"):
        y = torch.empty(m, n, dtype=torch.int32)
        try:
            product.launch_product(operands.Quantized(a), operands.Quantized(b), y, config=config)
        except RuntimeError as error:
            return str(error)
    return ""
