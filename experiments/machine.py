"""Where, when and by which command an experiment ran: the first entries of its record."""

import datetime
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "torch", "triton", "transformers", "bitsandbytes", "torchao")

#: A command that runs others names itself here: it is what somebody would run to get the same record.
COMMAND = "EXPERIMENT_COMMAND"


def heading(experiment: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The first entries of a record: what ran, by which command, when, on what, with which versions."""
    return {
        "experiment": experiment,
        "command": os.environ.get(COMMAND) or shlex.join(["python", "-m", f"experiments.{experiment}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device(),
        "versions": versions(),
        "settings": settings,
    }


def device() -> dict[str, Any]:
    """The processor, how many of its threads Torch uses, and the GPU if there is one."""
    import torch  # here, since the versions alone do not need it

    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def alive() -> bool:
    """Whether the GPU still works, if there is one: after some errors every further call fails until the process ends."""
    import torch

    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
