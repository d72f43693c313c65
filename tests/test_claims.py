"""Each verdict can come out either way."""

from typing import Any

import numpy as np
import pytest

from experiments import memory
from experiments.lm import losses
from experiments.pages import claims

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def losses_of(**methods: list[float]) -> dict[str, Any]:
    """A record of perplexity with these losses by method."""
    names = {name: name.replace("_", "-") for name in methods}
    return {"rows": [{"method": names[name], "losses": np.array(values), "layers": "all"} for name, values in methods.items()]}


BASE = np.linspace(1, 3, 8)
NOISE = np.array([1, -1, 1, -1, 1, -1, 1, -1]) * 1e-3


@pytest.mark.parametrize(
    ("shift", "noise", "lowers", "keeps", "degrades"),
    [
        (-0.1, 1, "agrees", "agrees", "does not agree"),
        (0.1, 1, "does not agree", "does not agree", "agrees"),
        (0.0, 1, "not decided", "agrees", "not decided"),
        (0.0, 100, "not decided", "not decided", "not decided"),
        (-0.0001, 1, "not decided", "agrees", "not decided"),
        (0.0001, 1, "not decided", "agrees", "not decided"),
        (0.001, 0.1, "does not agree", "agrees", "agrees"),  # surely more, and surely by less than 1 %
    ],
)
def test_a_verdict_follows_from_the_interval(shift: float, noise: float, lowers: str, keeps: str, degrades: str) -> None:
    record = losses_of(float32=BASE, absmax_row=BASE + shift + noise * NOISE)
    assert claims.lowers("absmax-row", "float32")(record)[1] == lowers
    assert claims.keeps("absmax-row")(record)[1] == keeps
    assert claims.degrades("absmax-row")(record)[1] == degrades


def test_one_window_decides_nothing() -> None:
    record = losses_of(float32=[2.0], absmax_row=[2.5])
    judges = (claims.lowers("absmax-row", "float32"), claims.keeps("absmax-row"), claims.degrades("absmax-row"))
    assert {judge(record)[1] for judge in judges} == {"not decided"}
    assert claims.lowers("absmax-row", "float32")(record)[0] == "+64.9 % (one window)"


def outlier_record(without: float, random: list[float], positive: float, peaks: tuple[float, float] = (0.4, 0.2)) -> dict[str, Any]:
    return {
        "kinds": {"attention": {"columns": 48, "features": [{"positive": positive}]}},
        "removals": [
            {
                "perplexity": {"all": 10.0, "without": without, "random": random},
                "attention_peak": {"all": peaks[0], "without": peaks[1], "random": [peaks[0]]},
            }
        ],
    }


def test_the_verdicts_about_outliers_can_fail() -> None:
    good = outlier_record(100.0, [10.01, 9.99], 0.0)
    judges = (claims.removal_hurts, claims.one_sided, claims.attention_blurs, claims.few_features)
    assert [judge(good)[1] for judge in judges] == ["agrees"] * 4
    assert claims.removal_hurts(outlier_record(60.0, [10.01], 0.0))[1] == "does not agree"
    assert claims.removal_hurts(outlier_record(100.0, [10.2], 0.0))[1] == "does not agree"
    assert claims.one_sided(outlier_record(100.0, [10.0], 0.5))[1] == "does not agree"
    assert claims.attention_blurs(outlier_record(100.0, [10.0], 0.0, (0.4, 0.35)))[1] == "does not agree"
    many = {"kinds": {"attention": {"columns": 48, "features": [{"positive": 1.0}] * 8}}}
    assert claims.few_features(many) == ("8 of 48", "does not agree")


def test_the_verdict_of_the_dial_can_fail() -> None:
    def verdict(absmax: float, ours: float) -> str:
        rows = [
            {"factor": factor, "label": label, "losses": BASE + (factor > 1) * (shift + NOISE)}
            for factor in (1, 64)
            for label, shift in (("absmax, by vector", absmax), ("LLM.int8(), float weights", ours))
        ]
        return claims.dial_decides({"rows": rows})[1]

    assert verdict(3.0, 0.01) == "agrees"
    assert verdict(0.5, 0.01) == "does not agree"  # e**0.5 is less than double
    assert verdict(1.0, 0.5) == "does not agree"  # it fails as well


def test_the_verdict_about_speed_follows_from_the_narrowest_and_the_widest_layer() -> None:
    def row(k: int, low: float, high: float, m: int = 4096) -> dict[str, Any]:
        ratio = {"median": (low + high) / 2, "low": low, "high": high}
        return {"part": "crossover", "m": m, "k": k, "n": k, "contenders": {"int8": {"stage": False, "label": "int8", "ratio": ratio}}}

    def verdict(narrow: tuple[float, float], wide: tuple[float, float]) -> str:
        few = [row(512, 2.0, 2.1, m=1), row(8192, 0.4, 0.5, m=1)]  # another story, which the paper does not tell
        rows = [*few, row(512, *narrow), row(2048, 0.9, 1.1), row(8192, *wide)]
        text, found = claims.faster_when_wide({"rows": rows, "settings": {"device": "cpu"}})
        assert text.startswith("on a CPU, M = 4096; ")
        return found

    assert verdict((0.4, 0.6), (1.5, 1.6)) == "agrees"
    assert verdict((0.4, 0.6), (0.8, 0.9)) == "does not agree"
    assert verdict((1.1, 1.2), (1.5, 1.6)) == "does not agree"
    assert verdict((0.4, 0.6), (0.9, 1.1)) == "not decided"
    assert claims.faster_when_wide({"rows": []})[1] == "not measured"


@pytest.mark.parametrize(("there", "said"), [(["cuda", "cpu"], "on a GPU"), (["cpu"], "on a CPU"), ([], "not measured")])
def test_the_verdict_about_speed_is_that_of_a_gpu_if_there_is_a_record_of_one(there: list[str], said: str) -> None:
    ratio = {"median": 1.0, "low": 0.9, "high": 1.1}
    rows = [
        {"part": "crossover", "m": 1, "k": k, "n": k, "contenders": {"int8": {"stage": False, "label": "int8", "ratio": ratio}}}
        for k in (512, 1024)
    ]
    found = {f"speed-{device}": {"rows": rows, "settings": {"device": device}} for device in there}
    (line,) = [line for line in claims.claims(found.get).split("\n") if "appendix D" in line]
    assert said in line


def test_the_verdicts_about_the_threshold_can_fail() -> None:
    def record(share: float, six: float, lowest: float) -> dict[str, Any]:
        rows = [{"method": "float32", "threshold": None, "losses": BASE}]
        for threshold, shift in ((0.5, lowest), (6.0, six)):
            own = BASE + shift + NOISE
            to_float = losses.difference(own, BASE)
            rows.append({"method": "llm-int8-absmax", "threshold": threshold, "outlier_share": share, "losses": own, "to_float": to_float})
        return {"rows": rows}

    assert [claims.share_in_16_bits(record(share, 0, 0))[1] for share in (0.001, 0.0011)] == ["agrees", "does not agree"]
    assert claims.six_suffices(record(0, 0.02, 0.015))[1] == "agrees"  # half a percent more than at the lowest
    assert claims.six_suffices(record(0, 0.02, 0.0))[1] == "does not agree"


def test_the_reason_for_a_loss_is_given_only_where_the_records_show_it() -> None:
    def reason(loss: float, left: float) -> str:
        methods = losses_of(float32=BASE, llm_int8_absmax=BASE + loss + NOISE, llm_int8_zeropoint=BASE + NOISE)
        rows = [
            {
                "method": "llm-int8-absmax",
                "threshold": threshold,
                "outlier_share": 0.4,
                "losses": BASE + shift + NOISE,
                "to_float": losses.difference(BASE + shift + NOISE, BASE),
            }
            for threshold, shift in ((0.5, left), (6.0, loss))
        ]
        return claims.why({"perplexity-intervals": methods, "perplexity-thresholds": {"rows": rows}}.get)

    assert "loses 3.0 % here" in reason(0.03, 0.001)
    assert "0.1 % is left" in reason(0.03, 0.001)
    assert reason(0.0, 0.0) == ""  # no loss
    assert reason(0.03, 0.03) == ""  # no threshold helps
    assert claims.why(lambda name: None) == ""


def test_the_verdicts_about_memory_can_fail() -> None:
    by_model, by_hardware = memory.calculate(2048)
    record = {"models": by_model, "hardware": by_hardware}
    assert claims.halves(record)[1] == "agrees"
    held = int(claims.hardware_agrees(record)[0].split()[0])
    by_hardware[0]["largest"]["16 bits"] = "OPT-66B"
    text, verdict = claims.hardware_agrees(record)
    assert (int(text.split()[0]), verdict) == (held - 1, "does not agree")
    by_model[-1]["parts"]["int8, dequantized"]["weights"] *= 1.2
    assert claims.halves(record)[1] == "does not agree"
