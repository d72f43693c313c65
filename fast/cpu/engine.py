"""Chooses the engine of the CPU, once, at first use: native.c with the best instructions of this processor, or Torch operations.

A set of instructions is taken where the operating system says that the processor has it, a C compiler makes the library, and the largest
codes come out right. If there is none, one line of the log says why, and everything runs in Torch operations. LLM_INT8_NATIVE=0 asks for
those.
"""

import logging
import os
import platform
import subprocess
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import cpu
from . import build
from .native import Native

log = logging.getLogger(__name__)


class Instructions(NamedTuple):
    """A set of instructions that native.c has a section for: what the processor must have, and what the compiler is told."""

    needs: frozenset[str]
    flags: tuple[str, ...]


_AVX512_VNNI = Instructions(
    frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "fma", "f16c"}),
    ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c"),
)

#: By name, the fastest first. The features have Linux's names, as /proc/cpuinfo lists them.
INSTRUCTIONS = {
    "amx_int8": Instructions(_AVX512_VNNI.needs | {"amx_tile", "amx_int8"}, (*_AVX512_VNNI.flags, "-mamx-tile", "-mamx-int8")),
    "avx512_vnni": _AVX512_VNNI,
    "avx_vnni": Instructions(frozenset({"avx_vnni", "avx2", "fma", "f16c"}), ("-mavxvnni", "-mavx2", "-mfma", "-mf16c")),
    "avx2": Instructions(frozenset({"avx2", "fma", "f16c"}), ("-mavx2", "-mfma", "-mf16c")),
    "neon_dotprod": Instructions(frozenset({"asimddp"}), ("-march=armv8.2-a+dotprod",)),
    "portable": Instructions(frozenset(), ()),
}

TORCH, NATIVE = "torch", "native"

#: What `fast.backend` can force.
CHOICES = (TORCH, NATIVE, *INSTRUCTIONS)

#: Up to so many rows reading the weight is what takes the time, and plain C reads it fastest, too.
FEW_ROWS = 8


class Engine(NamedTuple):
    """What computes on the CPU.

    Attributes:
        name: "torch", or one of INSTRUCTIONS.
        reason: why this one.
    """

    name: str
    reason: str


def cpu_engine() -> Engine:
    """Says what computes layers on the CPU, and why. Compiles the native engine if that has not been done yet."""
    return chosen()[0]


def implementation(choice: str, rows: int) -> Any:
    """What computes on the CPU for `rows` rows of X: an object with the functions of `fast.cpu`.

    Args:
        choice: "cpu" for the best, or one of CHOICES.

    Raises:
        RuntimeError: the engine cannot run here; says why.
    """
    if choice == "cpu":
        native = chosen()[1]
        return cpu if native is None or (rows > FEW_ROWS and torch_takes_many()) else native
    if choice == TORCH:
        return cpu
    if choice == NATIVE:
        engine, native = chosen()
        if native is None:
            raise RuntimeError(f"the native engine cannot run here: {engine.reason}")
        return native
    try:
        return forced(choice)
    except (build.BuildError, ValueError) as error:
        raise RuntimeError(f"the native engine with the instructions {choice} cannot run here: {error}") from error


def for_all_rows() -> Native | None:
    """The native engine, if it is what computes for any number of rows."""
    return None if torch_takes_many() else chosen()[1]


def torch_takes_many() -> bool:
    """Whether more rows than FEW_ROWS are left to Torch operations: a product in plain C is slower than one of floats."""
    return chosen()[0].name == "portable"


@cache
def chosen() -> tuple[Engine, Native | None]:
    """The engine of the CPU; with it the native one, or None where Torch operations compute."""
    if os.environ.get("LLM_INT8_NATIVE") == "0":
        return Engine(TORCH, "LLM_INT8_NATIVE=0"), None
    reasons = []
    for name in available():
        try:
            native = forced(name)
        except (build.BuildError, ValueError) as error:
            reasons.append(f"{name}: {error}")
            continue
        reason = "the fastest instructions that this processor has" if not reasons else f"tried before it: {'; '.join(reasons)}"
        return Engine(name, reason), native
    reason = "; ".join(dict.fromkeys(r.split(": ", 1)[1] for r in reasons))
    log.warning("int8 layers on the CPU run in Torch operations, which are slower: %s (LLM_INT8_NATIVE=0 silences this)", reason)
    return Engine(TORCH, reason), None


def available() -> list[str]:
    """The sets of instructions that this processor has, the fastest first."""
    found = features()
    return [name for name, instructions in INSTRUCTIONS.items() if instructions.needs <= found]


_lock = threading.Lock()
made_engines: dict[str, Native] = {}


def forced(name: str) -> Native:
    """The native engine with these instructions.

    Raises:
        BuildError: it cannot be made here, or multiplies wrongly.
        ValueError: this processor does not have the instructions.
    """
    with _lock:
        if name not in made_engines:
            if name not in available():
                raise ValueError(f"this processor does not have the instructions {name}; it has {', '.join(available())}")
            native = Native(build.library(name, INSTRUCTIONS[name].flags))
            if native.name != name or not is_exact(native):
                raise build.BuildError(f"the library with the instructions {name} multiplies wrongly")
            made_engines[name] = native
        return made_engines[name]


def put(native: Native) -> None:
    """Makes `native` the engine that is forced by its name: one that runs elsewhere, or was compiled differently, for tests."""
    with _lock:
        made_engines[native.name] = native


def is_exact(native: Native) -> bool:
    """Whether it multiplies the largest codes right: for one row, several and many, whole registers and not."""
    for sign_a, sign_b in ((127, 127), (-128, 127), (127, -128), (-128, -128)):
        a, b = (torch.full((rows, 130), value, dtype=torch.int8) for rows, value in ((65, sign_a), (50, sign_b)))
        for rows in (1, 7, 65):
            if not bool((native.int8_matmul(a[:rows], b) == 130 * sign_a * sign_b).all()):
                return False
    return True


@cache
def features() -> frozenset[str]:
    """What the operating system says that the processor has, by Linux's names; it has enabled their registers, too."""
    system, machine = platform.system(), platform.machine().lower()
    try:
        if system == "Linux":
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))), ()))
        if system == "Darwin":
            names = ["hw.optional.arm.FEAT_DotProd"] if machine == "arm64" else ["machdep.cpu.features", "machdep.cpu.leaf7_features"]
            said = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, timeout=10).stdout.lower().split()
            return frozenset({"asimddp"} if said == ["1"] else said)
    except (OSError, subprocess.SubprocessError):
        pass
    return frozenset()
