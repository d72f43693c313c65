"""Copies that go on while the program does, and the barriers that count them: each rule by a program that breaks it and a twin."""

import numpy as np
import pytest

from emulator import Fault, Unsupported
from emulator.tensor_map import TensorMap
from tests.ptx import GIVEN, RESULT, STORE, THREADS, fault, run

OWN = np.arange(THREADS)
COPY = "cp.async.ca.shared.global [%r5], [%rd4], 4; cp.async.commit_group; {} ld.shared.b32 %r9, {};"


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_is_there_when_it_is_waited_for_and_for_others_after_a_barrier(seed):
    assert (run(COPY.format("cp.async.wait_group 0;", "[%r5]") + STORE, seed=seed) == OWN).all()
    assert (run(COPY.format("cp.async.wait_all;", "[%r5]") + STORE, seed=seed) == OWN).all()
    assert fault(COPY.format("cp.async.wait_group 1;", "[%r5]"), seed=seed).kind == "pending"
    assert fault(COPY.format("", "[%r5]"), seed=seed).kind == "pending"
    assert fault(COPY.format("cp.async.wait_group 0;", "[%r7]"), seed=seed).kind == "race"
    assert (run(COPY.format("cp.async.wait_group 0; bar.sync 0;", "[%r7]") + STORE, seed=seed) == OWN ^ 32).all()


def test_a_wait_leaves_the_last_groups_on_their_way():
    two = "cp.async.ca.shared.global [%r5], [%rd4], 4; cp.async.commit_group; add.s32 %r20, %r5, 256;"
    two += "cp.async.ca.shared.global [%r20], [%rd4], 4; cp.async.commit_group; cp.async.wait_group 1; ld.shared.b32 %r9, [{}];"
    assert (run(two.format("%r5") + STORE) == OWN).all()
    assert fault(two.format("%r20")).kind == "pending"


def test_where_a_copy_is_going_nothing_is_written():
    assert fault("cp.async.ca.shared.global [%r5], [%rd4], 4; cp.async.commit_group; st.shared.b32 [%r5], %r2;").kind == "pending"
    run("cp.async.ca.shared.global [%r5], [%rd4], 4; cp.async.commit_group; cp.async.wait_group 0; st.shared.b32 [%r5], %r2;")


def test_what_a_copy_reads_may_be_read_late():
    # The source is written after the copy set out: what arrives depends on the seed.
    body = "st.global.b32 [%rd5], %r2; cp.async.ca.shared.global [%r5], [%rd5], 4; cp.async.commit_group; st.global.b32 [%rd5], 7;"
    body += "cp.async.wait_group 0; ld.shared.b32 %r9, [%r5];" + STORE
    results = {tuple(run(body, seed=seed).tolist()) for seed in range(8)}
    assert results == {tuple(OWN.tolist()), (7,) * THREADS}


def test_a_copy_fills_up_with_zeros_and_reads_only_what_it_was_told():
    body = "setp.lt.u32 %p1, %r1, 63; selp.b32 %r10, 4, 0, %p1; add.s64 %rd6, %rd4, 4;"
    body += "cp.async.ca.shared.global [%r5], [%rd6], 4, %r10; cp.async.wait_all; ld.shared.b32 %r9, [%r5];"
    assert (run(body + STORE) == [*range(1, 64), 0]).all()
    assert fault(body.replace("%r1, 63", "%r1, 64")).kind == "bounds"
    assert fault(body.replace("4, 0, %p1", "8, 0, %p1")).kind == "operand"


def test_copies_of_16_bytes():
    body = "shl.b32 %r10, %r1, 4; add.s32 %r11, %r4, %r10; setp.lt.u32 %p1, %r1, 16; cvt.u64.u32 %rd6, %r10; add.s64 %rd7, %rd1, %rd6;"
    body += "@%p1 cp.async.cg.shared.global [%r11], [%rd7], 16; cp.async.wait_all; bar.sync 0; ld.shared.b32 %r9, [%r5];"
    assert (run(body + STORE) == OWN).all()
    assert fault(body.replace("[%rd7]", "[%rd7+4]")).kind == "alignment"
    with pytest.raises(Fault, match=r"operand: cp\.async of 8 bytes"):
        run(body.replace("[%rd7], 16", "[%rd7], 8"))


# mbarrier and tensor copies. The map has 4 rows of 20 words, of which a box takes 3 rows of 16 words.

SIZE = 3 * 64
TMA = """
	setp.eq.u32 %p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [%r4+2048], 1;
	{init}
	ld.param.b64 %rd20, [k_param_2];
	mov.b64 %rd20, k_param_2;
	cvta.param.u64 %rd21, %rd20;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r4+2048], {size};
	@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r4], [%rd21, {{%r30, %r31}}], [%r22];
	{wait}
	ld.shared.b32 %r9, [%r5];
"""
WAIT = "$L__W: mbarrier.try_wait.parity.shared.b64 %p2, [%r22], 0; @!%p2 bra $L__W;"
WORDS = np.arange(80, dtype=np.uint32) + 100


def tma(wait: str = WAIT, init: str = "bar.sync 0;", size: int = SIZE, at: tuple[int, int] = (0, 0), swizzle: int = 0, **options) -> dict:
    made = TensorMap(GIVEN, [4, 20], [80, 4], 4, [3, 16], swizzle)
    body = f"mov.b32 %r30, {at[0]}; mov.b32 %r31, {at[1]}; add.s32 %r22, %r4, 2048;"
    body += TMA.format(wait=wait, init=init, size=size) + "setp.lt.u32 %p7, %r1, 48; @%p7 " + STORE
    # Threads 48 to 63 read what the box does not reach.
    body = body.replace("ld.shared.b32 %r9", "setp.lt.u32 %p7, %r1, 48; @%p7 ld.shared.b32 %r9")
    return {"body": body, "given": WORDS, "tensor_map": made} | options


def box(left: int, top: int) -> np.ndarray:
    rows = WORDS.reshape(4, 20)
    found = np.zeros((3, 16), np.uint32)
    for r in range(3):
        for c in range(16):
            if 0 <= top + r < 4 and 0 <= left + c < 20:
                found[r, c] = rows[top + r, left + c]
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at", [(0, 0), (4, 1), (12, 2), (-3, -1), (100, 0)])
def test_a_tensor_copy_brings_a_box_and_zeros_outside(at, seed):
    assert (run(**tma(at=at), seed=seed)[:48] == box(*at).ravel()).all()


def test_a_swizzled_box_has_its_pieces_exchanged():
    found = run(**tma(swizzle=64))[:48].reshape(3, 4, 4)
    rows = box(0, 0).reshape(3, 4, 4)
    for r in range(3):
        for piece in range(4):  # address bits 4 and 5 by bits 7 and 8, that is by half of the row's number
            assert (found[r, piece ^ r // 2] == rows[r, piece]).all()


def test_a_box_is_stored_from_shared_memory():
    made = TensorMap(RESULT, [4, 20], [80, 4], 4, [3, 16], 0)
    body = "setp.lt.u32 %p7, %r1, 48; @%p7 st.shared.b32 [%r5], %r2; {} bar.sync 0; setp.eq.u32 %p1, %r1, 0; mov.b64 %rd20, k_param_2;"
    body += "cvta.param.u64 %rd21, %rd20; mov.b32 %r30, 8; mov.b32 %r31, 2;"
    body += "@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd21, {{%r30, %r31}}], [%r4]; @%p1 cp.async.bulk.commit_group;"
    body += "{} bar.sync 0; {}"
    fence, wait, write = "fence.proxy.async.shared::cta;", "@%p1 cp.async.bulk.wait_group.read 0;", "@%p7 st.shared.b32 [%r5], %r2;"
    found = run(body.format(fence, wait, write), WORDS, result=np.zeros(80, np.uint32), tensor_map=made).reshape(4, 20)
    expected = np.zeros((4, 20), np.uint32)
    expected[2:4, 8:20] = WORDS[:48].reshape(3, 16)[:2, :12]
    assert (found == expected).all()
    for missing, kind in (((("", wait, write)), "fence"), ((fence, "", write), "pending")):
        assert fault(body.format(*missing), given=WORDS, result=np.zeros(80, np.uint32), tensor_map=made).kind == kind


def test_a_tensor_copy_is_waited_for():
    assert fault(**tma(wait="")).kind == "pending"
    # A wait that does not ask again has not waited.
    assert fault(**tma(wait="mbarrier.try_wait.parity.shared.b64 %p2, [%r22], 0;")).kind == "pending"
    assert fault(**tma(wait=WAIT.replace(" 0; @", " 1; @"))).kind == "pending"


def test_bytes_that_are_announced_come():
    assert fault(**tma(size=SIZE - 4)).kind == "barrier"
    assert fault(**tma(size=SIZE + 4)).kind == "deadlock"


def test_a_barrier_is_initialized_before_others_use_it():
    assert fault(**tma(init="")).kind == "race"  # the other warp waits
    options = tma()
    assert fault(**(options | {"body": options["body"].replace("@%p1 mbarrier.init.shared::cta.b64 [%r4+2048], 1;", "")})).kind == "barrier"
    twice = "@%p1 mbarrier.init.shared::cta.b64 [%r4+2048], 1;"
    assert fault(**(options | {"body": options["body"].replace(twice, twice * 2)})).kind == "barrier"
    again = twice + "@%p1 mbarrier.inval.shared::cta.b64 [%r4+2048];" + twice
    run(**(options | {"body": options["body"].replace(twice, again)}))


def test_more_threads_than_expected_are_at_fault():
    body = "setp.eq.u32 %p1, %r1, 0; @%p1 mbarrier.init.shared::cta.b64 [%r4], {}; bar.sync 0; mbarrier.arrive.shared::cta.b64 _, [%r4];"
    body += "$L__W: mbarrier.test_wait.parity.shared.b64 %p2, [%r4], 0; @!%p2 bra $L__W; mov.b32 %r9, 1;" + STORE
    assert (run(body.format(64)) == 1).all()
    assert fault(body.format(65)).kind == "deadlock"
    assert fault(body.format(64).replace("_, [%r4];", "_, [%r4], 3;")).kind == "barrier"
    expect = "@%p1 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r4], 16;"
    assert fault(body.format(64).replace("bar.sync 0;", f"bar.sync 0; {expect}")).kind == "deadlock"


def test_warps_that_wait_for_others_let_them_go_ahead():
    # Warp 0 waits for warp 1 to arrive, which comes later in the code.
    body = """
	setp.eq.u32 %p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [%r4+2048], 32;
	fence.mbarrier_init.release.cluster;
	bar.sync 0;
	setp.lt.u32 %p3, %r1, 32;
	@!%p3 bra $L__B;
$L__W:
	mbarrier.try_wait.parity.shared.b64 %p2, [%r4+2048], 0;
	@!%p2 bra $L__W;
	ld.shared.b32 %r9, [%r7];
	st.global.b32 [%rd5], %r9;
	bra.uni $L__C;
$L__B:
	st.shared.b32 [%r5], %r2;
	{}
$L__C:
"""
    arrive = "mbarrier.arrive.shared::cta.b64 _, [%r4+2048];"
    assert (run(body.format(arrive))[:32] == OWN[32:]).all()
    assert fault(body.format("")).kind == "deadlock"


def test_a_map_that_the_kernel_makes_itself_is_refused():
    options = tma()
    with pytest.raises(Unsupported, match="tensor maps that a kernel makes itself"):
        run(**(options | {"tensor_map": None}))


def test_a_tensor_map_is_aligned():
    for address, pitch in ((GIVEN + 4, 80), (GIVEN, 76)):
        with pytest.raises(Fault, match="alignment"):
            TensorMap(address, [4, 20], [pitch, 4], 4, [3, 16], 0)
