"""What the paper says beside what was measured: each verdict is computed from a record."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..lm import losses
from ..lm.methods import METHODS
from ..records import Read, Record
from . import memory, speed, tables

AGREES, DISAGREES, UNDECIDED, UNMEASURED = "agrees", "does not agree", "not decided", "not measured"

#: A change of perplexity, in percent, below which a method counts as one without degradation.
NEGLIGIBLE = 1.0


def interval(found: dict[str, Any]) -> str:
    """A change in percent with its interval; a single window has none."""
    low, high = found["low"], found["high"]
    return f"{found['percent']:+,.1f} % " + ("(one window)" if low is None else f"({low:+,.1f} to {high:+,.1f})")


def ends(found: dict[str, Any]) -> tuple[float, float]:
    """The interval's ends; without one, nothing is excluded."""
    return (-math.inf, math.inf) if found["low"] is None else (found["low"], found["high"])


def between(record: Record, method: str, than: str) -> dict[str, Any]:
    """The change of perplexity from the method `than` to `method`, in percent, with its interval, paired over the windows."""
    by_method = {row["method"]: np.array(row["losses"]) for row in record["rows"]}
    return losses.difference(by_method[method], by_method[than])


def verdict(holds: bool, fails: bool) -> str:
    """The verdict on a statement; an interval may show neither that it holds nor that it fails."""
    return AGREES if holds else DISAGREES if fails else UNDECIDED


def lowers(method: str, than: str) -> Callable[[Record], tuple[str, str]]:
    """Judges "lowers perplexity"."""

    def judge(record: Record) -> tuple[str, str]:
        found = between(record, method, than)
        low, high = ends(found)
        return interval(found), verdict(high < 0, low > 0)

    return judge


def degrades(*methods: str) -> Callable[[Record], tuple[str, str]]:
    """Judges "has a higher perplexity than the float model", of all these methods."""

    def judge(record: Record) -> tuple[str, str]:
        found = [between(record, method, "float32") for method in methods]
        text = "; ".join(f"{METHODS[m].label}: {interval(f)}" for m, f in zip(methods, found, strict=True))
        return text, verdict(all(ends(f)[0] > 0 for f in found), any(ends(f)[1] < 0 for f in found))

    return judge


def keeps(method: str) -> Callable[[Record], tuple[str, str]]:
    """Judges "does not degrade": by less than NEGLIGIBLE, at the upper end of the interval."""

    def judge(record: Record) -> tuple[str, str]:
        found = between(record, method, "float32")
        low, high = ends(found)
        return interval(found), verdict(high < NEGLIGIBLE, low > 0)

    return judge


def _at(record: Record, threshold: float | None) -> Record:
    return next(r for r in record["rows"] if METHODS[r["method"]].decomposition and r["threshold"] == threshold)


def share_in_16_bits(record: Record) -> tuple[str, str]:
    """Judges the share of the products in 16 bits at the threshold 6."""
    share = _at(record, 6.0)["outlier_share"]
    return f"{100 * (1 - share):.2f} % in int8", verdict(share <= 0.001, share > 0.001)


def six_suffices(record: Record) -> tuple[str, str]:
    """Judges whether a lower threshold than 6 would bring perplexity down further."""
    six, lowest = (_at(record, t) for t in (6.0, min(r["threshold"] for r in record["rows"] if r["threshold"] is not None)))
    found = losses.difference(np.array(lowest["losses"]), np.array(six["losses"]))
    text = f"at 6: {interval(six['to_float'])} against float32; at {lowest['threshold']:g}: {interval(lowest['to_float'])}"
    low, high = ends(found)
    return text, verdict(low > -NEGLIGIBLE, high < 0)


def _features(record: Record) -> list[Record]:
    return [one for kind in record["kinds"].values() for one in kind["features"]]


def few_features(record: Record) -> tuple[str, str]:
    """Judges how many outlier features there are."""
    count = len(_features(record))
    columns = max(kind["columns"] for kind in record["kinds"].values() if kind["features"]) if count else 0
    return f"{count} of {columns}" if count else "none", verdict(1 <= count <= 7, True)


def one_sided(record: Record) -> tuple[str, str]:
    """Judges whether the outlier features have one sign."""
    shares = [one["positive"] for one in _features(record)]
    text = ", ".join(f"{100 * max(s, 1 - s):.0f} % {'positive' if s > 0.5 else 'negative'}" for s in shares)
    return text or "none", verdict(bool(shares) and all(max(s, 1 - s) >= 0.95 for s in shares), True)


def _removal(record: Record) -> Record:
    return record["removals"][0]


def removal_hurts(record: Record) -> tuple[str, str]:
    """Judges what perplexity is without the features."""
    found = _removal(record)["perplexity"]
    without, *random = (100 * (value / found["all"] - 1) for value in (found["without"], *found["random"]))
    text = f"{without:+,.0f} %; random ones: {min(random):+.2f} to {max(random):+.2f} %"
    return text, verdict(without >= 600 and max(random) < NEGLIGIBLE, True)


def attention_blurs(record: Record) -> tuple[str, str]:
    """Judges the attention's largest probability without the features: halved, to a tenth."""
    found = _removal(record)["attention_peak"]
    if found is None:
        return "the attention's input has no outlier feature", UNDECIDED
    change = found["without"] / found["all"]
    random = max(abs(value / found["all"] - 1) for value in found["random"])
    text = f"{100 * found['all']:.0f} % to {100 * found['without']:.0f} %; random ones change it by at most {100 * random:.1f} %"
    return text, verdict(0.4 <= change <= 0.6 and random < 0.01, True)


def dial_decides(record: Record) -> tuple[str, str]:
    """Judges absmax and LLM.int8() between the dial's ends: one at least doubles perplexity, the other changes by a twentieth of that."""
    found = {}
    for label in ("absmax, by vector", "LLM.int8(), float weights"):
        first, *_, last = (np.array(row["losses"]) for row in record["rows"] if row["label"] == label)
        found[label] = losses.difference(last, first)
    text = "; ".join(f"{label}: {interval(change)}" for label, change in found.items())
    collapse, ours = found.values()
    factors = f"from factor {record['rows'][0]['factor']:g} to {record['rows'][-1]['factor']:g}"
    limit = ends(collapse)[0] / 20
    holds = limit > 5 and ends(ours)[1] < limit
    return f"{factors}: {text}", verdict(holds, ends(collapse)[1] < 100 or ends(ours)[0] > limit > 0)


def halves(record: Record) -> tuple[str, str]:
    """Judges the bytes of the largest models: half as many, to a tenth."""
    found = {}
    for row in record["models"]:
        if row["model"] in memory.LARGEST:
            found[row["model"]] = [sum(row["parts"][p].values()) / sum(row["parts"]["16 bits"].values()) for p in list(memory.POLICIES)[1:]]
    text = "; ".join(f"{name}: {100 * light:.0f} % ({100 * heavy:.0f} % with float weights kept)" for name, (light, heavy) in found.items())
    return text, verdict(all(light <= 0.55 for light, _ in found.values()), True)


def hardware_agrees(record: Record) -> tuple[str, str]:
    """Judges how many entries of the paper's memory table the calculation gives: a model of that size fits."""
    parameters = {row["model"]: row["parameters"] for row in record["models"]} | {"none": 0}
    held, missed = 0, []
    for row in record["hardware"]:
        for mine, theirs in (("16 bits", "16 bits"), ("int8, dequantized", "int8")):
            wanted = min(parameters[name] for name in row["paper"][theirs])
            if parameters[row["largest"][mine] or "none"] >= wanted:
                held += 1
            else:
                missed.append(f"{' / '.join(row['paper'][theirs])} in {theirs} on {row['hardware']}")
    text = f"{held} of {held + len(missed)} entries fit" + (f"; not {', '.join(missed)}" if missed else "")
    return text, verdict(not missed, True)


def faster_when_wide(record: Record) -> tuple[str, str]:
    """Judges, from the sweep over the width, whether int8 loses on the narrowest layer and wins on the widest."""
    rows = speed.rows_of(record, "crossover")
    widths = [own for _, size, own in speed.sweeps(rows) if size == "k"] if rows else []
    if not widths:
        return "no sweep over the width", UNMEASURED
    # The paper's times are of whole batches of sequences, so the sweep with the most rows of X.
    narrow, *_, wide = max(widths, key=lambda own: own[0]["m"])
    ratios = [row["contenders"]["int8"]["ratio"] for row in (narrow, wide)]
    text = f"on a {'GPU' if record['settings']['device'] == 'cuda' else 'CPU'}, M = {wide['m']}; "
    text += "; ".join(f"K = N = {row['k']}: {speed.spread(ratio)}" for row, ratio in zip((narrow, wide), ratios, strict=True))
    holds = ratios[0]["high"] < 1 < ratios[1]["low"]
    return text, verdict(holds, ratios[0]["low"] > 1 or ratios[1]["high"] < 1)


#: What the paper says, the record that it is judged by, and the judge: from the record to what was measured and the verdict.
#: Of several records, with a space between them, the first that exists.
CLAIMS: tuple[tuple[str, str, Callable[[Record], tuple[str, str]]], ...] = (
    ("int8 by tensor raises perplexity (table 1)", "perplexity-intervals", degrades("absmax-tensor", "zeropoint-tensor")),
    ("one scale per row lowers it again (table 1)", "perplexity-intervals", lowers("absmax-row", "absmax-tensor")),
    ("zeropoint is better than absmax by tensor (table 1)", "perplexity-intervals", lowers("zeropoint-tensor", "absmax-tensor")),
    ("decomposition is better than vector-wise absmax alone (table 1)", "perplexity-intervals", lowers("llm-int8-absmax", "absmax-vector")),
    ("LLM.int8() with absmax does not degrade perplexity (table 1)", "perplexity-intervals", keeps("llm-int8-absmax")),
    ("LLM.int8() with zeropoint does not degrade perplexity (table 1)", "perplexity-intervals", keeps("llm-int8-zeropoint")),
    ("more than 99.9 % of the values are multiplied in int8 (section 3.2)", "perplexity-thresholds", share_in_16_bits),
    ("a threshold of 6 is enough (section 3.2)", "perplexity-thresholds", six_suffices),
    ("there are at most seven outlier features (section 4.2)", "outliers", few_features),
    ("outlier features are one-sided (section 4.3)", "outliers", one_sided),
    ("without them perplexity rises by 600 to 1000 %, without random ones by 0.1 % (section 4.2)", "outliers", removal_hurts),
    ("without them the attention's largest probability falls from about 40 % to about 20 % (section 4.2)", "outliers", attention_blurs),
    ("with outlier features in all layers int8 fails and LLM.int8() does not (section 4.2)", "dial", dial_decides),
    ("int8 needs half the memory of 16 bits (section 1)", "memory", halves),
    ("which hardware holds which model (table 2)", "memory", hardware_agrees),
    ("int8 is slower than 16 bits in narrow layers, faster in wide ones (appendix D)", "speed-cuda speed-cpu", faster_when_wide),
)

#: The paper's reasons for its table 1, each a step from one method to a better one.
STEPS = (
    ("one scale per row of X instead of one per tensor", "absmax-tensor", "absmax-row"),
    ("one scale per row of W as well", "absmax-row", "absmax-vector"),
    ("zeropoint instead of absmax, by tensor", "absmax-tensor", "zeropoint-tensor"),
    ("zeropoint instead of absmax, by row", "absmax-row", "zeropoint-row"),
    ("zeropoint instead of absmax, by vector", "absmax-vector", "zeropoint-vector"),
    ("decomposition, absmax by tensor", "absmax-tensor", "absmax-tensor-decomposed"),
    ("decomposition, absmax by row", "absmax-row", "absmax-row-decomposed"),
    ("decomposition, absmax by vector: LLM.int8()", "absmax-vector", "llm-int8-absmax"),
    ("decomposition, zeropoint by vector: LLM.int8()", "zeropoint-vector", "llm-int8-zeropoint"),
)


def order(record: Record) -> str:
    """A section: each step of the paper's table 1, paired over the windows."""
    words = {AGREES: "lower", DISAGREES: "higher", UNDECIDED: "no difference shown"}
    rows = []
    for text, worse, better in STEPS:
        measured, found = lowers(better, worse)(record)
        rows.append([text, measured, words[found]])
    counts = {word: sum(row[-1] == word for row in rows) for word in words.values()}
    return (
        "## The order of the methods\n\n"
        "The paper's table 1 goes from coarse scales to fine ones, then to decomposition. From the record with intervals, the change of "
        f"perplexity at each of its steps: {counts['lower']} of {len(rows)} lower it, {counts['higher']} raise it, and for "
        f"{counts['no difference shown']} the interval includes 0, so that these windows do not tell.\n\n"
        f"{tables.markdown(['step', 'change of perplexity', 'perplexity is'], rows)}\n"
    )


def claims(read: Read) -> str:
    """A section: the paper's statements beside what was measured."""
    rows = []
    for text, names, judge in CLAIMS:
        record = next((found for name in names.split() if (found := read(name)) is not None), None)
        rows.append([text, *(("", UNMEASURED) if record is None else judge(record))])
    return (
        "## Claims and measurements\n\n"
        "The verdicts are computed from the records. A percentage with a sign is a change of perplexity, in brackets its 95 % interval, "
        'paired over the windows; "not decided" says that the interval allows both. The models of the paper have 125 million to 175 '
        "billion parameters, the one here has 135 million.\n\n"
        f"{tables.markdown(['the paper', 'here', ''], rows)}\n{why(read)}"
    )


def why(read: Read) -> str:
    """Where LLM.int8() with absmax loses here, if it does: what a lower threshold leaves of it."""
    methods, thresholds = read("perplexity-intervals"), read("perplexity-thresholds")
    if methods is None or thresholds is None or keeps("llm-int8-absmax")(methods)[1] != DISAGREES:
        return ""
    if six_suffices(thresholds)[1] != DISAGREES:
        return ""
    lowest = _at(thresholds, min(row["threshold"] for row in thresholds["rows"] if row["threshold"] is not None))
    absmax, zeropoint = (between(methods, f"llm-int8-{name}", "float32")["percent"] for name in ("absmax", "zeropoint"))
    return (
        f"\nWhy LLM.int8() with absmax loses {absmax:.1f} % here: at the threshold {lowest['threshold']:g}, which sends "
        f"{100 * lowest['outlier_share']:.0f} % of the products to 16 bits, {lowest['to_float']['percent']:.1f} % is left of it. So the "
        "loss lies in the rounding of the columns below 6, which decomposition at 6 does not touch. Zeropoint rounds them more finely, and "
        f"loses {zeropoint:.1f} %. See [by threshold](#by-threshold).\n"
    )
