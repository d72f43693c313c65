"""The profiler's counters on accesses that can be counted by hand, and on whole launches of which the sums are known."""

import numpy as np
import pytest

import emulator
from emulator import sass
from emulator.counters import class_of, sectors, wavefronts
from emulator.parse import Instruction, Kernel, Place
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


@pytest.mark.parametrize("name", emulator.CEILINGS)
def test_ceilings_give_the_published_rates_of_the_matrix_unit(name):
    c = emulator.CEILINGS[name]
    cycles = 2 * c.multiprocessors * c.clock / 1000  # operations, in 10 ** 12 per second
    assert c.int8 * cycles == pytest.approx(c.int8_tops, rel=0.005)
    assert c.sixteen * cycles == pytest.approx(c.sixteen_tflops, rel=0.005)
    assert c.hbm * c.multiprocessors * c.clock == pytest.approx(c.bandwidth)


def test_each_architecture_of_the_tables_has_a_gpu():
    assert [emulator.ceiling_of(arch).name for arch in ("sm_80", "sm_89", "sm_90", "sm_100")] == ["A100 SXM", "L4", "H100 SXM", "B200"]
    assert emulator.ceiling_of("sm_86") is None


#: Of the machine code these are as many as of PTX; the others may stand under a predicate.
ONE_FOR_ONE = ("IMMA", "IGMMA", "HGMMA", "LDSM", "STSM", "LDGSTS", "BAR")


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("sm_80", "product, medium"), ("sm_90", "product, medium"), ("sm_89", "decode, 4 rows"), ("sm_100", "decode, 4 rows"),
        ("sm_90", "quantize, medium"),
    ],
)  # fmt: skip
def test_machine_code_and_ptx_count_the_same(arch, name):
    found = compiled.call(arch, strangers_checks.profiled, arch, name)
    kinds = set(found.agreement)
    assert {"BAR", "LDG", "LDGSTS" if "UTMALDG" not in kinds else "UTMALDG"} <= kinds
    for kind in kinds & set(ONE_FOR_ONE):
        always, ptx, at_most = found.agreement[kind]
        assert always == ptx == at_most, kind
    # Shared memory also holds what ptxas itself keeps there on sm_100 (the address of tensor memory): a load and a store per warp.
    own = 4 * found.warps if arch == "sm_100" else 0
    for kind in kinds & set(sass.JOINED):
        always, ptx, at_most = found.agreement[kind]
        assert always - own <= ptx <= at_most, kind
    assert found.matrix_instructions == 0 or found.issued["tensor"] > 0


def test_a_load_that_moves_behind_an_exit_is_issued_as_often_as_warps_pass_it():
    # Two of four warps leave before they load their flag, of one byte; PTX loads first.
    found = compiled.call("sm_90", strangers_checks.profiled, "sm_90", "scan, medium")
    always, ptx, at_most = found.agreement["LDS"]
    assert always == at_most == ptx - 2


#: A loop that loads, a use, an exit, and a slow path behind it.
DISASSEMBLY = """
	.section	.text.k,"ax",@progbits
	//## File ".nv_debug_ptx_txt", line 2
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_0:
	//## File ".nv_debug_ptx_txt", line 3
        /*0010*/                   LDG.E.64 R8, desc[UR4][R2.64+0x10] ;
        /*0020*/              @!P1 LDG.E R10, [R2.64+0x20] ;
	//## File ".nv_debug_ptx_txt", line 4
        /*0030*/                   IMAD.WIDE.U32 R2, R20, 0x4, R2 ;
        /*0040*/                   STS.64 [R30], R8 ;
	//## File ".nv_debug_ptx_txt", line 5
        /*0050*/               @P0 BRA `(.L_x_0) ;
        /*0060*/                   FADD R4, R5, R6 ;
        /*0070*/                   EXIT ;
.L_x_1:
        /*0080*/                   BRA `(.L_x_1) ;
"""


def test_disassembly_is_read_with_the_lines_of_ptx_that_it_came_from():
    code = sass.read(DISASSEMBLY, [11, 12, 13, 14, 15])
    assert [line.opcode for line in code.lines[:4]] == ["LDG.E.128", "LDG.E.64", "LDG.E", "IMAD.WIDE.U32"]
    assert [line.ptx for line in code.lines] == [12, 13, 13, 14, 14, 15, 15, 15, 15]
    assert [line.predicate for line in code.lines if line.predicate] == ["@!P1", "@P0"]
    assert (code.targets, code.ends) == ({5: 1, 8: 8}, 8)
    assert sass.blocks(code) == [range(1), range(1, 6), range(6, 8), range(8, 9)]
    assert sass.loops(code) == [range(1, 6)]


def test_executions_and_flights_of_a_loop():
    code = sass.read(DISASSEMBLY, [11, 12, 13, 14, 15])
    opcodes = {12: "ld.global.v4.b32", 13: "ld.global.v2.b32", 14: "st.shared.v2.b32", 15: "bra"}
    instructions = [Instruction(opcode, None, (), number, "", Place("k.py", number)) for number, opcode in opcodes.items()]
    kernel = Kernel("k", {}, {}, instructions, {}, 32)
    issued = sass.executions(code, kernel, [4, 40, 40, 40])
    assert issued == [4, 40, 40, 40, 40, 40, 40, 40, 0]
    # In the loop 8 and 4 bytes are loaded; the store waits for the first, the next round for the second, which it overwrites.
    assert sass.flights(code, kernel, issued) == [sass.Flight(Place("k.py", 15), 12, 12), sass.Flight(None, 16, 16)]


@pytest.mark.parametrize(
    ("opcode", "pipe"),
    [
        ("IMMA.16832.S8.S8", "tensor"), ("LOP3.LUT", "alu"), ("FFMA", "fma"), ("IMAD.MOV.U32", "fma heavy"), ("MUFU.RCP", "xu"),
        ("LDG.E.128", "memory"), ("ULDC.64", "uniform"), ("BAR.SYNC.DEFER_BLOCKING", "barrier"), ("BRA", "branch"),
    ],
)  # fmt: skip
def test_pipes_of_machine_instructions(opcode, pipe):
    assert sass.pipe_of(opcode) == pipe
