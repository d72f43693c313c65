"""Matrix instructions of the emulator, on PTX written by hand: where each entry lies follows the manual's formulas, entry by entry."""

import numpy as np
import pytest

from tests.ptx import fault, run

GENERATOR = np.random.default_rng(0)
LANES = 32


def bits_of(values: np.ndarray, kind: str) -> np.ndarray:
    """Small integers as entries of a type: (..., n) -> (..., n) unsigned."""
    if kind in ("s8", "u8"):
        return values.astype(np.int8).view(np.uint8)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    single = values.astype(np.float32).view(np.uint32)
    return (single >> 16).astype(np.uint16) if kind == "bf16" else single


def small(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Integers that every type holds, so that sums are exact."""
    low, high = {"s8": (-128, 128), "u8": (0, 128), "f16": (-9, 10), "bf16": (-9, 10), "tf32": (-9, 10)}[kind]
    return GENERATOR.integers(low, high, shape)


# ldmatrix and stmatrix: entry pair t of a matrix of 8 rows of 8 entries of 16 bits belongs to lane t (row t / 4, entries 2 (t mod 4) on).


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_are_loaded_from_rows_of_shared_memory(count, trans):
    given = GENERATOR.integers(0, 2**32, 128, dtype=np.uint64).astype(np.uint32)
    names = ", ".join(f"%r{20 + i}" for i in range(count))
    body = "shl.b32 %r10, %r1, 4; add.s32 %r11, %r4, %r10; mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd1, %rd6;"
    body += "ld.global.v4.b32 {%r12, %r13, %r14, %r15}, [%rd7]; st.shared.v4.b32 [%r11], {%r12, %r13, %r14, %r15};"
    body += f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%r11];"
    body += "mul.wide.u32 %rd8, %r1, 16; add.s64 %rd9, %rd2, %rd8;" + "".join(
        f"st.global.b32 [%rd9+{4 * i}], %r{20 + i};" for i in range(count)
    )
    found = run(body, given, threads=32, result=np.zeros((32, 4), np.uint32))
    matrices = given.view(np.uint16).reshape(4, 8, 8)
    for i in range(count):
        matrix = matrices[i].T if trans else matrices[i]
        for lane in range(LANES):
            pair = matrix[lane // 4, 2 * (lane % 4) :][:2]
            assert found[lane, i] == int(pair[0]) | int(pair[1]) << 16


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_matrices_are_stored_as_they_are_loaded(count, trans):
    given = GENERATOR.integers(0, 2**32, 32, dtype=np.uint64).astype(np.uint32)
    names = ", ".join(f"%r{20 + i}" for i in range(count))
    body = "shl.b32 %r10, %r1, 4; add.s32 %r11, %r4, %r10;" + "".join(f"add.s32 %r{20 + i}, %r2, {i};" for i in range(count))
    body += f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r11], {{{names}}};"
    body += f"setp.lt.u32 %p1, %r1, {8 * count}; @!%p1 ret; ld.shared.v4.b32 {{%r12, %r13, %r14, %r15}}, [%r11];"
    body += "mul.wide.u32 %rd8, %r1, 16; add.s64 %rd9, %rd2, %rd8; st.global.v4.b32 [%rd9], {%r12, %r13, %r14, %r15};"
    found = run(body, given, threads=32, result=np.zeros((32, 4), np.uint32)).view(np.uint16).reshape(4, 8, 8)
    for i in range(count):
        matrix = np.zeros((8, 8), np.uint16)
        for lane in range(LANES):
            word = int(given[lane]) + i & 0xFFFFFFFF
            matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2] = [word & 0xFFFF, word >> 16]
        assert (found[i] == (matrix.T if trans else matrix)).all()


def test_a_matrix_s_rows_are_aligned():
    assert fault("st.shared.b32 [%r5], %r2; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r5];", threads=32).kind == "alignment"


# mma.sync: fragments as "Matrix Fragments for mma.m16n8k*" writes them, with per entries in a register and g, t = lane / 4, lane mod 4:
# A's register r, entry e: row g + 8 (r mod 2), column t * per + e + 4 * per * (r / 2); B's: row t * per + e + 4 * per * r, column g;
# C's register r: row g + 8 (r / 2), column 2 t + r mod 2.
PER = {"s8": 4, "u8": 4, "f16": 2, "bf16": 2, "tf32": 1}


def words(entries: np.ndarray, kind: str) -> np.ndarray:
    """(..., per) entries as the register that holds them."""
    return np.ascontiguousarray(bits_of(entries, kind)).view(np.uint32)[..., 0]


def fragment_a(a: np.ndarray, kind: str) -> np.ndarray:
    per = PER[kind]
    registers = a.shape[1] // (2 * per)
    found = np.zeros((LANES, registers), np.uint32)
    for lane in range(LANES):
        for r in range(registers):
            column = lane % 4 * per + 4 * per * (r // 2)
            found[lane, r] = words(a[lane // 4 + 8 * (r % 2), column : column + per], kind)
    return found


def fragment_b(b: np.ndarray, kind: str) -> np.ndarray:
    per = PER[kind]
    registers = b.shape[0] // (4 * per)
    found = np.zeros((LANES, registers), np.uint32)
    for lane in range(LANES):
        for r in range(registers):
            row = lane % 4 * per + 4 * per * r
            found[lane, r] = words(b[row : row + per, lane // 4], kind)
    return found


def place_c(lane: int, r: int) -> tuple[int, int]:
    return lane // 4 + 8 * (r // 2), 2 * (lane % 4) + r % 2


MMA = [
    ("m16n8k32.row.col.satfinite.s32.s8.s8.s32", 32, "s8", "s8"), ("m16n8k32.row.col.s32.u8.s8.s32", 32, "u8", "s8"),
    ("m16n8k16.row.col.s32.s8.u8.s32", 16, "s8", "u8"), ("m16n8k16.row.col.f32.f16.f16.f32", 16, "f16", "f16"),
    ("m16n8k8.row.col.f32.f16.f16.f32", 8, "f16", "f16"), ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, "bf16", "bf16"),
    ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, "tf32", "tf32"), ("m16n8k4.row.col.f32.tf32.tf32.f32", 4, "tf32", "tf32"),
    ("m16n8k16.row.col.f16.f16.f16.f16", 16, "f16", "f16"),
]  # fmt: skip


def mma_body(shape: str, count_a: int, count_b: int, count_c: int) -> str:
    """Loads a lane's registers of A, B and C, multiplies, and stores D."""
    total = count_a + count_b + count_c
    body = f"mul.wide.u32 %rd6, %r1, {4 * total}; add.s64 %rd7, %rd1, %rd6;"
    body += "".join(f"ld.global.b32 %r{20 + i}, [%rd7+{4 * i}];" for i in range(total))
    parts = [
        range(50, 50 + count_c),
        range(20, 20 + count_a),
        range(20 + count_a, 20 + count_a + count_b),
        range(20 + count_a + count_b, 20 + total),
    ]
    lists = ", ".join("{" + ", ".join(f"%r{i}" for i in part) + "}" for part in parts)
    body += f"mma.sync.aligned.{shape} {lists}; mul.wide.u32 %rd8, %r1, {4 * count_c}; add.s64 %rd9, %rd2, %rd8;"
    return body + "".join(f"st.global.b32 [%rd9+{4 * i}], %r{50 + i};" for i in range(count_c))


@pytest.mark.parametrize(("shape", "k", "left", "right"), MMA, ids=[m[0] for m in MMA])
def test_products_of_a_warp(shape, k, left, right):
    a, b, c = small((16, k), left), small((k, 8), right), GENERATOR.integers(-50, 50, (16, 8))
    halves = shape.endswith("f16.f16.f16.f16")
    count_c = 2 if halves else 4
    held = np.zeros((LANES, count_c), np.uint32)
    for lane in range(LANES):
        for r in range(4):
            value = c[place_c(lane, r)]
            if halves:
                held[lane, r // 2] |= np.uint32(int(np.float16(value).view(np.uint16)) << 16 * (r % 2))
            else:
                held[lane, r] = np.int32(value).view(np.uint32) if ".s32." in shape else np.float32(value).view(np.uint32)
    fa, fb = fragment_a(a, left), fragment_b(b, right)
    given = np.concatenate([fa, fb, held], axis=1).astype(np.uint32)
    found = run(mma_body(shape, fa.shape[1], fb.shape[1], count_c), given, threads=32, result=np.zeros((LANES, count_c), np.uint32))
    expected = a @ b + c
    for lane in range(LANES):
        for r in range(4):
            if halves:
                actual = np.uint16(found[lane, r // 2] >> 16 * (r % 2) & 0xFFFF).view(np.float16)
            else:
                actual = found[lane, r].view(np.int32) if ".s32." in shape else found[lane, r].view(np.float32)
            assert actual == expected[place_c(lane, r)]


@pytest.mark.parametrize("clamped", [True, False])
def test_an_integer_sum_is_clamped_or_wraps(clamped):
    shape = f"m16n8k32.row.col{'.satfinite' if clamped else ''}.s32.s8.s8.s32"
    a, b = np.full((16, 32), 127), np.full((32, 8), 127)
    given = np.concatenate([fragment_a(a, "s8"), fragment_b(b, "s8"), np.full((LANES, 4), 2**31 - 5)], axis=1).astype(np.uint32)
    found = run(mma_body(shape, 4, 2, 4), given, threads=32, result=np.zeros((LANES, 4), np.uint32)).view(np.int32)
    assert (found == (2**31 - 1 if clamped else 2**31 - 5 + 32 * 127 * 127 - 2**32)).all()


def test_a_product_of_unwritten_entries_is_unwritten_in_their_rows_and_columns():
    shape = "m16n8k32.row.col.s32.s8.s8.s32"
    body = mma_body(shape, 4, 2, 4)
    # Lane 4 holds row 1 of A, which spoils row 1 of the product, that is registers 0 and 1 of lanes 4 to 7.
    spoiled = body.replace("ld.global.b32 %r20,", "setp.ne.u32 %p1, %r1, 4; @%p1 ld.global.b32 %r20,")
    given = np.zeros((LANES, 10), np.uint32)
    found = fault(spoiled, given=given, threads=32, result=np.zeros((LANES, 4), np.uint32))
    assert (found.kind, found.thread) == ("uninitialized", 4)
    outside = "setp.lt.u32 %p2, %r1, 4; setp.gt.u32 %p3, %r1, 7; or.pred %p4, %p2, %p3;"
    kept = spoiled.replace("mma.sync", outside + "mma.sync").replace("st.global.b32 [%rd9+0]", "@%p4 st.global.b32 [%rd9+0]")
    run(kept.replace("st.global.b32 [%rd9+4]", "@%p4 st.global.b32 [%rd9+4]"), given, threads=32, result=np.zeros((LANES, 4), np.uint32))


# wgmma. An operand's byte k of row r, K-major with a pattern of P bytes: r / 8 * 8 P + r mod 8 * P + k, whose address bits 4 on are
# exchanged by the row of the pattern; without a pattern blocks of 8 rows of 16 bytes.


def k_major(matrix: np.ndarray, kind: str, pattern: int) -> np.ndarray:
    """The bytes of an operand (rows, STEP bytes of K) in shared memory."""
    raw = np.ascontiguousarray(bits_of(matrix, kind)).view(np.uint8).reshape(len(matrix), -1)
    image = np.zeros(len(matrix) * max(pattern, 32), np.uint8)
    for row in range(len(matrix)):
        for k in range(32):
            if pattern:
                at = row // 8 * 8 * pattern + row % 8 * pattern + k
                at ^= (at >> 7 & (pattern // 16 - 1)) << 4
            else:
                at = row // 8 * 256 + k // 16 * 128 + row % 8 * 16 + k % 16
            image[at] = raw[row, k]
    return image


def mn_major(matrix: np.ndarray, kind: str) -> np.ndarray:
    """An operand of 16-bit entries (rows, 16 of K), its rows side by side: 64 rows of one k in a line of 128 bytes."""
    raw = bits_of(matrix, kind)
    image = np.zeros(len(matrix) * 16, np.uint16)
    for row in range(len(matrix)):
        for k in range(16):
            at = row // 64 * 2048 + k // 8 * 1024 + k % 8 * 128 + row % 64 * 2
            image[(at ^ (at >> 7 & 7) << 4) // 2] = raw[row, k]
    return image.view(np.uint8)


def descriptor(start: int, leading: int, stride: int, mode: int) -> int:
    return start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62


BASE = 1024  # of shared memory
COPY = """
	mov.b32 %r10, %r1;
$L__BB0_1:
	setp.ge.u32 %p1, %r10, {words};
	@%p1 bra $L__BB0_2;
	mul.wide.u32 %rd6, %r10, 4;
	add.s64 %rd7, %rd1, %rd6;
	ld.global.b32 %r11, [%rd7];
	shl.b32 %r12, %r10, 2;
	add.s32 %r13, %r4, %r12;
	st.shared.b32 [%r13], %r11;
	add.s32 %r10, %r10, 128;
	bra.uni $L__BB0_1;
$L__BB0_2:
"""


def wgmma(
    image: np.ndarray, a: int, b: int, n: int, opcode: str, kind: str, flags: str, before: str = "fence.proxy.async.shared::cta;",
    fence: str = "wgmma.fence.sync.aligned;", wait: str = "wgmma.wait_group.sync.aligned 0;", after: str = "", adds: int = 0, times: int = 1,
    a_registers: str = "",
) -> tuple[str, np.ndarray]:  # fmt: skip
    """(the program that multiplies what `image` holds, the image): the sums begin at 1 per entry and are added to where `adds`."""
    registers = [f"%r{100 + i}" for i in range(n // 2)]
    one = 1 if kind == "s32" else 0x3F800000
    body = COPY.format(words=len(image) // 4) + "".join(f"mov.b32 {r}, {one};" for r in registers)
    body += f"{before} bar.sync 0; mov.b64 %rd20, {a}; mov.b64 %rd21, {b}; setp.ne.u32 %p5, {adds}, 0; {a_registers} {fence}"
    left = "{%r90, %r91, %r92, %r93}" if a_registers else "%rd20"
    body += f"wgmma.mma_async.sync.aligned.{opcode} {{{', '.join(registers)}}}, {left}, %rd21, %p5{flags};" * times
    body += f"wgmma.commit_group.sync.aligned; {wait} {after} mul.wide.u32 %rd8, %r1, {2 * n}; add.s64 %rd9, %rd2, %rd8;"
    body += "".join(f"st.global.b32 [%rd9+{4 * i}], {r};" for i, r in enumerate(registers))
    return body, image.view(np.uint32)


def entry(found: np.ndarray, row: int, column: int) -> np.uint32:
    """D's entry of (128 threads, n / 2 registers): thread 32 w + 4 g + t holds rows 16 w + g and 16 w + g + 8, columns 8 i + 2 t + 0, 1."""
    thread = row // 16 * 32 + row % 8 * 4 + column % 8 // 2
    return found[thread, column // 8 * 4 + row % 16 // 8 * 2 + column % 2]


WGMMA = [
    ("m64n32k32.s32.s8.s8", 32, "s8", "s32", ""), ("m64n16k16.f32.f16.f16", 16, "f16", "f32", ", 1, 1, 0, 0"),
    ("m64n24k16.f32.bf16.bf16", 24, "bf16", "f32", ", 1, 1, 0, 0"), ("m64n8k8.f32.tf32.tf32", 8, "tf32", "f32", ", 1, 1"),
    ("m64n8k32.s32.u8.u8", 8, "u8", "s32", ""),
]  # fmt: skip


@pytest.mark.parametrize("pattern", [128, 64, 32, 0])
@pytest.mark.parametrize(("opcode", "n", "kind", "result", "flags"), WGMMA, ids=[w[0] for w in WGMMA])
@pytest.mark.parametrize("adds", [0, 1])
def test_products_of_a_warp_group(opcode, n, kind, result, flags, pattern, adds):
    k = 32 * 8 // {"s8": 8, "u8": 8, "f16": 16, "bf16": 16, "tf32": 32}[kind]
    a, b = small((64, k), kind), small((n, k), kind)
    left, right = k_major(a, kind, pattern), k_major(b, kind, pattern)
    image = np.concatenate([left, right])
    mode, stride, leading = {128: (1, 1024, 16), 64: (2, 512, 16), 32: (3, 256, 16), 0: (0, 256, 128)}[pattern]
    descriptors = [descriptor(BASE + at, leading, stride, mode) for at in (0, len(left))]
    body, given = wgmma(image, *descriptors, n, opcode, result, flags, adds=adds)
    found = run(body, given, threads=128, result=np.zeros((128, n // 2), np.uint32), shared=len(image))
    expected = a @ b.T + adds
    view = found.view(np.int32 if result == "s32" else np.float32)
    assert all(entry(view, r, c) == expected[r, c] for r in range(64) for c in range(n))


def test_an_operand_may_lie_with_its_rows_side_by_side():
    a, b = small((64, 16), "f16"), small((64, 16), "f16")
    image = np.concatenate([mn_major(a, "f16"), mn_major(b, "f16")])
    descriptors = [descriptor(BASE + at, 2048, 1024, 1) for at in (0, 2048)]
    body, given = wgmma(image, *descriptors, 64, "m64n64k16.f32.f16.f16", "f32", ", 1, 1, 1, 1")
    found = run(body, given, threads=128, result=np.zeros((128, 32), np.uint32), shared=len(image)).view(np.float32)
    expected = a @ b.T
    assert all(entry(found, r, c) == expected[r, c] for r in range(64) for c in range(64))


def test_the_left_operand_may_lie_in_registers():
    a, b = small((64, 16), "f16"), small((8, 16), "f16")
    image = k_major(b, "f16", 32)
    fragments = np.concatenate([fragment_a(a[16 * w : 16 * w + 16], "f16") for w in range(4)])
    loads = f"mul.wide.u32 %rd12, %r1, 16; add.s64 %rd13, %rd1, %rd12; ld.global.v4.b32 {{%r90, %r91, %r92, %r93}}, [%rd13+{len(image)}];"
    body, given = wgmma(image, 0, descriptor(BASE, 16, 256, 3), 8, "m64n8k16.f32.f16.f16", "f32", ", 1, 1, 0", a_registers=loads)
    found = run(body, np.concatenate([given, fragments.ravel()]), threads=128, result=np.zeros((128, 4), np.uint32)).view(np.float32)
    expected = a @ b.T
    assert all(entry(found, r, c) == expected[r, c] for r in range(64) for c in range(8))


def products(**changes) -> dict:
    a, b = small((64, 32), "s8"), small((8, 32), "s8")
    image = np.concatenate([k_major(a, "s8", 128), k_major(b, "s8", 128)])
    descriptors = [descriptor(BASE + at, 16, 1024, 1) for at in (0, 8192)]
    body, given = wgmma(image, *descriptors, 8, "m64n8k32.s32.s8.s8", "s32", "", **changes)
    return {"body": body, "given": given, "threads": 128, "result": np.zeros((128, 4), np.uint32), "shared": len(image)}


def test_products_are_waited_for_before_their_sums_are_used():
    assert fault(**products(wait="")).kind == "pending"
    assert fault(**products(wait="wgmma.wait_group.sync.aligned 1;")).kind == "pending"
    run(**products())


def test_what_a_product_reads_is_not_written_before_it_is_waited_for():
    write = "bar.sync 0; st.shared.b32 [%r5], %r2;"
    assert fault(**products(wait=f"{write} wgmma.wait_group.sync.aligned 0;")).kind == "pending"
    run(**products(after=write))
    assert fault(**products(after=write.removeprefix("bar.sync 0;"))).kind == "race"


def test_what_threads_stored_reaches_the_matrix_unit_by_a_proxy_fence():
    assert fault(**products(before="")).kind == "fence"


def test_registers_are_fenced_before_a_product():
    assert fault(**products(fence="")).kind == "fence"
    assert fault(**products(fence="wgmma.fence.sync.aligned; mov.b32 %r100, 5;", adds=1)).kind == "fence"
    run(**products(fence="wgmma.fence.sync.aligned; mov.b32 %r99, 5;", adds=1))
    run(**products(adds=1, times=2))  # of one shape one after the other


def test_a_warp_group_has_one_descriptor():
    two = "cvt.u64.u32 %rd22, %r1; and.b64 %rd22, %rd22, 64; add.s64 %rd20, %rd20, %rd22; wgmma.fence.sync.aligned;"
    assert fault(**products(fence=two)).kind == "divergence"
    assert fault(**(products() | {"threads": 64, "result": np.zeros((64, 4), np.uint32)})).kind == "divergence"


# tcgen05: a product of 16-bit entries into tensor memory, by one thread; loads of 32 lanes by each of four warps.

TCGEN = """
	setp.lt.u32 %p1, %r1, 32;
	@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r4+{top}], 32;
	@%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
	setp.eq.u32 %p2, %r1, 0;
	@%p2 mbarrier.init.shared::cta.b64 [%r4+{bar}], 1;
	{proxy}
	bar.sync 0;
	ld.shared.b32 %r14, [%r4+{top}];
	shr.u32 %r15, %r1, 5;
	shl.b32 %r16, %r15, 21;
	add.s32 %r17, %r14, %r16;
	{store}
	bar.sync 0;
	tcgen05.fence::after_thread_sync;
	mov.b64 %rd20, {a};
	mov.b64 %rd21, {b};
	setp.ne.u32 %p5, {adds}, 0;
	@%p2 tcgen05.mma.cta_group::1.kind::f16 [%r14], %rd20, %rd21, {how}, %p5;
	@%p2 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r18];
	{wait}
	tcgen05.ld.sync.aligned.32x32b.x16.b32 {{{registers}}}, [%r17];
	{loaded}
	mul.wide.u32 %rd8, %r1, 64;
	add.s64 %rd9, %rd2, %rd8;
	{stores}
	bar.sync 0;
	@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r14, 32;
"""
WAIT = "$L__W: mbarrier.try_wait.parity.shared::cta.b64 %p6, [%r18], 0; @!%p6 bra $L__W;"


def blackwell(**changes) -> tuple[dict, np.ndarray]:
    kind = changes.pop("kind", "f16")
    a, b = small((128, 16), kind), small((16, 16), kind)
    image = np.concatenate([k_major(a, kind, 128), k_major(b, kind, 128)])
    registers = [f"%r{100 + i}" for i in range(16)]
    descriptors = [(BASE + at) >> 4 | 1 << 16 | 64 << 32 | 2 << 61 for at in (0, 128 * 128)]
    code = 1 if kind == "bf16" else 0
    how = 1 << 4 | code << 7 | code << 10 | (16 // 8) << 17 | (128 // 16) << 24
    ones = "".join(f"mov.b32 {r}, 0x3F800000;" for r in registers)
    parts = {
        "top": len(image), "bar": len(image) + 8, "proxy": "fence.proxy.async.shared::cta;", "a": descriptors[0], "b": descriptors[1], "how": how,
        "adds": 1, "wait": WAIT, "registers": ", ".join(registers), "loaded": "tcgen05.wait::ld.sync.aligned;",
        "store": f"{ones} tcgen05.st.sync.aligned.32x32b.x16.b32 [%r17], {{{', '.join(registers)}}}; tcgen05.wait::st.sync.aligned;",
        "stores": "".join(f"st.global.b32 [%rd9+{4 * i}], {r};" for i, r in enumerate(registers)),
    } | changes  # fmt: skip
    body = COPY.format(words=len(image) // 4) + f"add.s32 %r18, %r4, {len(image) + 8};" + TCGEN.format(**parts)
    options = {
        "body": body,
        "given": image.view(np.uint32),
        "threads": 128,
        "result": np.zeros((128, 16), np.uint32),
        "shared": len(image) + 16,
    }
    return options, a @ b.T


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("adds", [0, 1])
def test_products_into_tensor_memory(kind, adds):
    options, expected = blackwell(kind=kind, adds=adds)
    assert (run(**options).view(np.float32) == expected + adds).all()


def test_tensor_memory_is_waited_for():
    assert fault(**blackwell(wait="")[0]).kind == "pending"
    assert fault(**blackwell(loaded="")[0]).kind == "pending"
    options, _ = blackwell()
    assert fault(**(options | {"body": options["body"].replace("tcgen05.wait::st.sync.aligned;", "")})).kind == "pending"


def test_tensor_memory_has_bounds_and_an_owner():
    options, _ = blackwell()
    body = options["body"]
    assert fault(**(options | {"body": body.replace("shl.b32 %r16, %r15, 21", "shl.b32 %r16, %r15, 20")})).kind == "bounds"
    assert (
        fault(**(options | {"body": body.replace("add.s32 %r17, %r14, %r16;", "add.s32 %r17, %r14, %r16; add.s32 %r17, %r17, 20;")})).kind
        == "bounds"
    )
    assert fault(**(options | {"body": body.replace("@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r14, 32;", "")})).kind == "pending"
    assert fault(**(options | {"body": body.replace("@%p1 tcgen05.dealloc", "tcgen05.dealloc")})).kind == "divergence"
    assert fault(**blackwell(store="")[0]).kind == "uninitialized"
    assert fault(**blackwell(proxy="")[0]).kind == "fence"


def test_two_columns_of_halves_are_one_load():
    # 16x32bx2: lanes 0 to 15 of a quarter's first half at the column, the others' at the column plus the offset.
    options, expected = blackwell(adds=0)
    registers = ", ".join(f"%r{100 + i}" for i in range(8))
    body = options["body"]
    start = body.index("tcgen05.ld.sync")
    end = body.index("tcgen05.wait::ld")
    body = body[:start] + f"tcgen05.ld.sync.aligned.16x32bx2.x8.b32 {{{registers}}}, [%r17], 8;\n" + body[end:]
    body = body.replace("".join(f"st.global.b32 [%rd9+{4 * i}], %r{100 + i};" for i in range(8, 16)), "")
    found = run(**(options | {"body": body})).view(np.float32)
    for warp in range(4):
        for lane in range(32):
            half = 8 * (lane // 16)
            assert (found[32 * warp + lane, :8] == expected[32 * warp + lane % 16, half : half + 8]).all()
