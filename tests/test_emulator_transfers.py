"""Loads, stores, shuffles, votes and atomic operations of the emulator, on PTX written by hand."""

import numpy as np
import pytest

from tests.ptx import STORE, THREADS, fault, run

OWN = np.arange(THREADS)
GIVEN = np.random.default_rng(0).integers(0, 2**32, THREADS, dtype=np.uint64).astype(np.uint32)


@pytest.mark.parametrize("hints", ["", ".L1::evict_last", ".ca", ".L1::no_allocate.L2::128B", ".nc"])
def test_loads_with_hints_are_loads(hints):
    assert (run(f"ld.global{hints}.b32 %r9, [%rd4];" + STORE, GIVEN) == GIVEN).all()


@pytest.mark.parametrize("opcode", ["ld.volatile.global.b32", "ld.relaxed.gpu.global.b32", "ld.acquire.gpu.global.b32"])
def test_strong_loads_are_loads(opcode):
    assert (run(f"{opcode} %r9, [%rd4];" + STORE, GIVEN) == GIVEN).all()


@pytest.mark.parametrize("opcode", ["st.volatile.global.b32", "st.relaxed.gpu.global.b32", "st.release.gpu.global.b32", "st.global.wb.b32"])
def test_strong_stores_are_stores(opcode):
    assert (run(f"{opcode} [%rd5], %r2;", GIVEN) == GIVEN).all()


def test_narrow_loads_are_extended_by_their_sign():
    body = "and.b32 %r10, %r1, 63; cvt.u64.u32 %rd6, %r10; add.s64 %rd7, %rd1, %rd6; ld.global.{} %r9, [%rd7];" + STORE
    bytes_ = GIVEN.view(np.uint8)[:THREADS]
    assert (run(body.format("u8"), GIVEN) == bytes_).all()
    assert (run(body.format("s8"), GIVEN).view(np.int32) == bytes_.view(np.int8)).all()
    narrow = body.format("b8").replace("%r9, [", "%rs9, [").replace(STORE, "cvt.u32.u16 %r9, %rs9;" + STORE)
    assert (run(narrow, GIVEN) == bytes_).all()


def test_vectors_are_side_by_side():
    body = "shr.u32 %r10, %r1, 2; mul.wide.u32 %rd6, %r10, 16; add.s64 %rd7, %rd1, %rd6; ld.global.v4.b32 {%r11, %r12, %r13, %r14}, [%rd7];"
    body += "sub.s32 %r9, %r14, %r11; st.shared.v2.b32 [%r4+2048], {%r20, %r20};".replace("%r20", "0") + STORE
    quads = GIVEN.reshape(-1, 4)
    assert (run(body, GIVEN) == np.repeat(quads[:, 3] - quads[:, 0], 4)).all()
    pair = "shl.b32 %r10, %r1, 3; add.s32 %r11, %r4, %r10; st.shared.v2.b32 [%r11], {%r1, %r2}; ld.shared.v2.b32 {_, %r9}, [%r11];"
    assert (run(pair + STORE, GIVEN) == GIVEN).all()


def test_bytes_in_shared_memory():
    body = "add.s32 %r10, %r4, %r1; st.shared.b8 [%r10], %r2; bar.sync 0; and.b32 %r11, %r1, 60; add.s32 %r12, %r4, %r11; ld.shared.b32 %r9, [%r12];"
    expected = np.repeat((GIVEN & 255).astype(np.uint8).view(np.uint32), 4)
    assert (run(body + STORE, GIVEN) == expected).all()


@pytest.mark.parametrize("opcode", ["ld.volatile.shared.b32", "ld.shared::cta.b32"])
def test_other_spellings_of_shared_memory(opcode):
    store = opcode.replace("ld", "st")
    assert (run(f"{store} [%r5], %r2; {opcode} %r9, [%r5];" + STORE, GIVEN) == GIVEN).all()


def test_hints_do_nothing():
    body = (
        "prefetch.global.L2 [%rd4]; nanosleep.u32 100; griddepcontrol.wait; createpolicy.fractional.L2::evict_first.b64 %rd8, 0f3F800000;"
    )
    assert (run(body + "mov.b32 %r9, %r2;" + STORE, GIVEN) == GIVEN).all()


# Exchange in a warp.


def shuffled(how, by, clamp):
    """The manual's program, lane by lane."""
    found = np.zeros(THREADS, np.uint32)
    for thread in range(THREADS):
        lane = thread % 32
        segment, limit = (clamp >> 8) & 31, clamp & 31
        last, first = (lane & segment) | (limit & ~segment), lane & segment
        other = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment)}[how]
        fine = other >= last if how == "up" else other <= last
        found[thread] = GIVEN[thread - lane + (other if fine else lane)]
    return found


@pytest.mark.parametrize(
    ("how", "by", "clamp"),
    [("bfly", 1, 31), ("bfly", 16, 31), ("up", 3, 0), ("down", 5, 31), ("idx", 7, 31), ("bfly", 8, 0x181F), ("down", 2, 0x181F), ("idx", 3, 0x1C1F),
     ("up", 2, 0x1800)],
)  # fmt: skip
def test_shuffles(how, by, clamp):
    body = f"shfl.sync.{how}.b32 %r9|%p3, %r2, {by}, {clamp}, -1;"
    assert (run(body + STORE, GIVEN) == shuffled(how, by, clamp)).all()


def test_exchanges_need_the_whole_warp():
    for instruction in (
        "shfl.sync.bfly.b32 %r9, %r2, 1, 31, -1;", "redux.sync.add.s32 %r9, %r2, -1;", "vote.sync.any.pred %p3, %p1, -1;", "bar.warp.sync -1;",
        "elect.sync %r9|%p3, -1;",
    ):  # fmt: skip
        parted = f"setp.lt.u32 %p1, %r1, 16;\n@%p1 {instruction}"
        found = fault(parted)
        assert (found.kind, found.thread) == ("divergence", 16)
        run(parted.replace("16;\n", "32;\n"))


REDUCTIONS = {
    "add.s32": lambda v: np.sum(v, dtype=np.uint32), "min.s32": lambda v: v.view(np.int32).min(), "max.s32": lambda v: v.view(np.int32).max(),
    "max.u32": np.max, "min.u32": np.min, "add.u32": lambda v: np.sum(v, dtype=np.uint32), "and.b32": np.bitwise_and.reduce,
    "or.b32": np.bitwise_or.reduce, "xor.b32": np.bitwise_xor.reduce,
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_a_warp(name):
    given = GIVEN | np.uint32(3) if name == "and.b32" else GIVEN
    expected = np.concatenate([np.full(32, REDUCTIONS[name](half)).astype(np.int64) for half in given.reshape(2, 32)]).astype(np.uint32)
    assert (run(f"redux.sync.{name} %r9, %r2, -1;" + STORE, given) == expected).all()
    assert REDUCTIONS.keys() >= {"add.s32", "and.b32"}  # redux.sync.add.s32, redux.sync.and.b32


@pytest.mark.parametrize("modifier", ["", ".abs", ".NaN", ".abs.NaN"])
@pytest.mark.parametrize("name", ["min", "max"])  # redux.sync.max.f32
def test_float_reductions_of_a_warp(name, modifier):
    values = np.random.default_rng(1).normal(0, 1, THREADS).astype(np.float32)
    values[5] = np.nan  # of the first warp
    expected = []
    for half in values.reshape(2, 32):
        numbers = [abs(v) if "abs" in modifier else v for v in half.tolist() if v == v]
        nan = "NaN" in modifier and len(numbers) < 32
        expected += [np.nan if nan else {"min": min, "max": max}[name](numbers)] * 32
    found = run(f"redux.sync.{name}{modifier}.f32 %r9, %r2, -1;" + STORE, values.view(np.uint32)).view(np.float32)
    assert np.array_equal(found, np.array(expected, np.float32), equal_nan=True)


def test_votes():
    odd = "and.b32 %r10, %r2, 1; setp.eq.b32 %p1, %r10, 1; "
    bits = [int(sum(int(v & 1) << i for i, v in enumerate(half))) for half in GIVEN.reshape(2, 32)]
    assert (run(odd + "vote.sync.ballot.b32 %r9, %p1, -1;" + STORE, GIVEN) == np.repeat(np.array(bits, np.uint32), 32)).all()
    for how, expected in (("any", 1), ("all", 0), ("uni", 0)):
        assert (run(odd + f"vote.sync.{how}.pred %p2, %p1, -1; selp.b32 %r9, 1, 0, %p2;" + STORE, GIVEN) == expected).all()
    assert (run(odd + "vote.sync.any.pred %p2, !%p1, -1; selp.b32 %r9, 1, 0, %p2;" + STORE, GIVEN) == 1).all()
    parted = "setp.lt.u32 %p1, %r1, 10; @%p1 activemask.b32 %r9; @%p1 st.global.b32 [%rd5], %r9;"
    assert (run(parted)[:10] == 0x3FF).all()


def test_one_lane_of_each_warp_is_elected():
    assert (run("elect.sync _|%p1, -1; selp.b32 %r9, 1, 0, %p1;" + STORE) == (OWN % 32 == 0)).all()


# Atomic operations, all threads at one address: an order-free result, and old values that fit to an order.

FIVE = np.concatenate([GIVEN, [np.uint32(5)]])
ATOMICS = {
    "add.u32": lambda old, new: old + new, "min.u32": min, "max.u32": max, "and.b32": lambda old, new: old & new,
    "or.b32": lambda old, new: old | new, "xor.b32": lambda old, new: old ^ new, "inc.u32": lambda old, most: 0 if old >= most else old + 1,
    "dec.u32": lambda old, most: most if old == 0 or old > most else old - 1, "min.s32": lambda a, b: min(signed(a), signed(b)),
    "max.s32": lambda a, b: max(signed(a), signed(b)), "exch.b32": lambda old, new: new,
}  # fmt: skip


def signed(a: int) -> int:
    return a - 2**32 if a >> 31 else a


@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomic_operations_happen_one_after_the_other(name, space):
    if space == "global":
        body = f"atom.global.gpu.relaxed.{name} %r9, [%rd1+256], %r2; bar.sync 0; ld.global.b32 %r10, [%rd1+256];"
    else:
        body = f"st.shared.b32 [%r4], 5; bar.sync 0; atom.shared.cta.relaxed.{name} %r9, [%r4], %r2; bar.sync 0; ld.shared.b32 %r10, [%r4];"
    body = body.replace("st.shared.b32 [%r4], 5; bar", "setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.b32 [%r4], 5; bar")
    *old, last = (int(o) for o in run(body + STORE + "st.global.b32 [%rd2+256], %r10;", FIVE, result=np.zeros(THREADS + 1, np.uint32)))
    # Each thread found what one before it left, the first one 5; the last one's is what stays.
    left = [ATOMICS[name](o, int(g)) & 0xFFFFFFFF for o, g in zip(old, GIVEN, strict=True)]
    assert sorted([*old, last]) == sorted([5, *left])


def test_compare_and_swap_lets_one_thread_in():
    body = "atom.global.acquire.gpu.cas.b32 %r9, [%rd1+256], 5, 6;" + STORE
    assert sorted(run(body, FIVE).tolist()) == [5] + [6] * (THREADS - 1)


@pytest.mark.parametrize(("kind", "width"), [("f32", 4), ("f16", 2), ("bf16", 2), ("f16x2", 4), ("bf16x2", 4), ("f64", 8), ("u64", 8)])
def test_reductions_in_global_memory(kind, width):
    ones = {
        "f32": 0x3F800000,
        "f16": 0x3C00,
        "bf16": 0x3F80,
        "f16x2": 0x3C003C00,
        "bf16x2": 0x3F803F80,
        "f64": 0x3FF0000000000000,
        "u64": 1,
    }
    sums = {
        "f32": 0x42800000,
        "f16": 0x5400,
        "bf16": 0x4280,
        "f16x2": 0x54005400,
        "bf16x2": 0x42804280,
        "f64": 0x4050000000000000,
        "u64": 64,
    }
    register = {2: "%rs9", 4: "%r9", 8: "%rd9"}[width]
    flavour = ".noftz" if "16" in kind else ""
    body = f"mov.b{8 * width} {register}, {ones[kind]}; red.global.gpu.relaxed.add{flavour}.{kind} [%rd1+256], {register};"
    body += f"fence.acq_rel.gpu; membar.cta; bar.sync 0; ld.global.b{8 * width} {register}, [%rd1+256]; st.global.b{8 * width} [%rd2], {register};"
    result = run("setp.lt.u32 %p1, %r1, 99;" + body, np.concatenate([GIVEN, np.zeros(2, np.uint32)]))
    assert int(result[:2].view(np.uint64)[0]) & (2 ** (8 * width) - 1) == sums[kind]
