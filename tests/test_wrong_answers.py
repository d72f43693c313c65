"""Wrong answers to the exercises, as readers give them: each is refused, and told of the mistake that it makes and of no other.

An answer here is written as a reader writes it, from the formula, and not as the checkers model the mistake.
"""

import re

import numpy as np
import pytest

import reference
from tutorials import checks

F32 = np.float32
TINY = 2.0**-100


# ----------------------------------------------------------------------------------------------------------- 01


def absmax(codes=None, top=lambda x: np.abs(x).max(), scale=lambda t: t / F32(127), guard=True, zero=np.int8, order=lambda q, s: (q, s)):
    """The answer to 01 with some of its parts replaced."""
    codes = codes or (lambda x, t: np.rint(x * ((F32(1) / t) * F32(127))).astype(np.int8))

    def my_absmax(x):
        t = top(x)
        if guard and t < TINY:
            return order(np.zeros(x.shape, zero), F32(0))
        return order(codes(x, t), scale(t))

    return my_absmax


def inverse(t):
    return (F32(1) / t) * F32(127)


ABSMAX = {
    "no cast": (absmax(lambda x, t: np.rint(x * inverse(t))), "codes has dtype float32; expected int8", "round with np.rint, then cast"),
    "float codes for zeros": (absmax(zero=np.float32), "codes has dtype float32; expected int8", "round with np.rint, then cast"),
    "a list": (
        absmax(lambda x, t: [[round(float(v)) for v in row] for row in x * inverse(t)]),
        "codes is of type list; expected an array of int8",
        "return a NumPy array",
    ),
    "uint8": (absmax(lambda x, t: np.rint(x * inverse(t)).astype(np.int16).astype(np.uint8)), "dtype uint8", "uint8 holds 0 to 255"),
    "int32": (absmax(lambda x, t: np.rint(x * inverse(t)).astype(np.int32)), "codes has dtype int32", "cast with .astype(np.int8)"),
    "float64 scale": (absmax(scale=lambda t: float(t) / 127), "scale has dtype float64; expected float32", "Compute in float32"),
    "other order": (absmax(order=lambda q, s: (s, q)), "the results are in another order", "write `return codes, scale`"),
    "a list of results": (absmax(order=lambda q, s: [q, s]), "it returned a list; expected a tuple", "write `return codes, scale`"),
    "codes alone": (absmax(order=lambda q, s: q), "it returned 1 value; expected 2: codes, scale", None),
    "reciprocal": (absmax(scale=lambda t: F32(127) / t), "scale: got", "127 / absmax is its reciprocal"),
    "absmax as scale": (absmax(scale=lambda t: t), "scale: got", "the largest magnitude has 127 of them"),
    "truncation": (absmax(lambda x, t: (x * inverse(t)).astype(np.int8)), "codes: got", "truncation"),
    "floor": (absmax(lambda x, t: np.floor(x * inverse(t)).astype(np.int8)), "codes: got", "np.floor rounds down"),
    "half away": (
        absmax(lambda x, t: (np.sign(x) * np.floor(np.abs(x * inverse(t)) + F32(0.5))).astype(np.int8)),
        "codes: got",
        "halves away from zero",
    ),
    "x / scale": (absmax(lambda x, t: np.rint(x / (t / F32(127))).astype(np.int8)), "codes: got", "x / scale lands"),
    "x * 127 / absmax": (absmax(lambda x, t: np.rint(x * 127 / t).astype(np.int8)), "codes: got", "x * 127 / absmax lands"),
    "127 / absmax": (absmax(lambda x, t: np.rint(x * (F32(127) / t)).astype(np.int8)), "codes: got", "127 / absmax is a true division"),
    "128": (
        absmax(lambda x, t: np.clip(np.rint(x * ((F32(1) / t) * F32(128))), -128, 127).astype(np.int8), scale=lambda t: t / F32(128)),
        ": got",
        "you scale to 128",
    ),
    "signed maximum": (absmax(top=lambda x: x.max()), ": got", "you took the largest value"),
    "no guard": (absmax(guard=False), ": got", "below 2**-100"),
    "float16": (lambda x: absmax()(x.astype(np.float16).astype(F32)), ": got", "you narrowed x to float16"),
    "by rows": (lambda x: tuple(reference.absmax_quantize(x, axis=-1)), "scale has shape", "one scale per row is chapter 03"),
    "truncation without a guard": (absmax(lambda x, t: (x * inverse(t)).astype(np.int8), guard=False), "codes: got", None),
}


# ----------------------------------------------------------------------------------------------------------- 02


def zeropoint(codes=None, low=-128, steps=255, with_zero=True, guard=True, zero=None, inverse=None, cast=np.int8):
    """The answer to 02 with some of its parts replaced."""
    codes = codes or (lambda x, i, z: np.clip(np.rint(x * i) + z, low, 127))
    zero = zero or (lambda lo, i: np.clip(np.rint(F32(low) - lo * i), low, 127))
    inverse = inverse or (lambda extent: (F32(1) / extent) * F32(steps))

    def my_zeropoint(x):
        lo, hi = (min(x.min(), F32(0)), max(x.max(), F32(0))) if with_zero else (x.min(), x.max())
        if guard and hi - lo < TINY:
            return np.zeros(x.shape, cast), F32(0), np.int32(0)
        i = inverse(hi - lo)
        z = zero(lo, i)
        q = codes(x, i, z)
        return q.astype(np.int32).astype(cast), (hi - lo) / F32(steps), np.array([[z]]).astype(np.int32)

    return my_zeropoint


ZEROPOINT = {
    "truncation": (zeropoint(lambda x, i, z: np.clip(np.trunc(x * i) + z, -128, 127)), "codes: got", "truncation"),
    "the sum rounded": (zeropoint(lambda x, i, z: np.clip(np.rint(x * i + z), -128, 127)), "codes: got", "you rounded the sum"),
    "one division": (zeropoint(inverse=lambda extent: F32(255) / extent), ": got", "255 / (hi - lo) is a true division"),
    "254 steps": (zeropoint(low=-127, steps=254), ": got", "the paper's formula"),
    "no clip": (zeropoint(lambda x, i, z: np.rint(x * i) + z), "codes: got", "without a clip"),
    "no zero in the range": (zeropoint(with_zero=False), ": got", "the range has to hold zero"),
    "not shifted": (zeropoint(lambda x, i, z: np.clip(np.rint(x * i), -128, 127)), "codes: got", "you left the zero point out"),
    "shifted the other way": (
        zeropoint(zero=lambda lo, i: np.clip(np.rint(F32(-128) + lo * i), -128, 127)),
        ": got",
        "the sign in the zero point",
    ),
    "zero point negated": (
        lambda x: (lambda q, s, z: (q, s, -z))(*zeropoint()(x)),
        "zero_point: got",
        "the sign of the zero point",
    ),
    "uint8": (
        zeropoint(lambda x, i, z: np.clip(np.rint(x * i) + z, 0, 255), zero=lambda lo, i: np.rint(-lo * i), cast=np.uint8),
        "codes has dtype uint8",
        "uint8 holds 0 to 255",
    ),
    "no guard": (zeropoint(guard=False), ": got", "below 2**-100"),
    "other order": (
        lambda x: (lambda q, s, z: (q, z, s))(*zeropoint()(x)),
        "the results are in another order",
        "return codes, scale, zero_point",
    ),
}


# ----------------------------------------------------------------------------------------------------------- 03


def by_rows(a):
    top = np.abs(a).max(axis=1, keepdims=True)
    safe = np.where(top < TINY, F32(1), top)
    codes = np.where(top < TINY, 0, np.rint(a * ((F32(1) / safe) * F32(127)))).astype(np.int8)
    return codes, np.where(top < TINY, F32(0), safe / F32(127))


def vectorwise(rescale=lambda acc, sx, sw: acc.astype(F32) * sx * sw.T, wide=np.int32):
    """The answer to 03 with another epilogue, or another accumulator."""

    def my_vectorwise(x, w):
        (xq, sx), (wq, sw) = by_rows(x), by_rows(w)
        return rescale(xq.astype(wide) @ wq.astype(wide).T, sx, sw)

    return my_vectorwise


def dequantized_first(x, w):
    (xq, sx), (wq, sw) = by_rows(x), by_rows(w)
    return (xq * sx) @ (wq * sw).T


VECTORWISE = {
    "int8": (vectorwise(wide=np.int8), "y: got", "the product ran in int8"),
    "int16": (vectorwise(wide=np.int16), "y: got", "the sums ran in int16"),
    "float64": (vectorwise(lambda acc, sx, sw: acc * sx.astype(float) * sw.T), "y has dtype float64", "Compute in float32"),
    "int32 times float32": (vectorwise(lambda acc, sx, sw: acc * sx * sw.T), "y has dtype float64", "acc.astype(np.float32)"),
    "dequantized first": (dequantized_first, "y: got", "you dequantized both sides"),
    "no scales": (vectorwise(lambda acc, sx, sw: acc.astype(F32)), "y: got", "the scales are missing"),
    "no scale of w": (vectorwise(lambda acc, sx, sw: acc.astype(F32) * sx), "y: got", "the scales of w are missing"),
    "no scale of x": (vectorwise(lambda acc, sx, sw: acc.astype(F32) * sw.T), "y: got", "the scales of x are missing"),
    "scales of w not transposed": (vectorwise(lambda acc, sx, sw: acc.astype(F32) * sx * sw), "y has shape", "transpose them, scale_w.T"),
    "scales of x transposed": (vectorwise(lambda acc, sx, sw: acc.astype(F32) * sx.T * sw.T), "y has shape", "no transpose there"),
    "scales exchanged": (vectorwise(lambda acc, sx, sw: acc.astype(F32) * sx.T * sw), "y has shape", "along the wrong axis"),
    "largest magnitudes": (
        vectorwise(lambda acc, sx, sw: acc.astype(F32) * (F32(127) * sx) * (F32(127) * sw.T)),
        "y: got",
        "you multiplied by the largest magnitudes",
    ),
    "transposed": (lambda x, w: vectorwise()(x, w).T, "y has shape", "that is y transposed"),
    "by row": (lambda x, w: reference.quantized_matmul(x, w, "row"), "y: got", '"row"'),
    "by tensor": (lambda x, w: reference.quantized_matmul(x, w, "tensor"), "y: got", '"tensor"'),
    "not quantized": (lambda x, w: x @ w.T, "y: got", "that is the float product"),
}


# ----------------------------------------------------------------------------------------------------------- 04


def criterion(large=lambda a: np.abs(a) >= 6, layers=0, positions=0, both=np.logical_and, share=np.mean, at_least=np.greater_equal):
    """The answer to 04 with some of its parts replaced."""

    def my_outlier_features(activations):
        big = large(activations)
        of_layers = share(big.any(axis=1 - layers), axis=0)
        at_positions = share(big.any(axis=positions), axis=0)
        return both(at_least(of_layers, 0.25), at_least(at_positions, 0.06))

    return my_outlier_features


CRITERION = {
    "sum": (criterion(share=np.sum), "mask: got", "a share is a mean"),
    "indices": (lambda a: np.flatnonzero(criterion()(a)), "mask has dtype int64; expected bool", "return the mask itself"),
    "axes exchanged": (criterion(layers=1, positions=1), "mask: got", "the two axes are exchanged"),
    "greater": (criterion(lambda a: np.abs(a) > 6), "mask: got", ">=, not >"),
    "signed": (criterion(lambda a: a >= 6), "mask: got", "an entry of -6 counts"),
    "shares greater": (criterion(at_least=np.greater), "mask: got", "use >= for both shares"),
    "or": (criterion(both=np.logical_or), "mask: got", "both limits have to be met"),
    "positions alone": (lambda a: (np.abs(a) >= 6).any(0).mean(0) >= 0.06, "mask: got", "the layers are missing"),
    "layers alone": (lambda a: (np.abs(a) >= 6).any(1).mean(0) >= 0.25, "mask: got", "the positions are missing"),
    "pairs": (
        lambda a: ((np.abs(a) >= 6).any(1).mean(0) >= 0.25) & ((np.abs(a) >= 6).mean((0, 1)) >= 0.06),
        "mask: got",
        "the share of all (layer, position) pairs",
    ),
    "float mask": (lambda a: criterion()(a).astype(F32), "mask has dtype float32; expected bool", None),
}


# ----------------------------------------------------------------------------------------------------------- 05


def decomposed(find=lambda x, t: (np.abs(x) >= t).any(axis=0), regular=None, outliers=None):
    """The answer to 05 with some of its parts replaced."""
    regular = regular or (lambda x, w, o: vectorwise()(np.where(o, F32(0), x), w))
    outliers = outliers or (lambda x, w, o: x[:, o] @ w[:, o].T)

    def my_llm_int8(x, w, threshold):
        o = find(x, threshold)
        return regular(x, w, o) + outliers(x, w, o)

    return my_llm_int8


def rows_taken_out(x, w, threshold):
    rows = (np.abs(x) >= threshold).any(axis=1)
    y = vectorwise()(np.where(rows[:, None], F32(0), x), w)
    y[rows] += x[rows] @ w.T
    return y


DECOMPOSITION = {
    "greater": (decomposed(lambda x, t: (np.abs(x) > t).any(axis=0)), "y: got", ">=, not >"),
    "signed": (decomposed(lambda x, t: (x >= t).any(axis=0)), "y: got", "-7 is an outlier as well"),
    "all rows": (decomposed(lambda x, t: (np.abs(x) >= t).all(axis=0)), "y: got", "not if all do"),
    "rows": (rows_taken_out, "y: got", "You took out whole rows"),
    "threshold written in": (decomposed(lambda x, t: (np.abs(x) >= 6).any(axis=0)), "y: got", "the threshold is an argument"),
    "not cleared": (decomposed(regular=lambda x, w, o: vectorwise()(x, w)), "y: got", "set the outlier columns of x to zero"),
    "no outliers": (decomposed(outliers=lambda x, w, o: F32(0)), "y: got", "the outlier columns are missing"),
    "no regular part": (decomposed(regular=lambda x, w, o: F32(0)), "y: got", "the regular columns are missing"),
    "entries": (
        lambda x, w, t: vectorwise()(np.where(np.abs(x) >= t, F32(0), x), w) + np.where(np.abs(x) >= t, x, F32(0)) @ w.T,
        "y: got",
        "you took single entries out",
    ),
    "w cleared too": (
        decomposed(regular=lambda x, w, o: vectorwise()(np.where(o, F32(0), x), np.where(o, F32(0), w))),
        "y: got",
        "quantize w over all its columns",
    ),
    "columns dropped": (
        decomposed(regular=lambda x, w, o: vectorwise()(x[:, ~o], w[:, ~o]) if (~o).any() else F32(0)),
        "y: got",
        "quantize w over all",
    ),
    "all columns added": (decomposed(outliers=lambda x, w, o: x @ w.T), "y: got", "the float product of all columns"),
    "outliers in float16": (
        decomposed(outliers=lambda x, w, o: (x[:, o].astype(np.float16) @ w[:, o].astype(np.float16).T).astype(F32)),
        "y: got",
        "the outlier columns were multiplied in float16",
    ),
    "float16 first": (lambda x, w, t: decomposed()(x.astype(np.float16).astype(F32), w, t), "y: got", "you narrowed x to float16"),
    "float64": (decomposed(outliers=lambda x, w, o: x[:, o].astype(float) @ w[:, o].T), "y has dtype float64", "Compute in float32"),
    "nothing decomposed": (lambda x, w, t: vectorwise()(x, w), "y: got", "nothing was decomposed"),
    "nothing quantized": (lambda x, w, t: x @ w.T, "y: got", "nothing was quantized"),
}


# ----------------------------------------------------------------------------------------------------------- 08


def infer(outliers=lambda x, q, s, o: x[:, o] @ (q[:, o] * s).T, cast=F32):
    """The inference of 08 with another outlier part, or another dtype."""

    def my_infer(x, codes, scale):
        o = (np.abs(x) >= 6).any(axis=0)
        xq, sx = by_rows(np.where(o, F32(0), x))
        acc = xq.astype(np.int32) @ codes.astype(np.int32).T
        return (acc.astype(cast) * sx) * scale.T + outliers(x, codes, scale, o)

    return my_infer


def not_split(x, codes, scale):
    xq, sx = by_rows(x)
    return ((xq.astype(np.int32) @ codes.astype(np.int32).T).astype(F32) * sx) * scale.T


LAYER = {
    "float64": ((by_rows, infer(cast=np.float64)), "y has dtype float64", "Compute in float32"),
    "codes not scaled": (
        (by_rows, infer(lambda x, q, s, o: x[:, o] @ q[:, o].T.astype(F32))),
        "y: got",
        "the weight codes of the outlier columns still need their scales",
    ),
    "no outliers": ((by_rows, infer(lambda x, q, s, o: F32(0))), "y: got", "the outlier columns are missing"),
    "outliers in float16": (
        (by_rows, infer(lambda x, q, s, o: (x[:, o].astype(np.float16) @ (q[:, o] * s).astype(np.float16).T).astype(F32))),
        "y: got",
        "the outlier columns were multiplied in float16",
    ),
    "not split": ((by_rows, not_split), "y: got", "no outlier column left the int8 path"),
    "float weight kept": ((lambda w: (w, np.ones((len(w), 1), F32)), lambda x, q, s: x @ q.T), "load keeps 32 bytes", None),
}


# ----------------------------------------------------------------------------------------------------------- 09

BYTES = {
    "no scales": (lambda n, k, p: n * k + (2 * n * k if p == "float" else 0), "bytes: got", "the scales are missing"),
    "scales by column": (lambda n, k, p: n * k + 4 * k + (2 * n * k if p == "float" else 0), "bytes: got", "n of them, not k"),
    "float weights alone": (lambda n, k, p: 4 * n + (2 if p == "float" else 1) * n * k, "bytes: got", "3 bytes per weight, not 2"),
    "always kept": (lambda n, k, p: 3 * n * k + 4 * n, "bytes: got", 'only "float" adds 16-bit weights'),
}

EVERY = {
    "absmax": (checks.absmax, ABSMAX),
    "zeropoint": (checks.zeropoint, ZEROPOINT),
    "vectorwise": (checks.vectorwise, VECTORWISE),
    "outlier_features": (checks.outlier_features, CRITERION),
    "decomposition": (checks.decomposition, DECOMPOSITION),
    "layer": (checks.layer, LAYER),
    "layer_bytes": (checks.layer_bytes, BYTES),
}
ANSWERS = [(name, how, *answer) for name, (_, answers) in EVERY.items() for how, answer in answers.items()]


@pytest.mark.parametrize(("name", "how", "answer", "fault", "hint"), ANSWERS, ids=[f"{name}-{how}" for name, how, *_ in ANSWERS])
def test_a_wrong_answer_is_told_of_its_own_mistake(name, how, answer, fault, hint):
    verdict = EVERY[name][0](answer)
    assert not verdict.passed
    assert fault in verdict.message
    told = re.search(r"^Hint: (.*)", verdict.message, re.MULTILINE)
    if hint is None:
        assert told is None, told
    else:
        assert told
        assert hint in told[1]


def test_the_answers_without_a_part_replaced_are_right():
    for name, answer in (
        ("absmax", absmax()),
        ("zeropoint", zeropoint()),
        ("vectorwise", vectorwise()),
        ("outlier_features", criterion()),
        ("decomposition", decomposed()),
        ("layer", (by_rows, infer())),
    ):
        verdict = EVERY[name][0](answer)
        assert verdict.passed, verdict.message


def test_a_counterexample_can_be_pasted():
    """The lines shown are Python, and on the input that they make the answer is wrong."""
    for name, how, answer, fault, _ in ANSWERS:
        if not fault.endswith(": got") or name == "layer":
            continue
        message = EVERY[name][0](answer).message
        lines = [line.strip() for line in message.split("\n") if re.match(r"  \w+(\[.*\])? = ", line)]
        scope = {"np": np}
        exec("\n".join(lines), scope)
        arguments = tuple(scope[label] for label in EVERY[name][0].inputs)
        assert EVERY[name][0].fault(answer, arguments), f"{name}, {how}:\n{message}"


def test_the_right_idea_is_told_apart_from_the_right_bits():
    divided = checks.absmax(ABSMAX["x / scale"][0]).message
    assert divided.startswith("the idea is right: within half a step on 37 of 37 inputs, bit for bit on ")
    assert checks.absmax(ABSMAX["truncation"][0]).message.startswith("not right yet: my_absmax is right on ")
    assert checks.vectorwise(dequantized_first).message.startswith("the idea is right: equal up to the roundings of a float32 product")
    assert checks.vectorwise(VECTORWISE["by row"][0]).message.startswith("not right yet: ")


def _dequantized_decomposition(x, w, threshold):
    """Dequantizes the regular columns and multiplies in float32: the method, in other roundings."""
    o = reference.outlier_columns(x, threshold)
    regular, weight = (reference.absmax_dequantize(*reference.absmax_quantize(a, -1)) for a in (np.where(o, np.float32(0), x), w))
    return regular @ weight.T + x[:, o] @ w[:, o].T


def test_a_product_in_other_roundings_has_the_right_idea():
    words = "the idea is right: equal up to the roundings of a float32 product on "
    assert checks.decomposition(_dequantized_decomposition).message.startswith(words)
    assert checks.decomposition(lambda x, w, t: x @ w.T).message.startswith("not right yet: ")
    assert checks.decomposition(lambda x, w, t: reference.quantized_matmul(x, w)).message.startswith("not right yet: ")


def test_the_ordinary_numbers_are_graded_apart_from_the_reserved_ones():
    (unguarded,) = (mistake for hint, mistake in checks.float16.mistakes if hint.startswith("only exponents 1 to 30"))
    (biased,) = (mistake for hint, mistake in checks.float16.mistakes if hint.startswith("the bias is 15, not 16"))
    assert checks.float16(unguarded).message.startswith("the idea is right: right for exponents 1 to 30 on ")
    assert checks.float16(biased).message.startswith("not right yet: ")


def test_a_right_answer_says_how_exactly_it_agrees():
    assert re.search(r"agrees bit for bit on (\d+) of \1 inputs", checks.absmax(checks.absmax.right).message)
    assert re.search(r"agrees within its bound on (\d+) of \1 inputs", checks.decomposition(checks.decomposition.right).message)


def test_only_what_was_printed_for_the_input_shown_is_shown(capsys):
    def my_absmax(x):
        print("shape", x.shape)
        return ABSMAX["truncation"][0](x)

    message = checks.absmax(my_absmax).message
    assert message.count("shape") == 1
    assert "printed on this input:\n    shape (1, 2)" in message
    assert capsys.readouterr().out == ""


def test_a_right_answer_may_print(capsys):
    def my_layer_bytes(n, k, outlier_weight):
        print(n, k)
        return n * k + 4 * n + (2 * n * k if outlier_weight == "float" else 0)

    assert checks.layer_bytes(my_layer_bytes).passed
    assert capsys.readouterr().out == ""


def test_an_error_is_told_with_its_line():
    def my_absmax(x):
        top = np.abs(x).max()
        return top.no_such_method()

    line = my_absmax.__code__.co_firstlineno + 2
    assert f"it raised AttributeError in line {line}: " in checks.absmax(my_absmax).message
