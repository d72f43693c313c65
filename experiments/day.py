"""What a day on a GPU consists of: the steps, what each has still to do, and what their records say."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from . import journal, processes, records, shapes, suite
from .machine import COMMAND, versions
from .pages import speed as charts
from .processes import ROOT, START

PARTS = ("kernels", "compiled", "rest", "layers", "model", "tuning", "sweeps")

#: Cases of tests/compiled_cases.py on one architecture, about: how many there are, their record says once it is begun.
COMPILED = 60


class Step(NamedTuple):
    """Something that one process does.

    Attributes:
        part: one of PARTS.
        name: for people.
        arguments: what Python runs.
        watched: the file that grows or changes as it goes on.
        left: counts what it has still to do.
        each: says how many seconds one of those takes.
    """

    part: str
    name: str
    arguments: list[str]
    watched: Path
    left: Callable[[], int]
    each: Callable[[], float]

    @property
    def seconds(self) -> float:
        """How long the rest of it takes, about."""
        return START + self.left() * self.each()


class Day:
    """The steps, the folder they write to, and the time that is left.

    Args:
        folder: where the records go.
        minutes: the limit.
        rehearse: whether to do everything without a GPU.
        model: the folder of the language model, None for its package.
        workers: processes that run tests.
    """

    def __init__(self, folder: Path, minutes: float, rehearse: bool, model: str | None, workers: int) -> None:
        self.folder, self.rehearse, self._model, self._workers = folder, rehearse, model, workers
        self._end = time.monotonic() + 60 * minutes
        self.tests = folder / "suite.jsonl"
        self.stuck: dict[str, str] = {}

    @property
    def seconds_left(self) -> float:
        """Until the limit."""
        return self._end - time.monotonic()

    def record(self, name: str) -> dict[str, Any]:
        """The record NAME.json of this folder; empty where there is none."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def steps(self, parts: Sequence[str]) -> list[Step]:
        """Everything there is to do, in the order of `parts`."""
        kernels, rest = suite.test_files(ROOT / "tests")
        if self.rehearse:
            kernels, rest = ["test_worked_examples.py"], ["test_comparison.py"]
        found = {
            "kernels": [self._test("kernels", name, 60) for name in kernels],
            "compiled": [self._measurement("compiled", "compiled-cuda", ["tests.tools.compiled_on_gpu"], None, COMPILED, 5)],
            "rest": [self._test("rest", name, 20) for name in rest],
            "layers": [self._speed("layers", ["--aims"], self._jobs("layers"), 30)],
            "model": [self._generation()],
            "tuning": [self._tuning()],
            "sweeps": [self._speed("sweeps", ["--parts", "crossover", "detection"], self._jobs("crossover", "detection"), 10)],
        }
        return [step for part in parts for step in found[part]]

    def _jobs(self, *parts: str) -> list[str]:
        """Names of the rows of the record of speed."""
        if parts == ("layers",):
            jobs = [shapes.Job("layers", shape, ()) for shape in shapes.aimed_at("cuda")]
        else:
            jobs = [job for job in shapes.grid("cuda", ()) if job.part in parts]
        return [job.key for job in (shapes.rehearsed(jobs) if self.rehearse else jobs)]

    def _test(self, part: str, name: str, each: float) -> Step:
        arguments = [
            "-m",
            "pytest",
            f"tests/{name}",
            "-m",
            "not deep and not site",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "experiments.suite",
        ]
        arguments += ["--journal", str(self.tests)]
        if self._workers > 1 and not self.rehearse:
            arguments += ["-n", str(self._workers), "--dist", "worksteal"]

        def left() -> int:
            return int(name not in {event.get("file") for event in suite.read(self.tests)})

        def seconds() -> float:
            own = {event["file"]: event["seconds"] for event in suite.read(self.tests) if "file" in event and event["part"] == part}
            return sum(own.values()) / len(own) if own else each

        return Step(part, name, arguments, self.tests, left, seconds)

    def _speed(self, part: str, options: list[str], keys: list[str], each: float) -> Step:
        rounds = ["--rounds", "2"] if self.rehearse else []
        name = "speed-cuda"
        return self._measurement(part, name, ["experiments.speed", *options, *rounds, "--no-pictures"], keys, len(keys), each)

    def _generation(self) -> Step:
        tiny = ["--device", "cpu", "--prompt", "6", "--context", "2", "--new", "2", "--rounds", "2"]
        options = tiny if self.rehearse else ["--device", "cuda"]
        options += ["--model", self._model] if self._model and not self.rehearse else []
        count = 4 + bool(util.find_spec("bitsandbytes") and not self.rehearse)
        return self._measurement("model", "generation-cuda", ["experiments.generation", *options, "--no-pictures"], None, count, 30)

    def _tuning(self) -> Step:
        rounds = ["--rounds", "2"] if self.rehearse else []
        return self._measurement("tuning", "tune", ["experiments.tune", "--aims", *rounds], None, 5, 90)

    def _measurement(self, part: str, name: str, arguments: list[str], keys: list[str] | None, count: int, each: float) -> Step:
        """A step whose record is a `journal.Journal`; `keys` are its rows, None where the record itself says which."""
        path = self.folder / f"{name}.json"
        arguments = ["-m", *arguments, "--resume", "--out", str(path), *(["--rehearse"] if self.rehearse else [])]

        def left() -> int:
            record = self.record(name)
            if not record:
                return count
            wanted = keys or record["planned"]
            done = journal.names_of(record, key_of[name])
            unnamed = any("kernels" not in row for row in record["rows"] if name == "speed-cuda" and key_of[name](row) in wanted)
            return len([key for key in wanted if key not in done]) or unnamed

        def seconds() -> float:
            rows = [row for row in self.record(name).get("rows", []) if keys is None or key_of[name](row) in keys]
            took = [row["took"] for row in rows if "took" in row]
            return sum(took) / len(took) if took else each

        return Step(part, f"{part}: {name}.json", arguments, path, left, seconds)

    def run(self, steps: Sequence[Step]) -> None:
        """Runs the steps until all is done or the time is over."""
        ran = False
        while True:
            todo = [step for step in steps if step.left() and step.name not in self.stuck]
            # What is left of the time may be too short for the next step and long enough for a later one.
            fitting = [step for step in todo if START + step.each() <= self.seconds_left]
            if not todo or self.seconds_left <= 0 or (ran and not fitting):
                return
            step = (fitting or todo)[0]
            print(f"{step.name}: {step.left()} to do, about {minutes(step.seconds)}; {minutes(self.seconds_left)} left", flush=True)
            ran = True
            self._run(step)
            self.write()

    def _run(self, step: Step) -> None:
        """Runs one process of a step; whatever happens, the step is then nearer to its end, or is given up."""
        before = step.watched.read_bytes() if step.watched.is_file() else b""
        arguments = list(step.arguments)
        if step.watched == self.tests:
            arguments += ["--journal-size", str(len(before))]
        start = time.monotonic()
        status = self._process(arguments, step.watched)
        seconds = time.monotonic() - start
        if step.watched == self.tests:
            self._after_tests(step, status, seconds)
        elif status is not None and step.left() and (step.watched.read_bytes() if step.watched.is_file() else b"") == before:
            self.stuck[step.name] = f"exit status {status}: {self._last_line()}"
        result = "stopped at the limit" if status is None else f"exit status {status}"
        print(f"  {result} after {minutes(seconds)}", flush=True)

    def _after_tests(self, step: Step, status: int | None, seconds: float) -> None:
        """Notes that a file of tests has ended; of a process that hung or died, the tests that it was at."""
        if status is None:  # the limit: the tests that were running are run again
            return
        events = suite.read(self.tests)
        own = [name for name in suite.unfinished(events) if name.startswith(f"tests/{step.name}::")]
        if status in (0, 1, 5) or not own:
            if status not in (0, 1, 5):
                why = f"pytest ended with exit status {status}: {self._last_line()}"
                suite.note(self.tests, test=f"tests/{step.name}", outcome=suite.FAILED, why=why, seconds=0)
            suite.note(self.tests, file=step.name, part=step.part, status=status, seconds=round(seconds, 1))
            return
        for name in own:
            suite.note(self.tests, test=name, outcome=suite.FAILED, why=f"did not end: {processes.ending(status)}", seconds=0)

    def _process(self, arguments: Sequence[str], watched: Path) -> int | None:
        """Runs Python in the environment of this day; as `processes.run`."""
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]), "PYTHONUNBUFFERED": "1"}
        environment[COMMAND] = shlex.join(["python", "-m", "experiments.gpu_day", *sys.argv[1:]])
        if self._model:
            environment["LLM_INT8_MODEL"] = self._model
        if self.rehearse:
            environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        # The measurements have a limit of their own, by which they say themselves which row it was.
        patience = journal.PATIENCE + 4 * START + (600 if watched != self.tests else 0)
        return processes.run(arguments, environment, self.folder / "log.txt", watched, self._end, patience)

    def _last_line(self) -> str:
        return processes.last_line(self.folder / "log.txt")

    def write(self) -> None:
        """Writes the record of the day: on what, and what became of each part so far."""
        records.write(self.folder / "day.json", {"gpu": gpu(), "versions": versions(), "stuck": self.stuck, **self.results()})

    def results(self) -> dict[str, Any]:
        """What the records say: each part of the suite; the aims; wrong and failed rows of each measurement."""
        kernels, rest = (
            [step.name for step in self.steps([part])] if self.rehearse else names
            for part, names in zip(("kernels", "rest"), suite.test_files(ROOT / "tests"), strict=True)
        )
        events = suite.read(self.tests)
        speed = self.record("speed-cuda")
        return {
            "suite": {"kernels": suite.summary(events, kernels), "rest": suite.summary(events, rest)},
            "aims": self._aims(speed),
            "measurements": {name: wrong_of(self.record(name)) for name in key_of if self.record(name)},
        }

    def _aims(self, speed: dict[str, Any]) -> list[list[str]]:
        if not self.rehearse:
            return charts.aims(speed or None, "cuda")
        small = [aim._replace(shape=shapes.miniature(aim.shape)) for aim in shapes.AIMS]
        shape, share = shapes.STAGES_AIM
        return charts.aims(speed or None, "cuda", small, (shapes.miniature(shape), share))


#: The name of a row, by record.
key_of: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed-cuda": shapes.key_of,
    "generation-cuda": lambda row: row["model"],
    "tune": lambda row: row["case"],
    "compiled-cuda": lambda row: row["case"],
}


def wrong_of(record: dict[str, Any]) -> dict[str, Any]:
    """How many rows a record has; what in it is wrong, failed, or differs without being wrong, with the reasons."""
    wrong = dict(record["failed"])
    for row in record["rows"]:
        name = next(row[key] for key in ("case", "model") if key in row) if "part" not in row else shapes.key_of(row)
        wrong |= {f"{name}, {what}": why for what, why in row.get("wrong", {}).items()}
    differs = {f"{row['case']}, {what}": how for row in record["rows"] for what, how in row.get("differences", {}).items()}
    return {"rows": len(record["rows"]), "wrong": wrong, "skipped": record["skipped"], "differs": differs}


def gpu() -> str | None:
    """The name of the first GPU, None where there is none."""
    line = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if not shutil.which(line[0]):
        return None
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def minutes(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
