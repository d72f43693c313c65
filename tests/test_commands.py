"""What the commands say of bad input: one clear line, and exit status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def command(*arguments: str, module: str = "perplexity") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", f"experiments.{module}", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


BAD_INPUT = {
    "no such folder": (["--model", "{tmp}/missing"], "there is no such folder"),
    "a file for a folder": (["--model", "{tmp}/text.txt"], "must be a folder or a hub name"),
    "a folder without a model": (["--model", "{tmp}"], "holds no config.json and no .gguf file"),
    "no such text": (["--text", "{tmp}/missing.txt"], "No such file"),
    "a folder for a text": (["--text", "{tmp}"], "Is a directory"),
    "an empty text": (["--text", "{tmp}/empty.txt"], "is empty"),
    "not a text": (["--text", "{tmp}/binary.txt"], "not text in UTF-8"),
    "a short text": (["--text", "{tmp}/text.txt", "--tokens", "512"], "shorter than one window of 512"),
    "an unknown method": (["--methods", "absmax-vector", "int4"], "invalid choice: 'int4'"),
    "no window": (["--windows", "0"], "must be 1 or more, got 0"),
    "too short a window": (["--tokens", "1"], "--tokens must be 2 or more"),
    "a negative threshold": (["--thresholds", "-1"], "must be 0 or more"),
    "too many passages": (["--passages", "99"], "--passages must be 1 to 6, got 99"),
    "no such device": (["--engine", "fast", "--device", "cuda:99"], "--device"),
    "no folder for the record": (["--out", "{tmp}/missing/p.json"], "there is no folder"),
    "not a record": (["--out", "{tmp}/p.png"], "must end in .json"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_line_and_exit_status_2(case: str, text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00" * 1000)
    before = sorted(tmp_path.iterdir())
    options, message = BAD_INPUT[case]
    arguments = [option.format(tmp=tmp_path) for option in options]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "p.json")]
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("dial", ["--factors", "3"], "must be a power of two"),
        ("dial", ["--features", "0"], "must be 1 or more"),
        ("outliers", ["--layers", "25"], "must be a share of 0 to 1"),
        ("outliers", ["--threshold", "0"], "must be more than 0"),
        ("outliers", ["--model", "/nowhere"], "there is no such folder"),
    ],
)
def test_the_other_commands_refuse_bad_input_in_the_same_way(module: str, options: list[str], message: str) -> None:
    done = command(*options, module=module)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert message in done.stderr
