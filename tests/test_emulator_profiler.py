"""The profiler's counters on accesses that can be counted by hand, and on whole launches of which the sums are known."""

import numpy as np
import pytest

from emulator.counters import class_of, sectors, wavefronts
from tests import compiled, strangers_checks

LANES = np.arange(32)


@pytest.mark.parametrize(
    ("offsets", "width", "expected"),
    [
        (LANES * 4, 4, (1, 1)),
        (LANES * 8, 4, (2, 1)),  # every other bank
        (LANES * 64, 4, (16, 1)),  # two banks
        (LANES * 128, 4, (32, 1)),  # one bank
        (LANES * 132, 4, (1, 1)),  # a word of padding per row
        (LANES * 0, 4, (1, 1)),  # all the same word
        (LANES, 1, (1, 1)),
        (LANES * 8, 8, (2, 2)),
        (LANES * 16, 16, (4, 4)),
        (LANES * 32, 16, (8, 4)),  # every other 16 bytes
        (LANES // 8 * 1024 + LANES % 8 * 128, 16, (32, 4)),  # 8 rows of a matrix without a swizzle
        (LANES // 8 * 1024 + LANES % 8 * 128 + LANES % 8 * 16, 16, (4, 4)),  # and with it
    ],
)
def test_wavefronts_of_shared_memory(offsets, width, expected):
    assert wavefronts(offsets, width, LANES) == expected


@pytest.mark.parametrize(
    ("addresses", "width", "expected"),
    [
        (LANES * 4, 4, (4, 4)),
        (LANES * 4 + 16, 4, (5, 4)),
        (LANES * 16, 16, (16, 16)),
        (LANES * 32, 16, (32, 16)),  # halves of sectors
        (LANES * 16384, 2, (32, 2)),  # a column of a row-major matrix
        (LANES * 0, 4, (1, 1)),
    ],
)
def test_sectors_of_global_memory(addresses, width, expected):
    assert sectors(addresses, width, LANES // 32) == expected


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        ("ld.global.v4.b32", "memory"), ("cp.async.cg.shared.global", "memory"), ("cp.async.wait_group", "wait"), ("add.rn.f32", "float"),
        ("add.s32", "integer"), ("max.s32", "integer"), ("max.f32", "float"), ("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8", "matrix"),
        ("wgmma.wait_group.sync.aligned", "wait"), ("tcgen05.mma.cta_group::1.kind::f16", "matrix"),
        ("tcgen05.ld.sync.aligned.32x32b.x16.b32", "memory"), ("tcgen05.wait::ld.sync.aligned", "wait"), ("bar.sync", "wait"),
        ("mbarrier.try_wait.parity.shared.b64", "wait"), ("cvt.rn.f32.s32", "conversion"), ("setp.lt.s32", "comparison"), ("bra", "branch"),
    ],
)  # fmt: skip
def test_classes_of_instructions(opcode, expected):
    assert class_of(opcode) == expected


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_a_product_multiplies_each_pair_once_and_reads_each_tile_s_bytes(arch):
    m, n, k = 128, 64, 128
    found = compiled.call(arch, strangers_checks.profiled_product, arch, m, n, k)
    assert sum(entry[1] for entry in found.matrix.values()) == m * n * k
    tiles = (m // 64) * (n // 64)
    read = found.path("ld.global") + found.path("cp.async")
    assert read == tiles * 2 * 64 * k * 2  # both operands' rows, 16-bit numbers
    assert found.path("st.global") == m * n * 2
    assert found.total("sectors") == found.total("fewest_sectors") == (read + m * n * 2) // 32
    assert (found.grid, found.programs, found.spilled) == (2, 2, 0)
    assert found.registers > 0
    assert "product_tiles on" in str(found)


def test_a_column_reads_a_sector_for_each_entry():
    found = compiled.call("sm_90", strangers_checks.profiled_column, "sm_90")
    (access,) = [a for name, a in found.accesses.items() if "ld.global" in name]
    # 128 rows, 4 KB apart: a sector each, where 128 entries would fit into 16.
    assert (access.sectors, access.fewest_sectors, access.data) == (128, 16, 512)
    assert found.instructions["memory"] > 0
    assert "sectors 128 of 16" in str(found)
