"""The exercises' checkers (tutorials/checks): right answers pass, each known mistake is refused by name."""

import ast
import importlib.util
import re
import sys

import numpy as np
import pytest
import torch

jupytext, triton, tl = map(pytest.importorskip, ("jupytext", "triton", "triton.language"))
pytest.importorskip("nbclient")

import fast
import reference
from reference import features
from tutorials import build, checks
from tutorials.checks import comparing, kernel_checks
from tutorials.checks.chapter_01_absmax import ZERO_HINT
from tutorials.checks.chapter_04_outliers import stacks
from tutorials.checks.chapter_07_quantize_kernel import rows_of_codes
from tutorials.checks.chapter_08_product_kernel import scaled_product
from tutorials.checks.chapter_10_layer import whole_layer
from tutorials.checks.engine import F32

EXERCISES = {
    "float16": checks.float16,
    "absmax": checks.absmax,
    "zeropoint": checks.zeropoint,
    "vectorwise": checks.vectorwise,
    "outlier_features": checks.outlier_features,
    "decomposition": checks.decomposition,
    "outlier_part": checks.outlier_part,
    "program": checks.program,
    "layer": whole_layer,
    "layer_bytes": checks.layer_bytes,
    "quantize_rows": rows_of_codes,
    "product": scaled_product,
}
MISTAKES = [(name, hint, mistake) for name, exercise in EXERCISES.items() for hint, mistake in exercise.mistakes]

CALL = re.compile(r"^((?:kernel_)?checks\.\w+)\((my_\w+)\)$", re.MULTILINE)
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
IMPORTS = """import numpy as np
import triton
import triton.language as tl
import reference
from tutorials import checks
from tutorials.checks import kernel_checks


"""


def exercises():
    """(chapter, the cell with the stub, the folded solution) of every exercise of the scripts."""
    for script in build.scripts([]):
        cells = jupytext.read(script, fmt="py:percent").cells
        stubs = [cell.source for cell in cells if cell.cell_type == "code" and CALL.search(cell.source)]
        solutions = [match[1] for cell in cells if cell.cell_type == "markdown" for match in SOLUTION.finditer(cell.source)]
        stubs = [stub for stub in stubs if "NotImplemented" in stub or re.search(r"^    pass$", stub, re.MULTILINE)]
        yield from ((script.stem[:2], stub, solution) for stub, solution in zip(stubs, solutions, strict=True))


ALL = list(exercises())


def verdict_of(code, call, folder):
    """What the checker says of the answer in `code`; from a file, since Triton reads the source of a kernel."""
    checker, answer = call
    path = folder / "answer.py"
    tail = "" if re.search(rf"^(def )?{answer}\b", code, re.MULTILINE) else f"{answer} = my_load, my_infer\n"
    path.write_text(f"{IMPORTS}{code}\n\n{tail}verdict = {checker}({answer})\n")
    spec = importlib.util.spec_from_file_location("answer", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["answer"] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["answer"]
    return module.verdict


def test_every_chapter_has_an_exercise():
    assert {chapter for chapter, _, _ in ALL} == {script.stem[:2] for script in build.scripts([])}


def test_the_exercises_cover_the_method():
    assert {CALL.search(stub)[1].partition(".")[2] for _, stub, _ in ALL} == set(EXERCISES)


@pytest.mark.parametrize(("chapter", "stub", "solution"), ALL, ids=[f"{c}-{CALL.search(s)[2]}" for c, s, _ in ALL])
def test_the_folded_solution_passes(chapter, stub, solution, tmp_path):
    verdict = verdict_of(solution, CALL.search(stub).groups(), tmp_path)
    assert verdict.passed, verdict.message
    assert verdict.message.startswith("right: ")


@pytest.mark.parametrize(("chapter", "stub", "solution"), ALL, ids=[f"{c}-{CALL.search(s)[2]}" for c, s, _ in ALL])
def test_a_stub_is_not_yet_an_answer(chapter, stub, solution, tmp_path):
    verdict = verdict_of(CALL.sub("", stub), CALL.search(stub).groups(), tmp_path)
    assert not verdict.passed
    assert verdict.message.startswith("not yet: ")


@pytest.mark.parametrize(("name", "hint", "mistake"), MISTAKES, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(MISTAKES)])
def test_a_known_mistake_is_refused_by_its_name(name, hint, mistake):
    verdict = EXERCISES[name](mistake)
    assert not verdict.passed
    assert verdict.message.endswith(f"Hint: {hint}")


@pytest.mark.parametrize("name", EXERCISES)
def test_the_right_answer_passes_on_every_case(name):
    assert EXERCISES[name](EXERCISES[name].right).passed


def _torch(function):
    """An answer that computes with `fast` instead of `reference`, an implementation of its own."""

    def answer(*arrays):
        with fast.backend("cpu"):
            result = function(*(torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in arrays))
        return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()

    return answer


@pytest.mark.parametrize(
    ("exercise", "function"),
    [
        (checks.absmax, fast.absmax_quantize),
        (checks.zeropoint, fast.zeropoint_quantize),
        (checks.vectorwise, fast.quantized_matmul),
        (checks.decomposition, fast.llm_int8_matmul),
        (whole_layer, lambda w, x: fast.Int8Linear.from_float(w)(x)),
    ],
    ids=["absmax", "zeropoint", "vectorwise", "decomposition", "layer"],
)
def test_another_right_implementation_passes(exercise, function):
    verdict = exercise(_torch(function))
    assert verdict.passed, verdict.message


def truncated(x):
    scale = np.abs(x).max() / F32(127)
    return (x * (F32(1) / np.abs(x).max() * F32(127))).astype(np.int8), scale


def test_the_counterexample_is_as_small_as_it_gets():
    def wrong_from_3_by_4(x):
        codes, scale = reference.absmax_quantize(x)
        return -codes if x.shape[0] >= 3 and x.shape[1] >= 4 else codes, scale

    x = ast.literal_eval(re.search(r"x = np.array\((\[\[.*\]\]), np.float32\)\n", checks.absmax(wrong_from_3_by_4).message)[1])
    assert np.shape(x) == (3, 4)


def test_a_mistake_is_not_named_if_it_explains_the_input_shown_and_few_others():
    # Truncation, and no guard for the zero slice: the zero slice is the smaller input, and nearly all others are the truncation's.
    message = checks.absmax(truncated).message
    assert "x = np.array([[2.0**-101]], np.float32)" in message
    assert "Hint" not in message
    hints = dict((mistake, hint) for hint, mistake in checks.absmax.mistakes)
    here = np.array([[2.0**-101]], F32)
    assert any(hint == ZERO_HINT and comparing.same(mistake(here), truncated(here)) for mistake, hint in hints.items())


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda x: 1 / 0, "it raised ZeroDivisionError"),
        (lambda x: x, "it returned 1 value; expected 2: codes, scale"),
        (lambda x: (x, x, x), "it returned 3 values; expected 2: codes, scale"),
        (lambda x: (x, F32(1)), "codes has dtype float32; expected int8"),
        (lambda x: (np.zeros(3, np.int8), F32(1)), "codes has shape (3,); expected (1, 1)"),
        (lambda x: (reference.absmax_quantize(x).codes, float(np.abs(x).max() / 127)), "scale has dtype float64; expected float32"),
        (lambda x: (reference.absmax_quantize(x).codes, F32(np.nan)), "scale: got"),
        (lambda x: None, "it returned 1 value"),
    ],
)
def test_an_answer_of_another_kind_is_told_what_is_expected(answer, complaint):
    verdict = checks.absmax(answer)
    assert not verdict.passed
    assert complaint in verdict.message


def test_a_plain_number_may_stand_for_a_scale():
    def scalar(x):
        codes, scale = reference.absmax_quantize(x)
        return codes, F32(scale.item())

    assert checks.absmax(scalar).passed


def test_an_answer_that_writes_into_its_input_changes_no_verdict():
    def writes(x, w):
        y = reference.quantized_matmul(x, w)
        x[:] = 0
        return y

    assert checks.vectorwise(writes).passed


def test_a_code_off_by_one_at_a_tie_is_noticed():
    def half_up(x):
        codes, scale = reference.absmax_quantize(x)
        tie = np.abs(x * (F32(1) / np.abs(x).max() * F32(127)) % 1) == 0.5 if scale else np.zeros(x.shape, np.bool_)
        return (codes + tie).astype(np.int8), scale

    assert not checks.absmax(half_up).passed


def test_an_error_beyond_the_bound_of_a_product_is_noticed_and_one_within_is_not():
    def off(factor):
        return lambda x, w: reference.quantized_matmul(x, w) * F32(factor)

    assert checks.vectorwise(off(1 + 2.0**-23)).passed  # two roundings
    assert not checks.vectorwise(off(1 + 2.0**-20)).passed


def test_a_layer_that_keeps_the_float_weight_is_noticed():
    verdict = checks.layer((lambda w: (w, np.ones((len(w), 1), F32)), lambda x, codes, scale: x @ codes.T))
    assert not verdict.passed
    assert "load keeps 32 bytes of a 2 x 3 weight" in verdict.message


def test_the_criterion_is_not_met_by_large_noise_in_one_layer():
    activations = np.zeros((8, 50, 1), F32)
    activations[0] = 9
    assert not features.outlier_features(activations).any()
    assert any(np.array_equal(case[0], activations) for case in stacks())


# Kernels: the mistakes again, made by real kernels, so that the NumPy models of them in tutorials/checks are right.


@triton.jit
def broken_rows(x, codes, scale, K, stride, BLOCK_K: tl.constexpr, HOW: tl.constexpr):
    """The row kernel of chapter 07 with the mistake HOW."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    inside = columns < K
    start = x + row * (K if HOW == "stride" else stride)
    values = tl.load(start + columns) if HOW == "mask" else tl.load(start + columns, mask=inside, other=0.0)
    absmax = tl.max(values, axis=0) if HOW == "sign" else tl.max(tl.abs(values), axis=0)
    usable = absmax >= 2.0**-100
    safe = tl.where(usable, absmax, 1.0)
    inverse = tl.where(usable, tl.math.div_rn(1.0, safe) * 127.0, 0.0)
    steps = values * inverse if HOW == "truncation" else (values * inverse + 12582912.0) - 12582912.0
    tl.store(codes + row * K + columns, steps.to(tl.int8), mask=inside | (columns >= K) if HOW == "store" else inside)
    tl.store(scale + row, tl.where(usable, tl.math.div_rn(safe, 127.0), 0.0))


@triton.jit
def broken_product(a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, HOW: tl.constexpr):
    """The product kernel of chapter 08 with the mistake HOW."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ks = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK, BLOCK), tl.int32)
    for k in range(0, BLOCK_K if HOW == "first block" else K, BLOCK_K):
        in_k = k + ks < K + (BLOCK_K if HOW == "mask" else 0)
        left = tl.load(a + rows[:, None] * stride_a + k + ks[None, :], mask=(rows < M)[:, None] & in_k[None, :], other=0)
        right = tl.load(b + columns[:, None] * stride_b + k + ks[None, :], mask=(columns < N)[:, None] & in_k[None, :], other=0)
        acc = tl.dot(left, right.T, None if HOW == "last block" else acc, out_dtype=tl.int32)
    result = acc.to(tl.float32)
    if HOW != "scale_a":
        result *= tl.load(scale_a + rows, mask=rows < M, other=0.0)[:, None]
    if HOW != "scale_b":
        result *= tl.load(scale_b + columns, mask=columns < N, other=0.0)[None, :]
    tl.store(y + rows[:, None] * N + columns[None, :], result, mask=(rows < M)[:, None] & (columns < N)[None, :])


class Broken:
    """A kernel whose mistake is chosen before the checker launches it."""

    def __init__(self, kernel, how):
        self.kernel, self.how = kernel, how

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.kernel[grid](*arguments, HOW=self.how, **options)


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        ("truncation", "Hint: truncation"),
        ("sign", "Hint: tl.max(values) is the largest value"),
        ("mask", "Hint: the load reads beyond column K"),
        ("stride", "Hint: rows of x are `stride` apart"),
        ("store", "Hint: the store of codes writes beyond column K"),
    ],
)
def test_a_broken_row_kernel_is_told_what_is_broken(how, hint):
    verdict = kernel_checks.quantize_rows(Broken(broken_rows, how))
    assert not verdict.passed
    assert hint in verdict.message


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        ("mask", "Hint: the last block of K reads past the row"),
        ("first block", "Hint: only the first block of K was added"),
        ("last block", "Hint: only the last block of K is left"),
        ("scale_a", "Hint: scale_a is missing"),
        ("scale_b", "Hint: scale_b is missing"),
    ],
)
def test_a_broken_product_kernel_is_told_what_is_broken(how, hint):
    verdict = kernel_checks.product(Broken(broken_product, how))
    assert not verdict.passed
    assert hint in verdict.message


@pytest.mark.parametrize(("checker", "kernel"), [(kernel_checks.quantize_rows, broken_rows), (kernel_checks.product, broken_product)])
def test_the_kernel_without_the_mistake_passes(checker, kernel):
    verdict = checker(Broken(kernel, "not at all"))
    assert verdict.passed, verdict.message
