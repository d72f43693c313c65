"""The machine and the sanitizer of the emulator, on small PTX programs written by hand: each rule by a program that breaks it and by a twin
that does not. tests/ptx.py says what the registers hold."""

from pathlib import Path

import numpy as np
import pytest

import emulator
from emulator import KINDS, Unsupported
from emulator.parse import parse
from tests.ptx import GIVEN, HEAD, RESULT, STORE, THREADS, fault, machine, run

OWN = np.arange(THREADS)


# Threads and branches.


def test_threads_with_loops_of_different_lengths_meet_again():
    body = """
	mov.b32 %r9, 0;
	mov.b32 %r10, 0;
$L__BB0_1:
	setp.ge.u32 %p1, %r10, %r2;
	@%p1 bra $L__BB0_2;
	add.s32 %r9, %r9, %r10;
	add.s32 %r10, %r10, 1;
	bra.uni $L__BB0_1;
$L__BB0_2:
	shfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;
"""
    sums = np.array([i * (i - 1) // 2 for i in range(THREADS)])
    assert (run(body + STORE) == sums[OWN ^ 1]).all()


def test_a_guard_leaves_other_threads_as_they_are():
    body = "mov.b32 %r9, 7; setp.lt.u32 %p1, %r1, 10; @%p1 mov.b32 %r9, 8; @!%p1 add.s32 %r9, %r9, 2;" + STORE
    assert (run(body) == np.where(OWN < 10, 8, 9)).all()


def test_threads_that_return_early_are_not_waited_for():
    body = "setp.lt.u32 %p1, %r1, 32; @%p1 ret; bar.sync 0; mov.b32 %r9, 5;" + STORE
    assert (run(body) == np.where(OWN < 32, 0, 5)).all()


def test_a_barrier_that_some_threads_of_a_warp_leave_out_does_not_pair_with_another():
    parted = "setp.lt.u32 %p1, %r1, {};\n@%p1 bra $L__BB0_1;\nbar.sync 0;\nbra.uni $L__BB0_2;\n$L__BB0_1:\nbar.sync 0;\n$L__BB0_2:"
    assert fault(parted.format(16)).kind == "divergence"
    run(parted.format(32))  # whole warps at two places of one barrier


def test_barriers_of_different_numbers_do_not_pair():
    parted = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra $L__BB0_1;\nbar.sync 0;\nbra.uni $L__BB0_2;\n$L__BB0_1:\nbar.sync {};\n$L__BB0_2:"
    assert fault(parted.format(1)).kind == "deadlock"
    run(parted.format(0))


def test_programs_run_in_an_order_of_the_seed():
    body = """
	setp.eq.u32 %p1, %r1, 0;
	@!%p1 ret;
	mov.u32 %r8, %ctaid.x;
	mul.wide.u32 %rd6, %r8, 4;
	add.s64 %rd7, %rd2, %rd6;
	atom.global.relaxed.gpu.add.u32 %r9, [%rd1+256], 1;
	st.global.b32 [%rd7], %r9;
"""
    given = np.zeros(THREADS + 1, np.uint32)
    orders = [run(body, given, programs=8, seed=seed)[:8].tolist() for seed in range(3)]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == list(range(8)) for order in orders)


# Races.

EXCHANGE = "st.shared.b32 [%r5], %r2; {} ld.shared.b32 %r9, [%r7];"


def test_a_barrier_orders_an_exchange_between_warps_and_without_one_it_is_a_race():
    assert (run(EXCHANGE.format("bar.sync 0;") + STORE) == OWN ^ 32).all()
    assert fault(EXCHANGE.format("")).kind == "race"


def test_a_write_after_another_warp_s_read_needs_a_barrier():
    assert fault(EXCHANGE.format("bar.sync 0;") + "st.shared.b32 [%r5], %r9;").kind == "race"
    run(EXCHANGE.format("bar.sync 0;") + "bar.sync 0; st.shared.b32 [%r5], %r9;")


def test_two_warps_write_one_address_only_with_a_barrier_between():
    body = "and.b32 %r10, %r3, 127; add.s32 %r10, %r10, %r4; setp.lt.u32 %p1, %r1, 32; @%p1 st.shared.b32 [%r10], %r2; {} @!%p1 st.shared.b32 [%r10], %r2;"
    assert fault(body.format("")).kind == "race"
    run(body.format("bar.sync 0;"))


def test_two_threads_store_one_value_at_one_address_or_race():
    assert fault("st.shared.b32 [%r4], %r2;", threads=32).kind == "race"
    run("st.shared.b32 [%r4], 5;", threads=32)
    assert fault("st.global.b32 [%rd2], %r2;", threads=32).kind == "race"
    run("st.global.b32 [%rd2], 5;", threads=32)


def test_warps_exchange_through_global_memory_only_with_a_barrier_between():
    body = (
        "st.global.b32 [%rd5], %r2; {} xor.b32 %r10, %r3, 128; cvt.u64.u32 %rd6, %r10; add.s64 %rd7, %rd2, %rd6; ld.global.b32 %r9, [%rd7];"
    )
    assert fault(body.format("")).kind == "race"
    run(body.format("bar.sync 0;"))
    # Written again while the other warp may still read.
    assert fault(body.format("bar.sync 0;") + STORE).kind == "race"
    assert (run(body.format("bar.sync 0;") + "bar.sync 0;" + STORE) == OWN ^ 32).all()


def test_programs_of_a_launch_have_no_order():
    assert fault("st.global.b32 [%rd5], %r1;", programs=2).kind == "race"
    # A program reads what the other writes, in either order.
    mine = "mov.u32 %r10, %ctaid.x; setp.eq.u32 %p1, %r10, 0; @%p1 st.global.b32 [%rd4], %r1; @!%p1 ld.global.b32 %r9, [%rd4];"
    assert fault("mov.u32 %r10, %ctaid.x; setp.eq.u32 %p1, %r10, 1; @%p1 st.global.b32 [%rd4], %r1;", programs=2).kind == "race"
    assert all(fault(mine, programs=2, seed=seed).kind == "race" for seed in range(3))
    run("mov.u32 %r10, %ctaid.x; setp.eq.u32 %p1, %r10, 0; @%p1 st.global.b32 [%rd5], %r1;", programs=2)


RELEASE = """
	setp.eq.u32 %p1, %r1, 0;
	mov.u32 %r10, %ctaid.x;
	mul.lo.s32 %r11, %r10, 4;
	cvt.u64.u32 %rd6, %r11;
	add.s64 %rd7, %rd2, %rd6;
	@%p1 st.global.b32 [%rd7], 5;
	bar.sync 0;
	@%p1 atom.global.gpu.{}.add.u32 %r12, [%rd1+256], 1;
	@!%p1 ret;
	setp.ne.u32 %p2, %r12, 1;
	@%p2 ret;
	xor.b32 %r13, %r10, 1;
	mul.lo.s32 %r14, %r13, 4;
	cvt.u64.u32 %rd8, %r14;
	add.s64 %rd9, %rd2, %rd8;
	ld.global.b32 %r9, [%rd9];
	st.global.b32 [%rd2+16], %r9;
"""


@pytest.mark.parametrize("seed", range(3))
def test_an_atomic_release_and_acquire_order_two_programs(seed):
    given = np.zeros(THREADS + 1, np.uint32)
    assert run(RELEASE.format("acq_rel"), given, programs=2, seed=seed)[4] == 5
    assert fault(RELEASE.format("relaxed"), given=given, programs=2, seed=seed).kind == "race"


# Memory.


def test_accesses_are_in_bounds():
    assert fault("ld.global.b32 %r9, [%rd4+4];").kind == "bounds"
    assert fault("ld.shared.b32 %r9, [%r5+4092];").kind == "bounds"
    assert fault("st.global.b32 [%rd5+4], %r2;").kind == "bounds"
    found = fault("ld.global.b32 %r9, [%rd4+4];")
    assert (found.thread, found.address) == (THREADS - 1, GIVEN + 4 * THREADS)


def test_accesses_are_aligned():
    assert fault("ld.global.b32 %r9, [%rd1+2];").kind == "alignment"
    assert fault("ld.shared.v2.b32 {%r9, %r10}, [%r5];").kind == "alignment"
    assert fault("st.global.v4.b32 [%rd5], {%r2, %r2, %r2, %r2};").kind == "alignment"
    assert fault("ld.global.b32 %r9, [%rd1+2];").address == GIVEN + 2


def test_memory_is_written_before_it_is_read():
    assert fault("ld.shared.b32 %r9, [%r5];").kind == "uninitialized"
    assert fault("ld.global.b32 %r9, [%rd5];").kind == "uninitialized"
    assert fault("atom.global.add.u32 %r9, [%rd5], 1;").kind == "uninitialized"
    run("st.shared.b32 [%r5], %r2; ld.shared.b32 %r9, [%r5]; st.global.b32 [%rd5], %r9; ld.global.b32 %r9, [%rd5];")


def test_registers_are_written_before_they_are_used():
    for use in ("st.global.b32 [%rd5], %r50;", "ld.shared.b32 %r9, [%r50];", "add.s32 %r9, %r50, 1;" + STORE, "mov.b32 %r9, %r50;" + STORE):
        assert fault(use).kind == "uninitialized"
    assert fault("@%p50 mov.b32 %r9, 1;").kind == "uninitialized"
    half = "setp.lt.u32 %p1, %r1, 40; @%p1 mov.b32 %r9, 1; {}" + STORE
    found = fault(half.format(""))
    assert (found.kind, found.thread) == ("uninitialized", 40)
    run(half.format("@!%p1 mov.b32 %r9, 2;"))
    # Where nothing depends on it an unwritten register is no fault.
    run("setp.lt.u32 %p1, %r1, 40; @%p1 mov.b32 %r9, 1; add.s32 %r9, %r9, 1; @%p1 st.global.b32 [%rd5], %r9;")
    run("setp.lt.u32 %p1, %r1, 99; selp.b32 %r9, %r2, %r50, %p1;" + STORE)


def test_bytes_of_a_register_may_be_unwritten():
    # As LLVM packs bytes: the unwritten %r50 gives bytes that the next instruction leaves out.
    packed = "prmt.b32 %r10, %r2, %r50, 0x7610; prmt.b32 %r9, %r10, %r2, {};"
    run(packed.format("0x5410") + STORE)
    assert fault(packed.format("0x5210") + STORE).kind == "uninitialized"
    halves = "mov.b64 %rd20, {{%r2, %r50}}; mov.b64 {{%r9, %r10}}, %rd20; st.global.b32 [%rd5], {};"
    run(halves.format("%r9"))
    assert fault(halves.format("%r10")).kind == "uninitialized"


def test_an_unwritten_value_stays_so_through_shuffles_and_shared_memory():
    half = "setp.lt.u32 %p1, %r1, 40; @%p1 mov.b32 %r8, 1; "
    shuffled = half + "shfl.sync.bfly.b32 %r9, %r8, 1, 31, -1;"
    stored = half + "st.shared.b32 [%r5], %r8; bar.sync 0; ld.shared.b32 %r9, [%r7];"
    assert fault(shuffled + STORE).thread == 40
    run(shuffled + "@%p1 st.global.b32 [%rd5], %r9;")
    assert fault(stored + STORE).thread == 40 - 32
    run(stored + "setp.ge.u32 %p2, %r1, 32; @%p2 st.global.b32 [%rd5], %r9;")


# What loading refuses.


@pytest.mark.parametrize(
    "unknown",
    ["add.sat.u32 %r9, %r2, %r2;", "tex.2d.v4.f32.f32 %r9, %r2;", "ld.global.b128 %r9, [%rd1];", "max.xorsign.abs.f32 %r9, %r2, %r2;"],
)
def test_what_is_not_known_is_refused_by_name_before_anything_runs(unknown):
    with pytest.raises(Unsupported, match=rf"kernel k, PTX line \d+: {unknown.split()[0]}(.|\n)*{unknown.split()[0]} is not supported"):
        run(unknown)


def test_device_functions_and_unknown_directives_are_refused():
    text = HEAD.format(threads=32, target="sm_90") + "ret;\n}\n"
    with pytest.raises(Unsupported, match="device functions"):
        parse(".func f() { ret; }\n" + text)
    with pytest.raises(Unsupported, match="directive"):
        parse(text.replace("ret;", ".local .align 4 .b8 x[4];\nret;"))
    with pytest.raises(Unsupported, match="exactly one kernel"):
        parse(".version 8.7")


def test_a_context_names_its_architectures():
    with pytest.raises(ValueError, match="sm_80, sm_86, sm_89, sm_90, sm_100, got 'sm_70'"), emulator.gpu("sm_70"):
        pass


# Reports.

LINES = """
	.file	1 "/somewhere/softmax.py"
	.file	2 "/somewhere/standard.py"
"""


def test_a_report_names_kernel_line_thread_address_and_what():
    body = (
        "\n\t.loc\t1 17 9\n\tadd.s32 %r10, %r2, 1;\n\t.loc\t2 291 36, function_name $L__info_string0, inlined_at 1 23 5\n"
        "\tld.global.b32 %r9, [%rd4+4];\n\t.loc\t1 30 1\n\tst.global.b32 [%rd5], %r9;"
    )
    given, result = np.arange(THREADS, dtype=np.uint32), np.zeros(THREADS, np.uint32)
    text = HEAD.format(threads=THREADS, target="sm_90") + body + "\nret;\n}\n" + LINES
    kernel = parse(text)
    assert [(i.place.file, i.place.line, i.place.called_from) for i in kernel.code[-4:] if i.place] == [
        ("/somewhere/softmax.py", 17, None),
        ("/somewhere/standard.py", 291, ("/somewhere/softmax.py", 23)),
        ("/somewhere/softmax.py", 30, None),
        ("/somewhere/softmax.py", 30, None),
    ]
    made = machine(body, given, result)
    made.kernel = kernel
    with pytest.raises(emulator.Fault) as raised:
        made.run((1, 1, 1))
    found = raised.value
    assert (found.kind, found.line, found.kernel, found.program, found.thread) == ("bounds", 291, "k", 0, THREADS - 1)
    assert found.address == GIVEN + 4 * THREADS < RESULT
    for part in (
        "bounds: byte 256 of a buffer of 256 bytes", "address 0x1100", "kernel k, program 0, thread 63",
        "standard.py:291 (inlined at softmax.py:23)", "ld.global.b32 %r9, [%rd4+4]",
    ):  # fmt: skip
        assert part in str(found)


def test_a_report_s_line_is_that_of_the_text():
    text = (
        HEAD.format(threads=THREADS, target="sm_90")
        + "\n// a comment\n\tadd.s32 %r9,\n\t\t%r2, 1;\n{ .reg .b32 %t;\nmov.b32 %t, 1; }\nret;\n}\n"
    )
    lines = text.split("\n")
    for i in parse(text).code:
        assert lines[i.number - 1].strip().startswith((i.opcode, "@")), (i, lines[i.number - 1])


def test_every_kind_of_fault_is_broken_by_a_test():
    text = "".join(p.read_text() for p in Path(__file__).parent.glob("test_emulator*.py"))
    assert all(text.count(f'"{kind}"') for kind in KINDS)
