"""Processes of Python that are watched: they end when they hang, when the time is over, and when whoever started them ends."""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import journal

ROOT = Path(__file__).resolve().parents[1]

#: Seconds in which a process imports what it needs, and in which it ends when it is told to.
START, GRACE = 20.0, 20.0


def run(arguments: Sequence[str], environment: dict[str, str], log: Path, watched: Path, end: float, patience: float) -> int | None:
    """Runs Python until it ends, hangs or the time is over.

    Args:
        arguments: of Python.
        environment: of the process.
        log: the file that its output is appended to.
        watched: the file that grows or changes as it goes on.
        end: when the time is over, as `time.monotonic` says it.
        patience: seconds without a change of `watched` after which it hangs.

    Returns:
        the exit status, minus the signal that ended it; None if the time was over.
    """
    with log.open("ab") as output:
        output.write(f"\n$ python {shlex.join(arguments)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            return _watch(process, watched, end, patience)
        finally:
            stop(process)


def _watch(process: subprocess.Popen, watched: Path, end: float, patience: float) -> int | None:
    changed, seen = time.monotonic(), fingerprint(watched)
    while process.poll() is None:
        if time.monotonic() >= end:
            return None
        now = fingerprint(watched)
        if now != seen:
            changed, seen = time.monotonic(), now
        if time.monotonic() - changed > patience:
            stop(process, at_once=True)
            return -signal.SIGALRM
        time.sleep(0.05)
    return process.returncode


def last_line(log: Path) -> str:
    """The last words of a log."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


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
