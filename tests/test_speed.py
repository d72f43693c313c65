"""The measurements of speed: what is computed from times is right on known ones, and no wrong result is ever timed.

Nothing here asserts a time. Clocks are replaced by ones that the test moves.
"""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import fast
from experiments import candidates, ceiling, command, contender, contenders, generation, shapes, speed, timing, truth, tune
from experiments.contender import Bind, Contender, Work
from experiments.journal import FAILED, Skipped
from experiments.lm import models
from experiments.pages import generation as generation_page
from experiments.pages import speed as speed_page
from experiments.pages import tables
from experiments.shapes import Shape
from experiments.truth import Truth, WrongResult
from fast.kernels import configurations

ROOT = Path(__file__).resolve().parents[1]
SHAPE = Shape(33, 256, 130, 0.02)


pytestmark = pytest.mark.usefixtures("on_the_cpu", "without_gradients")


@pytest.fixture
def without_gradients() -> Any:
    with torch.no_grad():
        yield


class HandClock:
    """Time that passes only where a call moves it, instead of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def call(self, seconds: float, log: list[Any] | None = None, name: Any = None) -> timing.Call:
        def run() -> None:
            self.now += seconds
            if log is not None:
                log.append(name)

        return run


class NoCuda:
    """Stands for `torch.cuda`: work happens at once, events read a `HandClock`, a graph remembers what was called while it was captured."""

    class Capture:
        pass

    def __init__(self, clock: HandClock) -> None:
        self.clock, self.log, self.capturing = clock, [], None
        self.cuda = types.SimpleNamespace(
            get_device_properties=lambda: types.SimpleNamespace(L2_cache_size=1000), synchronize=lambda: None, Stream=lambda: self,
            current_stream=lambda: self, stream=lambda s: self, Event=self.event, CUDAGraph=self.graph_made, graph=self.captured,
        )  # fmt: skip

    def wait_stream(self, other: Any) -> None:
        pass

    def __enter__(self) -> "NoCuda":
        return self

    def __exit__(self, *error: Any) -> None:
        self.capturing = None

    def call(self, seconds: float, name: Any) -> timing.Call:
        def run() -> None:
            if self.capturing is not None:
                self.capturing.append(run)
                return
            self.clock.now += seconds
            self.log.append(name)

        return run

    def graph_made(self) -> Any:
        calls: list[timing.Call] = []
        return types.SimpleNamespace(calls=calls, replay=lambda: [call() for call in calls])

    def captured(self, graph: Any) -> "NoCuda":
        self.capturing = graph.calls
        return self

    def event(self, enable_timing: bool = False) -> Any:
        assert enable_timing
        made = types.SimpleNamespace(time=None, synchronize=lambda: None)
        made.record = lambda: setattr(made, "time", self.clock.now)
        made.elapsed_time = lambda end: (end.time - made.time) * 1e3  # milliseconds, as CUDA has it
        return made


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert timing.spread([4.0, 1.0, 3.0, 2.0]) == {"median": 2.5, "low": 1.75, "high": 3.25}


def test_ratios_and_differences_are_taken_within_rounds() -> None:
    # In the second round everything took four times as long; the ratio of the medians would be 10 / 3.
    assert timing.ratio([2.0, 8.0], [1.0, 2.0]) == {"median": 3.0, "low": 2.5, "high": 3.5}
    assert timing.difference([5.0, 8.0], [1.0, 2.0]) == {"median": 5.0, "low": 4.5, "high": 5.5}


def test_rounds_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        timing.ratio([1.0, 2.0], [1.0])


def test_every_contender_runs_once_a_round_and_not_always_in_the_same_order() -> None:
    log: list[str] = []
    samplers = {name: lambda name=name: log.append(name) or len(log) for name in "abc"}
    samples = timing.interleave(samplers, 8)
    rounds = [log[i : i + 3] for i in range(0, 24, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert samples == {name: [i + 1 for i, who in enumerate(log) if who == name] for name in "abc"}


def test_copies_overflow_the_cache_three_times() -> None:
    assert timing.copies(100, 30) == 10
    assert timing.copies(100, 1000) == 2


@pytest.mark.parametrize(("each", "batch"), [(0.005, 1), (0.0001, 10)])
def test_a_cpu_sample_is_the_time_of_one_call_over_calls_that_take_turns(each: float, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = HandClock(), []
    monkeypatch.setattr(timing, "time", clock)
    sample = timing.CpuClock(least=0.001).sampler([clock.call(each, log, i) for i in range(3)])
    assert log[:3] == [0, 1, 2]  # every call has run before the first sample
    del log[:]
    assert [sample() for _ in range(3)] == pytest.approx([each] * 3, rel=1e-9)
    assert log == [i % 3 for i in range(3 * batch)]


@pytest.mark.parametrize("graph", [False, True])
def test_a_cuda_sample_is_the_seconds_of_one_call_over_whole_passes(graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = NoCuda(HandClock())
    monkeypatch.setattr(timing, "torch", device)
    clock = timing.CudaClock(least=0.01)
    assert clock.cache == 1000
    sample = clock.sampler([device.call(seconds, seconds) for seconds in (0.001, 0.003)], graph)
    assert device.log[:2] == [0.001, 0.003]
    del device.log[:]
    assert sample() == pytest.approx(0.002, rel=1e-9)
    assert device.log == [0.001, 0.003] * 3  # the fewest passes of 4 ms that take 10


def test_the_floor_is_the_larger_of_moving_and_computing() -> None:
    work = Work(1000, {"int8": 600, "bfloat16": 100})
    assert work.floor(bandwidth=10, rates={"int8": 60, "bfloat16": 50}) == 100
    assert work.floor(bandwidth=1000, rates={"int8": 60, "bfloat16": 50}) == 12


def test_work_counts_each_input_and_output_once() -> None:
    shape = Shape(2, 100, 5, 0.1)
    assert contender.float_work(torch.float32)(shape) == Work(4 * (200 + 500 + 10), {"float32": 2000})
    assert contender.int8_work(shape) == Work(400 + 500 + 20 + 20, {"int8": 2000, "bfloat16": 200})
    assert contender.accumulator_work(shape) == Work(200 + 500 + 40, {"int8": 2000})
    assert contender.product_work(shape) == Work(200 + 500 + 8 + 20 + 20, {"int8": 2000})
    assert contender.quantize_work(shape) == Work(400 + 200 + 8, {})
    assert contender.detect_work(shape) == Work(400 + 100, {})


@pytest.mark.parametrize("shape", [Shape(1, 64, 8, 0.05), Shape(300, 64, 8, 0.05), Shape(5, 64, 8, 0.0), Shape(5, 64, 8, 0.001)])
def test_drawn_outlier_columns_are_outliers_in_every_row_and_no_others_are(shape: Shape) -> None:
    inputs = truth.draw_activations(shape, "cpu", 3)
    outliers = inputs.x.float().abs() >= truth.THRESHOLD
    assert torch.equal(outliers.any(0), outliers.all(0))
    assert int(outliers.any(0).sum()) == shape.columns == {0.05: 3, 0.0: 0, 0.001: 1}[shape.fraction]
    assert not (inputs.clean.float().abs() >= truth.THRESHOLD).any()
    assert torch.equal(inputs.x[:, ~outliers.any(0)], inputs.clean[:, ~outliers.any(0)])


def result_of(name: str, shape: Shape = SHAPE) -> tuple[Contender, Truth, Any]:
    """A contender, what its result is checked against, and its result."""
    own, inputs = contenders.contenders("cpu")[name], truth.draw_activations(shape, "cpu", 0)
    x, w = inputs.clean if own.clean else inputs.x, truth.draw_weight(shape.n, shape.k, "cpu", 0)
    return own, Truth(x, w), own.prepare(w)(x)()


EVERYWHERE = sorted(contenders.contenders("cpu"))


@pytest.mark.parametrize("fraction", [0.0, 0.02])
@pytest.mark.parametrize("m", [1, 33])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_contender_passes_its_check(name: str, m: int, fraction: float) -> None:
    own, truth, result = result_of(name, Shape(m, 256, 130, fraction))
    own.check(truth, result)


@pytest.mark.parametrize("name", ["detect", "quantize", "detect-quantize", "product", "product-outliers"])
def test_every_kernel_stage_passes_its_check(name: str) -> None:
    # In float16: to bfloat16, Triton's interpreter cuts off where a GPU rounds.
    x = truth.draw_activations(Shape(20, 96, 40, 0.05), "cpu", 0).x.half()
    own, w = contenders.kernel_stages()[name], truth.draw_weight(40, 96, "cpu", 0).half()
    with fast.backend("triton"):
        result = own.prepare(w)(x)()
    own.check(Truth(x, w), result)
    first = result if isinstance(result, torch.Tensor) else result[0]
    first[-1, -1] = ~first[-1, -1].bool() if first.dtype == torch.uint8 else first[-1, -1] + 3
    with pytest.raises(WrongResult):
        own.check(Truth(x, w), result)


@pytest.mark.parametrize(("name", "gathers"), [("quantize", False), ("detect-quantize", True)])
def test_quantization_is_timed_with_the_gathering_that_the_layer_does(name: str, gathers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from fast.kernels import quantization

    asked = []
    chosen = quantization.gather_configuration
    monkeypatch.setattr(quantization, "gather_configuration", lambda *sizes: asked.append(sizes) or chosen(*sizes))
    x = truth.draw_activations(Shape(32, 96, 40, 0.05), "cpu", 0).x.half()
    own, w = contenders.kernel_stages()[name], truth.draw_weight(40, 96, "cpu", 0).half()
    with fast.backend("triton"):
        call = own.prepare(w)(x)
        assert asked == []
        call()
    assert len(asked) == gathers


def spoil_one(y: torch.Tensor) -> torch.Tensor:
    y[7, 100] += y.float().std().item()
    return y


def spoil_tile(y: torch.Tensor) -> torch.Tensor:
    y[16:32, 64:80] = 0
    return y


SPOILERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one entry": spoil_one,
    "a tile that was not written": spoil_tile,
    "a NaN": lambda y: y.index_put_((torch.tensor([5]), torch.tensor([9])), torch.tensor(math.nan, dtype=y.dtype)),
    "rows in another order": lambda y: y.flip(0),
    "a transposed shape": lambda y: y.T,
    "twice the scale": lambda y: 2 * y,
}
LAYERS = [name for name in EVERYWHERE if name not in ("detect", "quantize", "product", "int-mm")]


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_wrong_is_caught(name: str, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    own, truth, y = result_of(name)
    with pytest.raises(WrongResult):
        own.check(truth, spoil(y.clone()))


@pytest.mark.parametrize(("name", "other"), [("int8", "int8-none"), ("int8", "int8-float"), ("int8-float", "int8"), ("int8-none", "int8")])
def test_our_layer_is_not_taken_for_another_of_ours(name: str, other: str) -> None:
    own, truth, _ = result_of(name)
    with pytest.raises(WrongResult, match="the reference"):
        own.check(truth, result_of(other)[2])


@pytest.mark.parametrize("name", ["int-mm", "product"])
def test_accumulators_are_exact(name: str) -> None:
    own, truth, acc = result_of(name)
    acc[truth.rows[3], truth.columns[5]] += 1
    with pytest.raises(WrongResult, match="accumulators"):
        own.check(truth, acc)


def test_codes_scales_and_columns_are_equal_bit_for_bit() -> None:
    own, truth, (codes, scale) = result_of("quantize")
    row = truth.rows[2]
    for name, result in (("codes", (codes.clone(), scale)), ("scale", (codes, scale.clone()))):
        spoiled = result[0] if name == "codes" else result[1]
        spoiled[row, 0] = spoiled[row, 0] + 1 if name == "codes" else torch.nextafter(spoiled[row, 0], torch.tensor(9.0))
        with pytest.raises(WrongResult, match=name):
            own.check(truth, result)
    own, truth, mask = result_of("detect")
    mask[4] = ~mask[4]
    with pytest.raises(WrongResult, match="columns"):
        own.check(truth, mask)


def measured(job: speed.Job, found: dict[str, Contender]) -> dict[str, Any]:
    """The row of a job, timed in no time."""
    clock = types.SimpleNamespace(cache=1, sampler=lambda calls, graph=False: lambda: 1.0)
    limits = {"bandwidth": 1e9, "rates": dict.fromkeys(("int8", "bfloat16", "float16", "float32"), 1e9)}
    return speed.measure(job, found, "cpu", clock, 2, limits, speed.Layers("cpu"))


def test_a_wrong_result_is_recorded_and_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = contenders.contenders("cpu")
    monkeypatch.setattr(fast.Int8Linear, "forward", lambda self, x: torch.zeros(x.shape[0], self.out_features, dtype=x.dtype))
    row = measured(speed.Job("layers", SHAPE, [shapes.BASELINE, "int8", "int-mm"]), found)
    assert set(row["contenders"]) == {shapes.BASELINE, "int-mm"}
    assert set(row["wrong"]) == {"int8"}
    assert "differ from the reference" in row["wrong"]["int8"]
    assert row["contenders"]["int-mm"]["int8_ratio"] is None


def test_without_a_baseline_there_is_no_row() -> None:
    found = contenders.contenders("cpu")
    zeros = types.SimpleNamespace(**vars(found[shapes.BASELINE]) | {"prepare": lambda w: lambda x: lambda: torch.zeros(len(x), len(w))})
    with pytest.raises(WrongResult, match=r"F.linear, bfloat16: .* differ from the float64 product"):
        measured(speed.Job("layers", SHAPE, [shapes.BASELINE, "int8"]), found | {shapes.BASELINE: zeros})


def raising(w: torch.Tensor) -> Bind:
    raise RuntimeError("not on this device\nand more")


def test_another_library_may_fail_and_ours_is_then_wrong() -> None:
    found = contenders.contenders("cpu")
    job = speed.Job("layers", SHAPE, [shapes.BASELINE, "int-mm", "int8"])
    broken = {name: types.SimpleNamespace(**vars(found[name]) | {"prepare": raising}) for name in ("int-mm", "int8")}
    calls, failed, wrong = speed.checked_calls(job, found | broken, "cpu", 2, speed.Layers("cpu"))
    assert set(calls) == {shapes.BASELINE}
    assert failed == {"int-mm": "not on this device"}
    assert wrong == {"int8": "not on this device"}


def test_a_shape_too_large_for_the_memory_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "draw_activations", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(Skipped, match="too large"):
        measured(speed.Job("layers", SHAPE, [shapes.BASELINE]), contenders.contenders("cpu"))


def test_the_profiler_names_what_a_product_launches() -> None:
    a = torch.ones(32, 32, dtype=torch.int8)
    assert timing.kernel_of(lambda: torch._int_mm(a, a), "cpu") == "aten::_int_mm"


def test_a_weight_is_prepared_once_and_let_go_when_the_shape_changes() -> None:
    log: list[tuple[int, ...]] = []
    counting = types.SimpleNamespace(prepare=lambda w: log.append(tuple(w.shape)) or w)
    layers = speed.Layers("cpu")
    first = [layers.prepared(Shape(m, 8, 4, 0.0), seed, "a", counting) for m in (1, 2) for seed in (0, 1)]
    assert log == [(4, 8)] * 2
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    layers.prepared(Shape(1, 4, 8, 0.0), 0, "a", counting)
    layers.prepared(Shape(1, 8, 4, 0.0), 0, "a", counting)
    assert log[2:] == [(8, 4), (4, 8)]


def test_shares_are_what_each_step_adds() -> None:
    samples = {"quantize": [1.0, 2.0], "int8-none": [4.0, 8.0], "int8-clean": [5.0, 10.0], "int8": [10.0, 20.0]}
    medians = {step: share["median"] for step, share in speed.shares(samples).items()}
    assert medians == pytest.approx({"quantization": 0.1, "int8 product": 0.3, "detection": 0.1, "outlier product": 0.5})


#: int32 numbers in a register: native_registers.h. A round has 12 sums that do not wait for each other, of 4 products in each lane.
LANES = {"avx512_vnni": 16, "avx_vnni": 8, "avx2": 8, "neon_dotprod": 4, "portable": 4}
#: With matrix registers it has 4, each of 16 lines with 16 columns of 64 codes.
OPERATIONS = {name: 2 * 4 * lanes * 12 for name, lanes in LANES.items()} | {"amx_int8": 2 * 4 * 16 * 16 * 64}


@pytest.mark.parametrize("native", [False, True])
def test_ceilings_follow_from_sizes_and_times(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = fast.cpu_engine().name if native else "torch"
    if native and name == "torch":
        pytest.skip("no C compiler")
    monkeypatch.setattr(ceiling, "cpu_engine", lambda: types.SimpleNamespace(name=name))
    clock = types.SimpleNamespace(cache=1 << 20, sampler=lambda calls, graph=False: [call() for call in calls] and (lambda: 0.5))
    found = ceiling.ceilings("cpu", clock, rounds=1, sizes=ceiling.Sizes(1 << 20, 64, 32))
    size = 8 << 20
    assert found["bandwidth"] == 2 * size / 0.5
    rates = {unit: 2 * m * 64**2 / 0.5 for unit, m in (("int8", 64), ("bfloat16", 32), ("float16", 32), ("float32", 32))}
    if native:
        rates["int8"] = torch.get_num_threads() * 200_000 * OPERATIONS[name] / 0.5
    assert found["rates"] == rates


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_grid_measures_every_aim_and_asks_each_question(device: str) -> None:
    names = list(contenders.contenders(device))
    jobs = speed.grid(device, names)
    assert len({(job.part, job.shape) for job in jobs}) == len(jobs)
    layers = {job.shape for job in jobs if job.part == "layers"}
    assert {aim.shape for aim in shapes.AIMS if aim.device == device} <= layers
    assert {aim.other for aim in shapes.AIMS} <= {*names, "bitsandbytes"}
    assert {job.part for job in jobs} == set(shapes.PARTS)
    assert all({name for name in job.names if name != "bitsandbytes"} <= set(names) for job in jobs)
    if device == "cuda":
        assert shapes.STAGES_AIM[0] in layers
        assert {job.shape.fraction for job in jobs if job.part == "layers"} == {0.0, 0.001, 0.01, 0.05}
        assert max(shape.m for shape in layers) == 16384
        assert max(shape.k for shape in layers) == max(shape.n for shape in layers) == 53248


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """What a tiny run of the command leaves: the text of its record, its path, and what was printed."""
    usual = speed.grid("cpu", list(contenders.contenders("cpu")))
    small = {"layers": [Shape(4, 64, 48, 0.05)], "crossover": [Shape(m, k, k, 0.05) for m in (1, 8) for k in (32, 64)]}
    small["detection"] = [Shape(m, 64, 64, 0.05) for m in (1, 8)]
    jobs = [speed.Job(part, s, next(job.names for job in usual if job.part == part)) for part in shapes.PARTS for s in small[part]]
    rates = dict.fromkeys(("int8", "bfloat16", "float16", "float32"), 1e12)
    out, printed = tmp_path_factory.mktemp("speed") / "speed-cpu.json", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(speed, "grid", lambda device, names: jobs)
        patch.setattr(speed, "ceilings", lambda device, clock, sizes: {"bandwidth": 1e10, "rates": rates})
        patch.setattr(timing.CpuClock, "__init__", lambda self: vars(self).update(cache=1 << 12, least=1e-5))
        with pytest.raises(SystemExit) as ended:
            speed.main(["--device", "cpu", "--rounds", "3", "--out", str(out)])
    assert ended.value.code == 0
    return out.read_text(), out, printed.getvalue()


@pytest.fixture
def record(run: tuple[str, Path, str]) -> tuple[dict[str, Any], Path, str]:
    """The same, the record read back; a test may change it."""
    return json.loads(run[0]), *run[1:]


def test_a_run_leaves_a_complete_record_and_its_pictures(record: tuple[dict[str, Any], Path, str]) -> None:
    found, out, printed = record
    assert {"experiment", "command", "date", "device", "versions", "settings", "rows"} <= set(found)
    assert {"device", "hardware", "rounds", "ceilings", "absent", "out_of_memory"} <= set(found["settings"])
    assert [row["part"] for row in found["rows"]] == ["layers"] + ["crossover"] * 4 + ["detection"] * 2
    layer = found["rows"][0]
    missing = set(contenders.contenders("cpu")) - {"int8-clean"} - set(layer["contenders"]) - set(layer["did_not_run"])
    assert not missing
    for row in found["rows"]:
        for own in row["contenders"].values():
            assert own["seconds"]["low"] <= own["seconds"]["median"] <= own["seconds"]["high"]
            assert own["over_floor"] > 0
        assert row["contenders"][shapes.BASELINE]["ratio"] == {"median": 1, "low": 1, "high": 1}
        assert row["contenders"]["int8"]["int8_ratio"] == {"median": 1, "low": 1, "high": 1}
    assert all(set(row["shares"]) == {"quantization", "int8 product", "detection", "outlier product"} for row in found["rows"][-2:])
    assert {path.name for path in out.parent.iterdir()} == {"speed-cpu.json", "speed-cpu.png", "speed-cpu-2.png", "speed-cpu-3.png"}
    # The floors stand before the first time.
    assert printed.index("at least") < printed.index("## Layers")


def test_the_section_is_made_from_the_record_alone(record: tuple[dict[str, Any], Path, str]) -> None:
    found, _, printed = record
    page = speed.section(found)
    assert page in printed
    assert all(f"(results/speed-cpu{i}.png)" in page for i in ("", "-2", "-3"))
    assert found["command"] in page
    assert found["date"] in page
    assert found["device"]["cpu"] in page
    int8 = found["rows"][0]["contenders"]["int8"]
    assert speed_page.spread(int8["ratio"]) in page
    assert all(f"| {m} x 64 |" in page for m in (1, 8))
    for line in (line for line in page.splitlines() if line.startswith("| ")):
        assert "nan" not in line.lower()
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("| ")]
    assert len(tables) >= 6
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)


def test_what_did_not_run_or_did_not_fit_is_said(record: tuple[dict[str, Any], Path, str]) -> None:
    found, *_ = record
    layer = found["rows"][0]
    del layer["contenders"]["int-mm"]
    layer["did_not_run"]["int-mm"] = "wants K divisible by 8"
    assert "Did not run on 1 of 1 layers: `int-mm`: wants K divisible by 8" in speed.section(found)
    found["settings"] |= {"device": "cuda", "out_of_memory": ["a large one"]}
    found["settings"]["hardware"]["driver"] = "1.2"
    assert "Too large for this device's memory: a large one." in speed.section(found)


def with_ratio(shape: Shape, other: str, ratio: float) -> dict[str, Any]:
    own = {"int8_ratio": {"median": ratio, "low": ratio, "high": ratio}}
    return {"rows": [{"part": "layers", **shape._asdict(), "contenders": {other: own}}]}


def test_aims_are_reached_missed_or_not_measured() -> None:
    aim = shapes.AIMS[0]
    for record, verdict in (
        (None, "not measured"),
        (with_ratio(aim.shape, aim.other, aim.least), "reached"),
        (with_ratio(aim.shape, aim.other, aim.least - 0.001), "missed"),
        (with_ratio(aim.shape._replace(m=7), aim.other, aim.least), "not measured"),
    ):
        assert speed_page.aims(record, "cpu")[0][-1] == verdict
        assert all(cells[-1] == "not measured" for cells in speed_page.aims(record, "cpu")[1:])


@pytest.mark.parametrize(("share", "verdict"), [(0.15, "reached"), (0.16, "missed")])
def test_the_aim_of_the_stages_is_a_share_of_the_layer(share: float, verdict: str) -> None:
    shape, _ = shapes.STAGES_AIM
    own = {name: {"seconds": {"median": median}} for name, median in (("detect-quantize", share), ("int8", 1.0))}
    record = {"rows": [{"part": "layers", **shape._asdict(), "contenders": own}]}
    assert speed_page.aims(record, "cuda")[-1][-1] == verdict


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_without_a_record_is_said_to_be_unmeasured(device: str) -> None:
    page = speed_page.unmeasured(device)
    assert f"python -m experiments.speed --device {device}" in page
    aims = speed_page.aims(None, device)
    assert f'??? note "Not measured: {len(aims)} of {len(aims)} aims"' in page  # folded: there is nothing to compare
    assert [line.strip().removeprefix("- ") for line in page.split("\n") if line.startswith("    - ")] == [text for text, _, _ in aims]


def refused(main: Callable[[list[str]], None], arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says, on standard error, when it ends with exit status 2."""
    with pytest.raises(SystemExit) as ended:
        command.run_command(lambda: main(arguments.split()))
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (speed.main, "--shapes 1x2", "must be M x K x N, such as 256x4096x4096, got 1x2"),
        (speed.main, "--shapes 1x2x0", "got 1x2x0"),
        (speed.main, "--shapes 1x2x3 --outliers 1.5", "must be a share of the columns, 0 to 1, got 1.5"),
        (speed.main, "--outliers 0.1", "--outliers needs --shapes"),
        (speed.main, "--rounds 1", "--rounds must be 2 or more"),
        (speed.main, "--threads 0", "--threads 1 or more"),
        (speed.main, "--device tpu", "invalid choice: 'tpu'"),
        (speed.main, "--device cuda", "PyTorch finds no CUDA device here"),
        (speed.main, "--out x.txt", "--out must end in .json"),
        (generation.main, "--rounds 1", "must be 2 or more"),
        (generation.main, "--context 9 --prompt 8", "--context must be 1 to --prompt (8), got 9"),
        (generation.main, "--device cuda", "PyTorch finds no CUDA device here"),
        (generation.main, "--model no/such/folder", "there is no such folder"),
        (tune.main, "", "timing needs a CUDA GPU, and PyTorch finds none here; --dry-run lists the candidates"),
        (tune.main, "--dry-run --case nothing", "no row of that name; there are product"),
        (tune.main, "--dry-run --arch sm_75", "invalid choice: 'sm_75'"),
    ],
)
def test_what_the_user_gave_wrong_is_said_in_one_line(
    main: Any, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert message in refused(main, arguments, capsys)


def test_tuning_refuses_the_interpreter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it" in refused(tune.main, "--dry-run", capsys)


@pytest.mark.parametrize("arch", candidates.TARGETS)
def test_neighbours_differ_in_one_entry_and_every_row_of_the_tables_has_some(arch: str) -> None:
    found = tune.cases(arch)
    assert len({case.name for case in found}) == len(found)
    rows = (
        {row.configuration for row in configurations.PRODUCTS[arch]}
        | {row.configuration for row in configurations.DECODES[arch]}
        | {configurations.GENERAL[arch]}
    )
    assert rows <= {case.row for case in found}
    for case in found:
        neighbours = candidates.neighbours(case.row)
        assert len(neighbours) == len(set(neighbours)) >= 4
        assert all(sum(a != b for a, b in zip(config, case.row, strict=True)) == 1 for config in neighbours)
        assert all(candidates.difference_of(config, case.row).count(" ") == 1 for config in neighbours)
        everything = candidates.candidates(case.row)
        assert everything[0] == case.row
        assert set(neighbours) < set(everything)
        assert len(everything) == len(set(everything))


def test_two_small_programs_per_multiprocessor_are_a_candidate_for_hopper_s_large_tile() -> None:
    wide = configurations.product_configuration("sm_90", 4096, 8192, general=False)
    small = wide._replace(block_n=128, warps=4, stages=3)
    assert small.tma
    assert small not in candidates.neighbours(wide)
    assert small in candidates.candidates(wide)
    assert candidates.difference_of(small, wide) == "block_n 128, warps 4, stages 3"


def test_candidates_are_compiled_and_those_that_do_not_fit_are_left_out() -> None:
    program = """
import json
from experiments import candidates, tune
cases = {case.name: case for case in tune.cases("sm_89")}
few, rows = cases["decode 1 x 2048 x 2048"], cases["rows 256 x 4096"]
configs = few.row, few.row._replace(block_n=128, stages=8), few.row._replace(block_n=24)
fits = [candidates.fit(few.build, config, "sm_89") for config in configs]
fits.append(candidates.fit(rows.build, rows.row._replace(rows=4, warps=1), "sm_89"))
print(json.dumps([f._asdict() for f in fits]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    present, deep, odd, wide = json.loads(output)
    assert present["why_not"] == ""
    assert present["spilled"] == 0
    assert 0 < present["registers"] <= 255
    assert present["shared"] <= candidates.TARGETS["sm_89"][1]
    assert "bytes of shared memory, sm_89 has 101376" in deep["why_not"]
    assert odd["why_not"].startswith("does not compile: ")
    assert "power of 2" in odd["why_not"]
    assert wide["spilled"] > 0
    assert f"spills {wide['spilled']} bytes" in wide["why_not"]


@pytest.mark.parametrize("arch", candidates.TARGETS)
def test_the_kernel_in_gluon_is_a_candidate_where_the_copy_engine_loads(arch: str) -> None:
    for case in tune.cases(arch):
        if case.name.startswith("product"):
            assert (case.row._replace(gluon=True) in candidates.candidates(case.row)) == case.row.tma


def test_a_candidate_in_gluon_is_compiled_as_such_or_left_out() -> None:
    program = """
from experiments import candidates, tune
case = next(case for case in tune.cases("sm_90") if case.row.tma)
plain, gluon = (candidates.fit(case.build, case.row._replace(gluon=gluon), "sm_90") for gluon in (False, True))
print(plain.why_not, gluon.why_not, gluon.registers != plain.registers, gluon.shared == plain.shared, sep="|")
print(candidates.fit(case.build, case.row._replace(gluon=True, warps=8), "sm_90").why_not)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    fitting, refused_one = output.splitlines()
    assert fitting == "||True|True"
    assert refused_one.startswith("does not compile: Product(")
    assert refused_one.endswith("a warp of the kernel in Gluon has 16 rows of the tile, or several times 16")


@pytest.mark.parametrize("name", ["decode 1 x", "rows 256", "scan 256"])
def test_a_candidate_computes_what_the_present_row_does(name: str) -> None:
    case = next(case for case in tune.cases("interpreter") if case.name.startswith(name))
    small = {"m": 1, "n": 40} if name.startswith("decode") else {"m": 40, "k": 96}
    launch = case.build.func("cpu", **small)
    with fast.backend("triton"):
        results = {config: launch(config) for config in candidates.candidates(case.row)[:3]}
    expected = results.pop(case.row)
    for found in results.values():
        assert tune.same(found, expected)
        spoiled = found.clone()
        spoiled[0, 3] = 1 - spoiled[0, 3]
        spoiled[1:, 3] = 0 if found.dtype == torch.uint8 else spoiled[1:, 3]
        assert not tune.same(spoiled, expected)


ROW = configurations.Rows(rows=1, block_k=1024, repeat=1, warps=4)
CASE = tune.Case("rows", ROW, 1, lambda device: lambda config: torch.ones(2, 3))


def test_a_row_is_suggested_only_where_it_is_faster_by_more_than_the_rounds_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ROW._replace(warps=8)
    fits = {
        ROW: candidates.Fit(10, 0, 0, ""),
        other: candidates.Fit(10, 0, 0, ""),
        ROW._replace(rows=2): candidates.Fit(0, 0, 0, "spills 8 bytes"),
    }
    for seconds, verdict in (([1.0, 1.1, 1.2], f"suggested: {other}"), ([1.5, 2.0, 2.5], f"keep: {ROW}")):
        asked = []
        samples = {ROW: [2.0, 2.1, 2.2], other: seconds}
        monkeypatch.setattr(tune, "timed", lambda case, configs, *rest, samples=samples: asked.append(list(configs)) or (samples, {}))  # noqa: B023
        row = tune.tune(CASE, fits, None, 3)
        assert tune.table(row).splitlines()[-1] == verdict
        assert row["left_out"] == {"rows 2": "spills 8 bytes"}
        assert asked == [[ROW, other]]


def test_a_candidate_that_is_wrong_or_does_not_run_is_recorded_and_the_others_are_timed() -> None:
    def build(device: str) -> Callable[[Any], torch.Tensor]:
        def launch(config: Any) -> torch.Tensor:
            if config.warps == 16:
                raise RuntimeError("out of resources\nand more")
            return torch.full((2, 3), 2.0 if config.rows == 2 else 1.0)

        return launch

    clock = types.SimpleNamespace(cache=1, sampler=lambda calls, graph=False: lambda: 1.0)
    fits = dict.fromkeys([ROW, ROW._replace(rows=2), ROW._replace(warps=16), ROW._replace(warps=8)], candidates.Fit(1, 0, 0, ""))
    row = tune.tune(CASE._replace(build=build), fits, clock, 2, "cpu")
    assert row["wrong"] == {"rows 2": f"does not compute what {ROW} does", "warps 16": "does not run: out of resources"}
    assert {one["entry"] for one in row["candidates"]} == {"present row", "warps 8"}
    assert "wrong: rows 2: does not compute" in tune.table(row)


@pytest.mark.parametrize("arch", candidates.TARGETS)
def test_the_rows_that_the_aims_use_are_among_the_cases_once_each(arch: str) -> None:
    found = tune.aimed_at(arch)
    assert [case.name.split()[0] for case in found[:5]] == ["decode", "decode", "product", "scan", "rows"]
    assert len({(case.name.split()[0], case.row) for case in found}) == len(found)
    assert {case.name for case in found} <= {case.name for case in tune.cases(arch)}


@pytest.fixture
def language_model(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A tiny model, instead of the one that the command would load; a byte is a token."""
    model = models.tiny_llama(blocks=2)
    monkeypatch.setattr(models, "find_model", lambda name: models.Source("tiny", "nowhere", None))
    monkeypatch.setattr(models, "load_tokenizer", lambda source: lambda text: list(text[:5000].encode()))
    monkeypatch.setattr(models, "load_model", lambda source, dtype, device: model)
    return model


def test_a_whole_model_leaves_a_complete_record(language_model: torch.nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "generation.json"
    with pytest.raises(SystemExit) as ended:
        generation.main(["--device", "cpu", "--prompt", "40", "--context", "8", "--new", "4", "--rounds", "2", "--out", str(out)])
    assert ended.value.code == 0
    found = json.loads(out.read_text())
    names = [row["model"] for row in found["rows"]]
    assert names[:2] == ["fp32", generation_page.BASELINE]
    assert names == list(generation.variants())
    for row in found["rows"]:
        assert 0 <= row["first_tokens"] <= 4
        assert row["prefill"]["tokens_per_second"]["median"] > 0
    by_name = {row["model"]: row for row in found["rows"]}
    assert by_name["bf16"]["decode"]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert by_name["fp32"]["first_tokens"] == 4
    assert by_name["int8-bf16"]["bytes"] < by_name["bf16"]["bytes"] < by_name["fp32"]["bytes"]
    page = generation_page.section(found)
    assert "(results/generation.png)" in page
    assert tables.provenance(found) in page
    assert found["command"] in page
    assert all(f"| {row['label']} |" in page for row in found["rows"])
    assert {path.name for path in tmp_path.iterdir()} == {"generation.json", "generation.png"}


def test_a_model_that_computes_something_else_is_recorded_and_never_timed(
    language_model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "generation.json"
    arguments = ["--device", "cpu", "--prompt", "64", "--context", "8", "--new", "4", "--rounds", "2", "--out", str(out), "--no-pictures"]
    monkeypatch.setattr(timing, "interleave", lambda timed, rounds: {key: [1.0, 1.0] for key in timed})

    def failed() -> dict[str, str]:
        with pytest.raises(SystemExit) as ended:
            generation.main(arguments)
        assert ended.value.code == FAILED
        found = json.loads(out.read_text())
        assert {row["model"] for row in found["rows"]} == set(generation.variants()) - set(found["failed"])
        return found["failed"]

    with monkeypatch.context() as broken:
        broken.setattr(generation, "quantized", lambda model, dtype: models.tiny_llama(seed=1, blocks=2).to(dtype))
        wrong = failed()
        assert set(wrong) == {"int8-fp32", "int8-bf16", "int8-bf16-head"}
        assert "fast, float32 activations: its predictions are" in wrong["int8-fp32"]
    with monkeypatch.context() as broken:
        decode = generation.decode
        broken.setattr(generation, "decode", lambda *rest: (decode(*rest)[0].flip(0) + 1, 1.0))
        assert all("the timed loop made the tokens [" in reason for reason in failed().values())


def test_agreement_counts_the_first_tokens_that_are_the_same() -> None:
    assert [generation.agreement(tokens, [1, 2, 3]) for tokens in ([1, 2, 3], [1, 2, 4], [0, 2, 3])] == [3, 2, 0]
