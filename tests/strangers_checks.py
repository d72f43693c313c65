"""Runs of tests/strangers.py, in a process without Triton's interpreter (tests/compiled.py)."""

import re

import numpy as np
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

import emulator
from tests import strangers


def softmax(arch: str, rows: int = 5, columns: int = 781, kernel: str = "softmax_rows", warps: int = 4) -> float:
    """The largest difference from NumPy's softmax in float64."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32))
    with emulator.gpu(arch):
        y = torch.empty(rows, columns)
        getattr(strangers, kernel)[(rows,)](x, y, x.stride(0), y.stride(0), columns, BLOCK=1024, num_warps=warps)
    wide = np.exp(x.numpy().astype(np.float64))
    return float(np.abs(y.numpy() - wide / wide.sum(1, keepdims=True)).max())


def product(arch: str, m: int, n: int, k: int, relu: bool = False, change=None, seed: int = 0, stages: int = 3) -> float:
    """The largest difference from NumPy's product in float64."""
    generator = np.random.default_rng(1)
    a, b = (torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).half() for shape in ((m, k), (k, n)))
    blocks = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP": 2}
    with emulator.gpu(arch, seed=seed, change=change) as device:
        c = torch.empty(m, n, dtype=torch.float16)
        strangers.product_tiles[(-(-m // 64) * -(-n // 64),)](
            a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), **blocks, RELU=relu, num_warps=4, num_stages=stages
        )
    assert device.launches
    exact = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64)
    return float(np.abs(c.numpy() - (np.maximum(exact, 0) if relu else exact)).max())


def product_without_its_wait(arch: str) -> None:
    """The compiled product with every wait for its asynchronous copies removed from the PTX."""

    def change(ptx: str) -> str:
        assert "cp.async.wait_group" in ptx
        return re.sub(r"cp\.async\.wait_group\s+\S+;", "", ptx)

    product(arch, 128, 64, 256, change=change)


def total(arch: str, kernel: str, seed: int = 0) -> float:
    """What the programs leave as the sum of 0 to 999."""
    x, y = torch.arange(1000, dtype=torch.float32), torch.zeros(1)
    with emulator.gpu(arch, seed=seed):
        getattr(strangers, kernel)[(8,)](x, y, 1000, BLOCK=128)
    return float(y)


def copied_tile(arch: str, in_a_record: bool) -> bool:
    """Whether the copy of a matrix by a tensor descriptor is the matrix."""
    x, y = torch.arange(1024).half().reshape(16, 64), torch.zeros(16, 64, dtype=torch.float16)
    tiles = TensorDescriptor.from_tensor(x, [16, 64])
    with emulator.gpu(arch):
        strangers.copy_tile[(1,)](*((None, strangers.Held(tiles)) if in_a_record else (tiles, None)), y)
    return torch.equal(x, y)


def unwritten(arch: str) -> None:
    """A softmax of what nothing has written."""
    with emulator.gpu(arch):
        x, y = torch.empty(1, 1000), torch.empty(1, 1000)
        strangers.softmax_rows[(1,)](x, y, 1000, 1000, 1000, BLOCK=1024)


def nested() -> list[str]:
    """Contexts inside each other name the innermost architecture."""
    import os

    found = []
    with emulator.gpu("sm_80"):
        with emulator.gpu("sm_90"):
            found.append(os.environ["EMULATED_GPU"])
        found.append(os.environ["EMULATED_GPU"])
    return [*found, str("EMULATED_GPU" in os.environ)]


def profiled_product(arch: str, m: int, n: int, k: int) -> emulator.Profile:
    a, b, c = torch.ones(m, k).half(), torch.ones(k, n).half(), torch.zeros(m, n).half()
    with emulator.profiling(arch) as profiler:
        strangers.product_tiles[(m // 64 * (n // 64),)](
            a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, GROUP=2, RELU=False
        )
    (found,) = profiler.profiles
    return found


def profiled_column(arch: str) -> emulator.Profile:
    x, y = torch.ones(128, 1024), torch.zeros(128)
    with emulator.profiling(arch) as profiler:
        strangers.copy_column[(1,)](x, y, 1024, BLOCK=128, num_warps=4)
    (found,) = profiler.profiles
    return found


def profiled(arch: str, name: str) -> emulator.Profile:
    """The profile of a kernel of experiments/profile.py."""
    return profiled_with_bytes(arch, name)[0]


def profiled_with_bytes(arch: str, name: str) -> tuple[emulator.Profile, float]:
    """The profile of a kernel of experiments/profile.py, and the bytes that a program moves from and to device memory."""
    from experiments import profile

    return profile.RUNS[name](arch)[:2]


def profiled_without_outliers(arch: str) -> emulator.Profile:
    """The profile of decoding 16 rows of 8192 without a threshold."""
    from experiments import profile
    from fast.kernels import decode

    m, n, k = profile.SHAPES["decode"]
    with emulator.profiling(arch, programs=[0]) as profiler:
        decode.decode_linear(profile.inputs(m, k), profile.weight(n, k), None, None, True)
    (found,) = profiler.profiles
    return found
