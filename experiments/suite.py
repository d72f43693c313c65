"""The test suite, watched from outside: each test's outcome is on disk as it ends, and a test that has ended is not run again.

    pytest tests/test_kernels.py -p experiments.suite --journal suite.jsonl

The journal has a line of JSON per event: a test began; a test ended, with its outcome and the reason; a file of tests ended. A process
that hangs or dies loses the tests that it was at, and no other. Where a failing test leaves the GPU unusable, the process ends there, so
that the tests after it are not counted as failures. This module imports neither Torch nor Triton: tests/conftest.py has to come first.
"""

import json
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

#: Names of tests/comparison.py by which a file of tests launches kernels where there is a GPU.
LAUNCHES = re.compile(r"\b(DEVICE|TRITON|SIDES|ROUTES)\b")
#: The first of them: what the others are built of.
FIRST = ("test_kernels.py", "test_operators.py")

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


def test_files(tests: Path) -> tuple[list[str], list[str]]:
    """The files of the suite: those that launch kernels, and the rest."""
    files = {path.name: bool(LAUNCHES.search(path.read_text(encoding="utf-8"))) for path in sorted(tests.glob("test_*.py"))}
    kernels = [name for name in FIRST if name in files]
    kernels += [name for name, launches in files.items() if launches and name not in FIRST]
    return kernels, [name for name in files if name not in kernels]


def note(journal: Path, **event: Any) -> None:
    """Appends an event to the journal, in one write."""
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def read(journal: Path, size: int | None = None) -> list[dict[str, Any]]:
    """The events of the journal, or those in its first `size` bytes; a line that was cut off by the end of its process is left out."""
    if not journal.is_file():
        return []
    events = []
    for line in journal.read_bytes()[:size].splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def outcomes(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What became of each test that ended, by its name; where two processes said something, the first that did."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if "test" in event:
            found.setdefault(event["test"], event)
    return found


def unfinished(events: list[dict[str, Any]]) -> list[str]:
    """The tests that began and did not end."""
    ended = outcomes(events)
    return [name for name in dict.fromkeys(event["began"] for event in events if "began" in event) if name not in ended]


def summary(events: list[dict[str, Any]], files: list[str]) -> dict[str, Any]:
    """What became of the tests of `files`.

    Returns:
        counts by outcome; "failures", the reason by test; "skipped", how many by reason; "missing", the files that have not ended.
    """
    own = [event for name, event in outcomes(events).items() if Path(name.split("::")[0]).name in files]
    ended = {event["file"] for event in events if "file" in event}
    return {
        "counts": dict(Counter(event["outcome"] for event in own)),
        "failures": {event["test"]: event["why"] for event in own if event["outcome"] == FAILED},
        "skipped": dict(Counter(event["why"] for event in own if event["outcome"] == SKIPPED).most_common()),
        "missing": [name for name in files if name not in ended],
    }


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options: the journal, and how much of it was written before this process."""
    parser.addoption("--journal", type=Path, help="append each test's outcome to this file, and run no test whose outcome it has")
    parser.addoption("--journal-size", type=int, help="consider its first bytes alone: a worker that comes later sees the same tests")


def pytest_configure(config: pytest.Config) -> None:
    """Watches this process, and with pytest-xdist its workers."""
    if config.getoption("--journal"):
        config.pluginmanager.register(Watch(config), "journal of the suite")


class Watch:
    """The hooks. A worker of pytest-xdist writes only what it could not say otherwise, since its reports reach the main process."""

    def __init__(self, config: pytest.Config) -> None:
        self._journal: Path = config.getoption("--journal")
        size = config.getoption("--journal-size")
        self._ended = set(outcomes(read(self._journal, size)))
        self._is_worker = hasattr(config, "workerinput")
        self._found: dict[str, tuple[str, str]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out the tests that have ended."""
        left_out = [item for item in items if item.nodeid in self._ended]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item.nodeid not in self._ended]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        if not self._is_worker:
            note(self._journal, began=nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that could not be collected, or that skips itself as a whole."""
        if not self._is_worker and report.outcome != PASSED:
            note(self._journal, test=report.nodeid, outcome=report.outcome, why=reason(report), seconds=0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test ended; with the last one, the test."""
        if self._is_worker:
            return
        name = report.nodeid
        self._seconds[name] += report.duration
        before = self._found.get(name, (PASSED, ""))
        if report.outcome != PASSED and before[0] != FAILED:
            self._found[name] = report.outcome, reason(report)
        # A worker that died sends one report, of no phase known to pytest.
        if report.when not in ("setup", "call"):
            outcome, why = self._found.pop(name, (PASSED, ""))
            note(self._journal, test=name, outcome=outcome, why=why, seconds=round(self._seconds.pop(name), 3))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Ends the process where a test that failed has left the GPU unusable."""
        report = yield
        if report.outcome == FAILED and device_is_lost():
            note(
                self._journal, test=item.nodeid, outcome=FAILED, why=f"the GPU is lost: {reason(report)}", seconds=round(report.duration, 3)
            )
            os._exit(70)
        return report


def reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped or failed, in a line or a few."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message[:1000] if crash else report.longreprtext[-1000:]


def device_is_lost() -> bool:
    """Whether every further use of the GPU fails until the process ends."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
