"""The first day on a GPU, rehearsed: everything runs, nothing that was written is lost or measured again, and what is wrong is said."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import gpu_day, journal, shapes, suite
from experiments.command import InputError
from experiments.day import Day, Step, key_of
from experiments.journal import Journal

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def written(folder: Path) -> dict[str, Any]:
    """What a later run may not change: the tests that have ended, and each row but the names of kernels, which come last."""
    found: dict[str, Any] = dict(suite.outcomes(suite.read(folder / "suite.jsonl")))
    for name, key in key_of.items():
        found |= {f"{name}: {key(row)}": {k: v for k, v in row.items() if k != "kernels"} for row in rows_of(folder / f"{name}.json")}
    return found


def killed(folder: Path, when: Callable[[], bool]) -> None:
    """Starts the rehearsal and kills it without a warning at a moment."""
    process = subprocess.Popen([sys.executable, "-m", "experiments.gpu_day", "--rehearse", "--out", folder], cwd=ROOT, env=ENVIRONMENT)
    while not when():
        assert process.poll() is None, "ended before its moment came"
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the processes of a process that was killed")
def test_a_rehearsal_that_is_killed_again_and_again_loses_nothing_and_ends_well(tmp_path: Path) -> None:
    moments = {
        "in the suite": lambda: len(suite.outcomes(suite.read(tmp_path / "suite.jsonl"))) >= 20,
        "in the layers": lambda: len(rows_of(tmp_path / "speed-cuda.json")) >= 2,
        "in the tuning": lambda: len(rows_of(tmp_path / "tune.json")) >= 1,
    }
    snapshots = []
    for when in moments.values():
        killed(tmp_path, when)
        snapshots.append(written(tmp_path))
    line = [sys.executable, "-m", "experiments.gpu_day", "--rehearse", "--out", tmp_path]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    assert "kernels: verified" in done.stdout
    assert "rest of the suite: verified" in done.stdout
    assert "not measured" not in done.stdout.replace("as fast as bitsandbytes: not measured", "")
    final = written(tmp_path)
    for snapshot in snapshots:
        assert snapshot.items() <= final.items()
    assert all(len(earlier) < len(later) for earlier, later in zip(snapshots, [*snapshots[1:], final], strict=True))
    # No test and no row twice.
    assert set(Counter(event["test"] for event in suite.read(tmp_path / "suite.jsonl") if "test" in event).values()) == {1}
    for name, key in key_of.items():
        record = json.loads((tmp_path / f"{name}.json").read_text())
        names = [key(row) for row in record["rows"]]
        assert len(set(names)) == len(names) > 0
        assert record["begun"] == record["failed"] == {}
        assert "experiments.gpu_day" in record["command"]
    layers = [row for row in rows_of(tmp_path / "speed-cuda.json") if row["part"] == "layers"]
    assert all(row["kernels"]["int-mm"] for row in layers)
    assert {row["part"] for row in rows_of(tmp_path / "speed-cuda.json")} == set(shapes.PARTS)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


HEADING = {"experiment": "e", "versions": {}, "device": {"gpu": None}, "settings": {"rounds": 3}}


def opened(path: Path, **options: Any) -> Journal:
    return Journal(path, HEADING | {"settings": dict(HEADING["settings"])}, lambda row: row["name"], **({"resume": True} | options))


def test_a_record_that_is_killed_at_any_moment_is_whole_and_goes_on(tmp_path: Path) -> None:
    program = f"""
import random, sys, time
from pathlib import Path
from experiments.journal import Journal
record = Journal(Path({str(tmp_path / "r.json")!r}), {HEADING!r}, lambda row: row["name"], resume=True)
for i in range(40):
    record.measure(str(i), lambda: time.sleep(0.005) or {{"name": str(i), "value": random.random()}})
"""
    seen: dict[str, float] = {}
    for moment in range(30):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT)
        time.sleep(0.25 + 0.03 * (moment % 7))
        process.kill()
        process.wait()
        found = {row["name"]: row["value"] for row in rows_of(tmp_path / "r.json")}
        assert seen.items() <= found.items()
        seen = found
        if len(found) == 40:
            break
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, check=True)
    record = json.loads((tmp_path / "r.json").read_text())
    done = {row["name"]: row["value"] for row in record["rows"]}
    assert seen.items() <= done.items()
    assert {*done, *record["failed"]} == {str(i) for i in range(40)}


def fail(error: BaseException) -> Any:
    raise error


def test_what_fails_is_recorded_with_its_reason_and_the_next_row_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = opened(tmp_path / "r.json", order=["c", "a"])
    record.measure("a", lambda: {"name": "a"})
    record.measure("b", lambda: fail(RuntimeError("no such launch\nat all")))
    record.measure("s", lambda: fail(journal.Skipped("too large")))
    record.measure("c", lambda: {"name": "c"})
    assert record.status == journal.FAILED
    found = json.loads((tmp_path / "r.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["c", "a"]
    assert (found["failed"], found["skipped"]) == ({"b": "RuntimeError: no such launch"}, {"s": "too large"})
    assert found["planned"] == ["a", "b", "s", "c"]
    again = opened(tmp_path / "r.json")
    assert again.pending(["a", "b", "s", "c", "d"]) == ["d"]
    again.measure("b", lambda: pytest.fail("measured again"))
    assert "b: RuntimeError: no such launch" in capsys.readouterr().err


def test_a_row_with_something_wrong_in_it_makes_the_exit_status_1(tmp_path: Path) -> None:
    record = opened(tmp_path / "r.json")
    record.measure("a", lambda: {"name": "a", "wrong": {}})
    assert record.status == 0
    record.measure("b", lambda: {"name": "b", "wrong": {"int8": "differs"}})
    assert record.status == journal.FAILED


def test_an_interrupted_row_is_as_good_as_not_begun(tmp_path: Path) -> None:
    record = opened(tmp_path / "r.json")
    with pytest.raises(KeyboardInterrupt):
        record.measure("a", lambda: fail(KeyboardInterrupt()))
    assert json.loads((tmp_path / "r.json").read_text())["begun"] == {}
    assert opened(tmp_path / "r.json").pending(["a"]) == ["a"]


def test_a_lost_device_ends_the_process_after_the_row_is_recorded(tmp_path: Path) -> None:
    record = opened(tmp_path / "r.json", alive=lambda: False)
    with pytest.raises(SystemExit) as ended:
        record.measure("a", lambda: fail(RuntimeError("illegal memory access")))
    assert ended.value.code == journal.LOST
    assert json.loads((tmp_path / "r.json").read_text())["failed"] == {"a": "RuntimeError: illegal memory access"}


@pytest.mark.parametrize(
    ("work", "status", "reason"), [("time.sleep(60)", journal.LOST, "no result after 0.2 seconds"), ("os._exit(9)", 9, "")]
)
def test_a_row_that_hangs_or_kills_the_process_does_not_keep_the_others(tmp_path: Path, work: str, status: int, reason: str) -> None:
    program = f"""
import os, time
from pathlib import Path
from experiments.journal import Journal
record = Journal(Path({str(tmp_path / "r.json")!r}), {HEADING!r}, lambda row: row["name"], resume=True, patience=0.2)
record.measure("bad", lambda: {work})
record.measure("good", lambda: {{"name": "good"}})
raise SystemExit(record.status)
"""
    statuses = []
    while statuses[-1:] != [journal.FAILED]:
        assert len(statuses) <= journal.MOST_DEATHS
        statuses.append(subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, timeout=60, check=False).returncode)
    record = json.loads((tmp_path / "r.json").read_text())
    assert statuses == [status] * (1 if reason else journal.MOST_DEATHS) + [journal.FAILED]
    assert record["failed"] == {"bad": reason or "the process died 3 times at this row"}
    assert [row["name"] for row in record["rows"]] == ["good"]


def test_a_record_of_other_settings_or_another_gpu_is_not_continued(tmp_path: Path) -> None:
    opened(tmp_path / "r.json").measure("a", lambda: {"name": "a"})
    for changes, message in (
        ({"settings": {"rounds": 4}}, r"rounds: 3 there, 4 here"),
        ({"device": {"gpu": "NVIDIA X"}}, "gpu: None there, NVIDIA X here"),
        ({"versions": {"torch": "2"}}, "versions"),
    ):
        with pytest.raises(InputError, match=message):
            Journal(tmp_path / "r.json", HEADING | changes, lambda row: row["name"], resume=True, same=("rounds",))
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(InputError, match="is not a record"):
        opened(tmp_path / "r.json")


TESTS = """
import os, pytest
def test_a(): pass
@pytest.mark.skip(reason="no such library")
def test_b(): pass
def test_c(): assert 1 == 2, "two"
@pytest.fixture
def broken(): raise ValueError("in the fixture")
def test_d(broken): pass
def test_e():
    if not os.environ.get("SURVIVES"): os._exit(7)
def test_f(): pass
"""


def pytest_run(folder: Path, **environment: str) -> int:
    path = folder / "suite.jsonl"
    size = path.stat().st_size if path.is_file() else 0
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "experiments.suite"]
    line += ["--journal", str(path), "--journal-size", str(size), "test_x.py"]
    return subprocess.run(line, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, check=False).returncode


def test_tests_are_on_disk_as_they_end_and_do_not_run_twice(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(TESTS)
    path = tmp_path / "suite.jsonl"
    assert pytest_run(tmp_path) == 7
    found = {name.split("::")[1]: (event["outcome"], event["why"]) for name, event in suite.outcomes(suite.read(path)).items()}
    assert found["test_a"] == (suite.PASSED, "")
    assert found["test_b"] == (suite.SKIPPED, "no such library")
    assert found["test_c"][0] == found["test_d"][0] == suite.FAILED
    assert "two" in found["test_c"][1]
    assert "in the fixture" in found["test_d"][1]
    assert suite.unfinished(suite.read(path)) == ["test_x.py::test_e"]
    assert len(found) == 4
    before = path.read_bytes()
    path.write_bytes(before + b'{"test": "test_x.py::te')  # a line that was cut off
    path.write_bytes(before)
    assert pytest_run(tmp_path, SURVIVES="1") == 0  # those that failed are not among those that run now
    assert path.read_bytes().startswith(before)
    events = suite.read(path)
    assert Counter(event["test"] for event in events if "test" in event) == {f"test_x.py::test_{x}": 1 for x in "abcdef"}
    assert suite.summary(events, ["test_x.py"])["counts"] == {"passed": 3, "skipped": 1, "failed": 2}
    assert suite.summary(events, ["test_x.py"])["missing"] == ["test_x.py"]


def test_a_file_that_skips_itself_or_cannot_be_collected_is_in_the_journal(tmp_path: Path) -> None:
    for text, outcome, why in (
        ("import pytest\npytest.importorskip('absent')", suite.SKIPPED, "absent"),
        ("1 / 0", suite.FAILED, "division"),
    ):
        (tmp_path / "test_x.py").write_text(text)
        (tmp_path / "suite.jsonl").unlink(missing_ok=True)
        pytest_run(tmp_path)
        (event,) = suite.outcomes(suite.read(tmp_path / "suite.jsonl")).values()
        assert event["outcome"] == outcome
        assert why in event["why"]


def test_an_event_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "j"
    suite.note(path, began="a")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"test": "a", "outco')
    assert suite.read(path) == [{"began": "a"}]
    assert suite.read(path, 0) == []


def test_the_files_that_launch_kernels_come_first() -> None:
    kernels, rest = suite.test_files(ROOT / "tests")
    assert kernels[: len(suite.FIRST)] == list(suite.FIRST)
    assert "test_laws.py" in kernels
    assert not set(kernels) & set(rest)
    assert {*kernels, *rest} == {path.name for path in (ROOT / "tests").glob("test_*.py")}


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day(tmp_path, 10, rehearse=True, model=None, workers=1)


def step(day: Day, program: str, name: str = "x", each: float = 1) -> Step:
    """A step of which one thing is left to do until its file holds "done"."""
    path = day.folder / name
    return Step("layers", name, ["-c", program.replace("FILE", repr(str(path)))], path, lambda: int(not done(path)), lambda: each)


def done(path: Path) -> bool:
    return path.is_file() and "done" in path.read_text()


def test_a_step_that_ends_without_progress_is_given_up_with_its_last_words(day: Day) -> None:
    day.run([step(day, "raise SystemExit('no such model')"), step(day, "open(FILE, 'w').write('done')", "y")])
    assert day.stuck == {"x": "exit status 1: no such model"}
    assert done(day.folder / "y")
    text, status = gpu_day.summary(day, [])
    assert "gave up x: exit status 1: no such model" in text
    assert status == journal.FAILED


def test_a_step_that_loses_its_process_goes_on_as_long_as_it_makes_progress(day: Day) -> None:
    program = "import os\nopen(FILE, 'a').write('i')\nif os.path.getsize(FILE) < 4: os.kill(os.getpid(), 9)\nopen(FILE, 'a').write('done')"
    day.run([step(day, program)])
    assert (day.folder / "x").read_text() == "iiiidone"
    assert day.stuck == {}


def test_at_the_limit_a_process_is_ended_and_may_write_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day = Day(tmp_path, 15 / 60, rehearse=True, model=None, workers=1)
    program = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: open(FILE, 'w').write('interrupted')"
    own = step(day, program)
    day.run([own])
    assert (tmp_path / "x").read_text() == "interrupted"
    assert "stopped at the limit" in capsys.readouterr().out
    text, status = gpu_day.summary(day, [own])
    assert status == gpu_day.UNFINISHED
    assert "next: x: 1 to do, about 21 s" in text
    assert "run the same command again" in text


def test_a_step_too_long_for_what_is_left_makes_room_for_a_shorter_one(day: Day) -> None:
    finish = "open(FILE, 'w').write('done')"
    day.run([step(day, finish, "first"), step(day, finish, "long", each=1e4), step(day, finish, "short")])
    assert [name for name in ("first", "long", "short") if done(day.folder / name)] == ["first", "short"]


def test_tests_that_a_process_died_at_are_failures_and_the_others_run(day: Day) -> None:
    own = Step("kernels", "test_x.py", [], day.tests, lambda: 1, lambda: 1.0)
    suite.note(day.tests, began="tests/test_x.py::test_a")
    day._after_tests(own, -signal.SIGSEGV, 3.0)
    suite.note(day.tests, began="tests/test_x.py::test_b")
    day._after_tests(own, -signal.SIGALRM, 3.0)
    day._after_tests(own, None, 3.0)
    assert [event for event in suite.read(day.tests) if "file" in event] == []
    day._after_tests(own, 1, 3.0)
    found = suite.summary(suite.read(day.tests), ["test_x.py"])
    assert found["failures"] == {
        "tests/test_x.py::test_a": "did not end: the process died of signal 11",
        "tests/test_x.py::test_b": "did not end: no test ended for 300 seconds",
    }
    assert found["missing"] == []


def test_a_folder_is_that_of_one_run_and_of_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = gpu_day.only_one(tmp_path)
    with pytest.raises(InputError, match="another run writes there"):
        gpu_day.main(["--rehearse", "--out", str(tmp_path)])
    os.close(held)
    (tmp_path / "day.json").write_text('{"gpu": "NVIDIA X"}')
    monkeypatch.setattr(gpu_day, "gpu", lambda: "NVIDIA Y")
    with pytest.raises(InputError, match="its records are of NVIDIA X, this is NVIDIA Y"):
        gpu_day.main(["--out", str(tmp_path)])
    monkeypatch.setattr(gpu_day, "gpu", lambda: None)
    with pytest.raises(InputError, match="--rehearse does all of it without one"):
        gpu_day.main(["--out", str(tmp_path)])
    for options, message in (
        (["--minutes", "0"], "more than 0"),
        (["--model", "no/such"], "no such folder"),
        (["--parts", "x"], "invalid choice"),
    ):
        with pytest.raises(InputError, match=message):
            gpu_day.main(["--rehearse", "--out", str(tmp_path), *options])


def test_a_plan_says_what_is_next_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_day.main(["--plan", "--out", str(tmp_path)])
    assert ended.value.code == gpu_day.UNFINISHED
    out = capsys.readouterr().out
    assert "next: test_kernels.py: 1 to do" in out
    assert "next: layers: speed-cuda.json: 7 to do" in out
    assert "4096 x 8192 x 8192, 0.1 %: at least 1.5 times as fast as bfloat16 `F.linear`: not measured" in out
    assert list(tmp_path.iterdir()) == []
