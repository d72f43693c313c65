"""The ladder: solutions pass, stubs are told so, and each wrong answer gets the hint of its own mistake, as in the browser.

Everything runs on `minitriton`; a part of it in Triton's interpreter as well, which has to come to the same verdict.
"""

import importlib.util
import os
import re

import pytest

from tutorials import chapter_kernels, ladder

RUNGS = ladder.RUNGS


def solution(name):
    return chapter_kernels.solution(RUNGS[name].function)


#: Rung -> wrong answer -> (the solution's text, what stands there instead), and what the verdict and its hint have to say.
WRONG = {
    "copy": {
        "no program id": (("tl.program_id(0) * BLOCK + ", ""), "y: got", "every program copies the first block"),
        "program id alone": (("tl.program_id(0) * BLOCK", "tl.program_id(0)"), "y: got", "program p begins at entry p"),
        "offsets stored": (("tl.load(x + offsets)", "offsets"), "y: got", "y holds the offsets"),
        "into x": (("tl.store(y", "tl.store(x"), "program 0 stores into x, an input, line 4", None),
        "a subscript": (("tl.load(x + offsets)", "x[offsets]"), "it raised TypeError in line 4", None),
    },
    "scale": {
        "no scale": ((" * tl.load(scale + row)", ""), "y: got", "the codes are not scaled"),
        "the first scale": (("scale + row", "scale"), "y: got", "every row gets the first scale"),
        "one per column": (("scale + row", "scale + tl.arange(0, BLOCK_K)"), "program 0 loads offset", "a row has one scale"),
        "divided": (("values * tl.load", "values / tl.load"), "y: got", "multiply by it instead of dividing"),
    },
    "masked-copy": {
        "load not masked": ((", mask=inside, other=0.0", ""), "program 0 loads offset 3 of x", "the load reads beyond column K"),
        "store not masked": (("values, mask=inside", "values"), "program 0 stores offset 3 of y", "the store writes beyond column K"),
        "stride of y": (("row * K", "row * stride"), "program 1 stores offset", "y is packed"),
        "K for x": (("x + row * stride", "x + row * K"), "y: got", "rows of x are `stride` apart"),
    },
    "row-maximum": {
        "no magnitude": (("tl.abs(values)", "values"), "absmax: got", "tl.max(tl.abs(values)) the largest magnitude"),
        "magnitude last": (
            ("tl.max(tl.abs(values), axis=0)", "tl.abs(tl.max(values, axis=0))"),
            "absmax: got", "take the magnitudes first",
        ),
        "no mask": ((", mask=columns < K, other=0.0", ""), "absmax: got", "the load reads beyond column K"),
        "K for x": (("row * stride", "row * K"), "absmax: got", "rows of x are `stride` apart"),
        "a sum": (("tl.max(", "tl.sum("), "absmax: got", "tl.max, not tl.sum"),
    },
    "rounding": {
        "truncation": (("(values + 12582912.0) - 12582912.0", "values"), "codes: got", "truncation"),
        "2 ** 23": (("12582912.0) - 12582912.0", "8388608.0) - 8388608.0"), "codes: got", "2**23 alone works above zero"),
        "plus a half": (("(values + 12582912.0) - 12582912.0", "values + 0.5"), "codes: got", "adding 0.5 and cutting off"),
        "away from zero": (
            ("(values + 12582912.0) - 12582912.0", "values + tl.where(values < 0, -0.5, 0.5)"),
            "codes: got", "halves are rounded away from zero",
        ),
    },
    "quantize-rows": {
        "truncation": (("(values * inverse + 12582912.0) - 12582912.0", "values * inverse"), "codes: got", "truncation"),
        "stride of codes": (("codes + row * K", "codes + row * stride"), "stores offset", "codes is packed"),
        "no guard": (("absmax >= 2.0**-100", "absmax >= 0.0"), ": got", "is a zero row"),
        "largest value": (("tl.max(tl.abs(values)", "tl.max((values)"), ": got", "tl.max(tl.abs(values)) the largest magnitude"),
        "reciprocal": (("tl.math.div_rn(safe, 127.0)", "tl.math.div_rn(127.0, safe)"), "scale: got", "not its reciprocal"),
    },
    "tile": {
        "transposed": (("tl.dot(left, right.T", "tl.dot(right, left.T"), "y: got", "y is transposed"),
        "stride of a": (("rows[:, None] * stride_a", "rows[:, None] * BLOCK_K"), "y: got", "rows of a are stride_a apart"),
        "stride of b": (("rows[:, None] * stride_b", "rows[:, None] * BLOCK_K"), "y: got", "rows of b are stride_b apart, not BLOCK_K"),
        "stride of a for b": (("rows[:, None] * stride_b", "rows[:, None] * stride_a"), "y: got", "not stride_a"),
        "rows of y": (("y + rows[:, None] * BLOCK ", "y + rows[:, None] * BLOCK_K "), "program 0 stores offset", "y is packed"),
        "not transposed": (("right.T", "right"), "it raised ValueError in line", None),
    },
    "k-loop": {
        "K not masked": (("ks < K", "ks < K + 32"), "y: got", "the last block of K reads past the row"),
        "one block": (("range(0, K, BLOCK_K)", "range(0, BLOCK_K, BLOCK_K)"), "y: got", "only the first block of K"),
        "not added": (("right.T, acc,", "right.T,"), "y: got", "only the last block of K is left"),
        "int16": (("out_dtype=tl.int32)", "out_dtype=tl.int32).to(tl.int16).to(tl.int32)"), "y: got", "the accumulator is int16"),
        "y by rows": (
            ("mask=in_m[:, None] & in_n[None, :]", "mask=in_m[:, None] & (columns >= 0)[None, :]"),
            "stores offset", "beyond column N",
        ),
        "y by columns": (
            ("mask=in_m[:, None] & in_n[None, :]", "mask=(rows >= 0)[:, None] & in_n[None, :]"),
            "stores offset", "beyond row M",
        ),
        "rows of a": (("in_m[:, None] & (ks", "(rows >= 0)[:, None] & (ks"), "loads offset", "the load of a reads beyond row M"),
        "rows of b": (("in_n[:, None] & (ks", "(columns >= 0)[:, None] & (ks"), "loads offset", "the load of b reads beyond row N"),
    },
    "epilogue": {
        "no scale_a": (("* sa[:, None]", ""), "y: got", "scale_a is missing"),
        "no scale_b": (("* sb[None, :]", ""), "y: got", "scale_b is missing"),
        "stride M": (("rows[:, None] * N", "rows[:, None] * M"), "stores offset", "rows of y are N apart"),
        "float32": (
            (
                "acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)",
                "acc = (acc.to(tl.float32) + tl.dot(left, right.T)).to(tl.int32)",
            ),
            "y: got", "the accumulator is float32",
        ),
    },
    "outlier-loop": {
        "no outliers": ((" + part * sb[None, :]", ""), "y: got", "the outlier columns are missing"),
        "not scaled": (("part * sb[None, :]", "part"), "y: got", "lacks scale_b"),
        "scaled twice": (("part * sb[None, :]", "part * sa[:, None] * sb[None, :]"), "y: got", "scaled by scale_a as well"),
        "column o": (("k = tl.load(outliers + o)", "k = o"), "y: got", "column o is not the o-th outlier column"),
        "the whole list": (("range(count)", "range(K)"), "y: got", "its length stands behind it"),
        "count first": (("outliers + K", "outliers"), "y: got", "the count stands behind the list"),
        "x not masked": (
            ("x + rows * K + k, mask=in_m, other=0.0", "x + rows * K + k"),
            "loads offset", "the load of x reads beyond row M",
        ),
    },
}  # fmt: skip
EVERY = [(name, how) for name, answers in WRONG.items() for how in answers]


def wrong_text(name, how):
    (old, new), *_ = WRONG[name][how]
    text = solution(name)
    assert old in text, f"{old!r} is not in the solution of {name}"
    return text.replace(old, new)


def told(message):
    found = re.search(r"^Hint: (.*)", message, re.MULTILINE)
    return found and found[1]


def judged(name, how, passed, message):
    _, fault, hint = WRONG[name][how]
    assert not passed
    assert fault in message, message
    if hint is None:
        assert told(message) is None, message
    else:
        assert hint in (told(message) or ""), message


def test_there_are_ten_rungs_in_the_order_of_the_course():
    assert list(RUNGS) == [
        "copy", "scale", "masked-copy", "row-maximum", "rounding", "quantize-rows", "tile", "k-loop", "epilogue", "outlier-loop",
    ]  # fmt: skip
    assert set(WRONG) == set(RUNGS)
    assert len({rung.function for rung in RUNGS.values()}) == 10


@pytest.mark.parametrize("name", RUNGS)
def test_the_solution_passes_and_its_record_shows_what_is_wanted(name):
    found = ladder.attempt(name, solution(name))
    assert found["passed"], found["text"]
    record = found["record"]
    assert record["error"] is None
    results = [(n, buffer) for n, buffer in enumerate(record["buffers"]) if "wanted" in buffer]
    assert results
    for n, buffer in results:
        values = list(buffer["values"])
        for access in (
            access for step in record["steps"] for access in step.get("accesses", ()) if access["stores"] and access["buffer"] == n
        ):
            lanes = [offset for offset, bit in zip(access["offsets"], access["mask"], strict=True) if bit == "1"]
            for offset, value in zip(lanes, access["values"], strict=True):
                values[offset] = value
        assert values == buffer["wanted"]


@pytest.mark.parametrize("name", RUNGS)
def test_a_stub_is_not_yet_an_answer_and_has_the_rung_s_signature(name):
    stub = chapter_kernels.stub(RUNGS[name].function)
    found = ladder.attempt(name, stub)
    assert not found["passed"]
    if RUNGS[name].function in chapter_kernels.BEGUN:
        assert "the outlier columns are missing" in told(found["text"])
    else:
        assert found["text"] == f"not yet: {RUNGS[name].function} stores nothing. Write it, then run it again."
        assert stub.partition("):")[0] == solution(name).partition("):")[0]


@pytest.mark.parametrize(("name", "how"), EVERY)
def test_a_wrong_answer_is_told_of_its_own_mistake(name, how):
    found = ladder.attempt(name, wrong_text(name, how))
    judged(name, how, found["passed"], found["text"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def my_copy(x, y, BLOCK:\n", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def my_copy(x, y, BLOCK): pass", "my_copy is no kernel: keep its name, and @triton.jit above it."),
        ("@triton.jit\ndef my_copie(x, y, BLOCK: tl.constexpr): pass", "my_copy is no kernel"),
        ("@triton.jit\ndef my_copy(x, y, BLOCK: tl.constexpr):\n    tl.atomic_add(y, 1.0)\n", "tl.atomic_add is not among what runs here"),
        ("@triton.jit\ndef my_copy(x, y):\n    pass\n", "my_copy"),
    ],
)
def test_what_is_no_kernel_is_said_to_be_none(text, said):
    found = ladder.attempt("copy", text)
    assert not found["passed"]
    assert said in found["text"]


def test_what_a_wrong_kernel_did_is_shown_until_it_was_stopped():
    record = ladder.attempt("masked-copy", wrong_text("masked-copy", "load not masked"))["record"]
    assert record["error"].startswith("program 3 loads offset")  # the last row: x ends with its last entry
    assert record["steps"][-1]["program"] == [3]


# In Triton's interpreter


@pytest.fixture(scope="module")
def in_triton(tmp_path_factory):
    """text, name -> a kernel of Triton, which reads its source from a file."""
    pytest.importorskip("triton")
    import fast.kernels  # noqa: F401, which makes up for what Triton 3.6's interpreter lacks

    folder, made = tmp_path_factory.mktemp("ladder"), []

    def make(text, name):
        path = folder / f"rung_{len(made)}.py"
        path.write_text(f"import triton\nimport triton.language as tl\n\n\n{text}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made.append(module)
        return getattr(module, name)

    return make


interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="accesses are seen in Triton's interpreter alone")


@interpreted
@pytest.mark.parametrize("name", RUNGS)
def test_the_solution_passes_in_triton(in_triton, name):
    verdict = RUNGS[name].check(in_triton(solution(name), RUNGS[name].function))
    assert verdict.passed, verdict.message


@interpreted
@pytest.mark.parametrize(("name", "how"), [(name, how) for name, answers in WRONG.items() for how in list(answers)[:4]])
def test_triton_comes_to_the_same_verdict(in_triton, name, how):
    text = wrong_text(name, how)
    verdict = RUNGS[name].check(in_triton(text, RUNGS[name].function))
    judged(name, how, verdict.passed, verdict.message.replace(" in line 8", " in line 4").replace(", line 8", ", line 4"))
    mine = ladder.attempt(name, text)["text"]
    lines = [re.sub(r"line \d+", "line", line) for line in (mine, verdict.message)]
    if "it raised" not in mine:  # Triton's own words about its own errors
        assert lines[0] == lines[1]
