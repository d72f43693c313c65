"""The tool that puts faults into machine code: what it makes of instructions, and that redundant order is told from needed order."""

import numpy as np
import pytest

from emulator.global_memory import Buffer
from emulator.parse import parse
from tests import ptx
from tests.tools import machine_faults, replay
from tests.tools.fault_sites import FaultSite, sites, written
from tests.tools.replay import Noted

#: Each thread reads what a thread of the other warp stored: of the first two barriers one suffices, the last orders nothing.
BODY = """
	st.shared.b32 [%r5], %r2;
	bar.sync 0;
	bar.sync 0;
	ld.shared.b32 %r9, [%r7];
	st.global.b32 [%rd5], %r9;
	bar.sync 0;
"""


def noted(body: str) -> Noted:
    made = ptx.machine(body, np.arange(ptx.THREADS, dtype=np.uint32), np.zeros(ptx.THREADS, np.uint32))
    buffers = [Buffer(b.address, b.data.copy(), b.initialized.copy()) for b in made.memory.buffers]
    reached = np.ones(len(made.kernel.code), np.int64)
    return Noted("a case", made.kernel, made.parameters, made.shared_size, {}, buffers, (1, 1, 1), 0.001, reached, [], last=True)


def kinds(body: str) -> list[tuple[str, str]]:
    kernel = parse(ptx.HEAD.format(target="sm_90", threads=64) + body + "\tret;\n}\n")
    begin = next(n for n, i in enumerate(kernel.code) if i.opcode == "mov.b32")
    return [(site.kind, written(site)) for site in sites(kernel) if site.at > begin]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cp.async.wait_group 0;", [("remove a wait", ""), ("raise a wait", "cp.async.wait_group 1")]),
        ("cp.async.commit_group;", [("remove a commit", "")]),
        ("fence.proxy.async.shared::cta;", [("remove a fence", "")]),
        ("@%p1 add.s32 %r9, %r1, %r2;", [("turn a predicate", "@!%p1 add.s32 %r9, %r1, %r2")]),
        ("setp.lt.s32 %p1, %r1, 5;", [("turn a comparison", "setp.ge.s32 %p1, %r1, 5")]),
        ("ld.shared.b32 %r9, [%r5+4];", [("shift an address", "ld.shared.b32 %r9, [%r5+20]")]),
        ("shl.b32 %r9, %r1, 3;", [("shift a shift", "shl.b32 %r9, %r1, 4")]),
        ("selp.b32 %r9, %r1, %r2, %p1;", [("exchange operands", "selp.b32 %r9, %r2, %r1, %p1")]),
        ("add.s32 %r9, %r1, %r2;", []),
    ],
)
def test_faults_of_an_instruction(line, expected):
    assert kinds(f"\t{line}\n")[: len(expected) or None] == expected


def test_two_registers_of_each_fragment_are_exchanged():
    product = (
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r10,%r11,%r12,%r13}, {%r20,%r21,%r22,%r23}, {%r30,%r31}, {%r40,%r40,%r41,%r42};"
    )
    found = [text for kind, text in kinds(f"\t{product}\n") if kind == "exchange operands of a product"]
    assert len(found) == 3 + 1 + 2  # of A, of B, of C whose first two are the same register
    assert any("{%r21, %r20, %r22, %r23}" in text for text in found)
    assert any("{%r31, %r30}" in text for text in found)


def test_a_wait_for_an_mbarrier_is_the_branch_that_repeats_it():
    body = "$L1:\n\tmbarrier.try_wait.parity.shared.b64 %p1, [%r5], %r2;\n\t@!%p1 bra $L1;\n"
    assert ("remove a wait", "") in kinds(body)


def test_a_redundant_barrier_is_told_from_its_twin_and_from_one_that_is_needed():
    launch = noted(BODY)
    barriers = [site for site in sites(launch.kernel) if site.kind == "remove a barrier"]
    assert launch.run([], note=True) == ""
    assert [launch.run([site]) for site in barriers] == ["", "", ""]
    assert launch.run(barriers) == "race"
    found = machine_faults.removable("sm_90", {}, [launch], barriers)
    assert list(found.values()) == ["", "race", ""]
    single = noted(BODY.replace("\tbar.sync 0;\n\tbar.sync 0;\n", "\tbar.sync 0;\n"))
    first = next(site for site in sites(single.kernel) if site.kind == "remove a barrier")
    assert machine_faults.outcome("sm_90", {}, [single], [first]) == "race"


def test_a_replay_compares_with_the_launch_without_a_fault():
    launch = noted(BODY)
    assert launch.run([], note=True) == ""
    code = launch.kernel.code
    moved = next(site for site in sites(launch.kernel) if site.kind == "shift an address" and "ld.shared" in code[site.at].opcode)
    assert launch.run([moved]) in ("difference", "bounds", "uninitialized")
    assert launch.run([]) == ""  # the fault is gone again
    store = next(n for n, i in enumerate(code) if i.opcode.startswith("st.global"))
    assert launch.run([FaultSite("remove", store, None)]) == "difference"


def test_a_loop_that_ends_too_soon_is_caught_and_one_that_does_not_end_as_well(monkeypatch):
    monkeypatch.setattr(replay, "LEAST", 0.3)
    launch = noted(
        "\tmov.b32 %r9, 0;\n$L1:\n\tadd.s32 %r9, %r9, 1;\n\tsetp.lt.s32 %p1, %r9, 3;\n\t@%p1 bra $L1;\n\tst.global.b32 [%rd5], %r9;\n"
    )
    launch.run([], note=True)
    turned = next(site for site in sites(launch.kernel) if site.kind == "turn a comparison")
    assert launch.run([turned]) == "difference"
    endless = launch.kernel.code[turned.at]._replace(opcode="setp.ge.s32", operands=("%p1", "%r9", "0"))
    assert replay.Noted.run(launch, [FaultSite("endless", turned.at, endless)]) == "no end"


def test_every_explanation_says_which_survivors_it_is_about():
    survivor = {"kind": "exchange operands", "source": "", "ptx": "", "instead": ""}
    assert machine_faults.explanation(survivor | {"kind": "no such kind"}) is None


def test_a_place_in_a_loop_is_known():
    body = "$L1:\n\tbar.sync 0;\n\t@%p1 bra $L1;\n\tbar.sync 0;\n"
    kernel = parse(ptx.HEAD.format(target="sm_90", threads=64) + body + "\tret;\n}\n")
    places = [n for n, i in enumerate(kernel.code) if i.opcode == "bar.sync"]
    assert [machine_faults.in_loop(kernel, at) for at in places] == [True, False]
