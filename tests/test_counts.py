"""What a profiler's counters say of the kernels, held against the bound that each is to have: no hardware is needed to see waste.

A kernel that streams is to be bound by device memory: the multiprocessor issues its instructions, passes its shared memory and multiplies
in less time than its share of the bytes takes, and enough of them are on their way. The product is to be bound by the matrix unit.
Counts are of one program, by `experiments.profile`, at 0.1 % of outlier columns.
"""

from functools import cache

import pytest

import emulator
from experiments import profile
from tests import compiled, strangers_checks

STREAMS = (
    "scan, large", "scan, medium", "quantize, large", "quantize, medium", "decode, 16 rows", "decode, 8 rows", "decode, 4 rows",
    "decode, one row", "experts, one token",
)  # fmt: skip
PRODUCTS = ("product, large", "product, medium")
#: On sm_80 those whose rows differ from sm_90's, and one of each kernel.
STREAMING = [
    *(("sm_90", name) for name in STREAMS),
    ("sm_80", "scan, medium"),
    ("sm_80", "quantize, medium"),
    ("sm_80", "decode, 8 rows"),
    ("sm_80", "experts, one token"),
]
MULTIPLYING = [(arch, name) for arch in ("sm_80", "sm_90") for name in PRODUCTS]

#: Cycles that a load takes at worst, on a busy GPU: more than `emulator.profiler.LATENCY`, that of an idle one.
LATENCY = 1000
#: Bytes on their way to a multiprocessor: an H100's share of 14.5 bytes per cycle for 1,000 cycles, and half as much again.
IN_FLIGHT = 20 << 10


@cache
def counted(arch: str, name: str) -> tuple[emulator.Profile, dict[str, float]]:
    """The profile, and the cycles by resource."""
    found, hbm_bytes = compiled.call(arch, strangers_checks.profiled_with_bytes, arch, name)
    return found, found.cycles(emulator.ceiling_of(arch), hbm_bytes)


@pytest.mark.parametrize(("arch", "name"), STREAMING)
def test_a_kernel_that_streams_leaves_every_resource_idle_while_memory_works(arch, name):
    found, cycles = counted(arch, name)
    memory = cycles.pop("HBM")
    assert {resource: need for resource, need in cycles.items() if need >= memory} == {}
    assert found.spilled == 0


@pytest.mark.parametrize(("arch", "name"), STREAMING)
def test_a_kernel_that_streams_has_enough_bytes_on_their_way(arch, name):
    found, _ = counted(arch, name)
    ceiling = emulator.ceiling_of(arch)
    assert found.in_flight(ceiling) >= max(IN_FLIGHT, LATENCY * ceiling.hbm)


@pytest.mark.parametrize(("arch", "name"), MULTIPLYING)
def test_the_matrix_unit_bounds_the_product(arch, name):
    found, cycles = counted(arch, name)
    matrix = cycles.pop("matrix")
    if arch == "sm_90":
        # Blocks arrive and are multiplied by way of shared memory, in just the time of the product: no tile that the registers hold needs
        # less. Whether both ways are one is not known.
        assert cycles.pop("shared memory") <= 1.35 * matrix
    if (arch, name) == ("sm_90", "product, medium"):
        # A tile of 128 x 128 takes what the second-level cache gives in that time, and its result comes on top.
        assert cycles.pop("cache") <= 1.1 * matrix
    assert {resource: need for resource, need in cycles.items() if need >= matrix} == {}
    assert found.spilled == 0


def in_its_loops(name: str, place: str) -> bool:
    """Whether an access belongs to what a kernel does over and over, in the way it is meant to."""
    if name.startswith("scan"):
        return "standard.py" not in place  # the maximum over the rows of the block, once, at the end
    # Below 1024 rows of X, outlier columns are read where they are: a sector for each entry.
    return not (name == "product, medium" and place.endswith(("ld.global, 1 bytes", "ld.global, 2 bytes")))


@pytest.mark.parametrize(("arch", "name"), [*STREAMING, *MULTIPLYING])
def test_no_sector_is_read_in_part_and_no_bank_is_asked_twice(arch, name):
    found, _ = counted(arch, name)
    loops = {place: access for place, access in found.accesses.items() if in_its_loops(name, place)}
    assert len(loops) >= 3
    assert {place: access for place, access in loops.items() if access.sectors > access.fewest_sectors} == {}
    assert {place: access for place, access in loops.items() if access.wavefronts > access.fewest_wavefronts} == {}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_the_chosen_experts_weights_are_read_once_and_nobody_elses(arch):
    found, _ = counted(arch, "experts, one token")
    n, k, choices = profile.CHOSEN
    columns = n * choices // found.grid  # of W, in the one program that was counted
    x_passes = 2  # the first for the scales, the second for the codes
    assert found.path("cp.async") == columns * k + x_passes * 2 * k
    # Against bfloat16, two bytes per weight: half, and a little for maxima, the routing and Y. What a program reads of X is in the caches.
    # The grid has programs for the chosen experts alone.
    of_w = 32 * found.total("sectors") - x_passes * 2 * k
    assert columns * k < of_w < 0.55 * 2 * columns * k


def test_codes_are_made_once_where_nothing_is_an_outlier():
    found = compiled.call("sm_90", strangers_checks.profiled_without_outliers, "sm_90")
    entries = 16 * 8192 / 32  # of X, by 32 lanes
    # A code is a product and a sum; the magnitude and the maximum of the first pass go two at a time. That makes 3 of an entry, and 9 if
    # each of the four warps made the codes for its own operand.
    assert 3 * entries <= found.instructions["float"] < 4 * entries
