"""What a device can do at most, measured in the run whose results are held against it."""

import ctypes
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fast import cpu_engine
from fast.cpu import build, engine

from . import contenders, timing

SOURCE = Path(__file__).with_name("ceiling.c")


class Sizes(NamedTuple):
    """What the ceilings are measured on: bytes of a copy; width of square products; rows of the float ones."""

    bytes: int
    side: int
    rows: int


#: Where a CPU has no float16 arithmetic, a product of full size takes a second.
SIZES = {"cpu": Sizes(256 << 20, 2048, 512), "cuda": Sizes(256 << 20, 8192, 8192), "rehearsal": Sizes(1 << 20, 32, 32)}


def ceilings(device: str, clock: timing.Clock, rounds: int = 7, sizes: Sizes | None = None) -> dict[str, Any]:
    """What the device can do, bytes and operations per second.

    Bytes: of a large copy, read plus written, or on a CPU what its cores read, if that is more. Operations, by unit: of large products, and
    in int8 on a CPU what its cores do on registers.
    """
    least, side, rows = sizes or SIZES[device]
    size = max(least, 8 * clock.cache)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = _best(clock, lambda: target.copy_(source), rounds)
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    calls = {"int8": (side, contenders.int_mm(b)(a))}
    for unit in ("bfloat16", "float16", "float32"):
        calls[unit] = rows, contenders.linear(getattr(torch, unit))(b)(a[:rows])
    rates = {unit: 2 * m * side**2 / _best(clock, call, rounds) for unit, (m, call) in calls.items()}
    bandwidth = 2 * size / moved
    if device == "cpu" and cpu_engine().name != "torch":
        read, rates["int8"] = of_cores(clock, source, rounds)
        bandwidth = max(bandwidth, read)
    return {"bandwidth": bandwidth, "rates": rates}


def of_cores(clock: timing.Clock, source: torch.Tensor, rounds: int) -> tuple[float, float]:
    """Of as many cores as Torch uses: bytes per second read from `source`, and int8 operations per second on registers, by ceiling.c."""
    name, threads = cpu_engine().name, torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "ceiling.so"
        build.compile_library([build.find_compiler(), *build.FLAGS, *engine.INSTRUCTIONS[name].flags, str(SOURCE)], made)
        library = ctypes.CDLL(str(made))
    library.ceiling_products.argtypes, library.ceiling_read.argtypes = [ctypes.c_long], [ctypes.c_void_p, ctypes.c_long]
    count, share = 200_000, source.numel() // threads
    with ThreadPoolExecutor(threads) as pool:

        def everywhere(call: Any, *arguments: Any) -> timing.Call:
            return lambda: list(pool.map(lambda i: call(*(a(i) if callable(a) else a for a in arguments)), range(threads)))

        read = _best(clock, everywhere(library.ceiling_read, lambda i: source.data_ptr() + i * share, share), rounds)
        multiplied = _best(clock, everywhere(library.ceiling_products, count), rounds)
    return threads * share / read, threads * count * library.ceiling_operations() / multiplied


def _best(clock: timing.Clock, call: timing.Call, rounds: int) -> float:
    """The shortest of some samples: a ceiling is what the device can do when nothing disturbs it."""
    sampler = clock.sampler([call])
    return min(sampler() for _ in range(rounds))
