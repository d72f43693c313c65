"""Compiles native.c with the C compiler of this machine, once: into a folder that only its user can write, and loads it from there.

A library is code that runs with the user's rights, so where it comes from matters: it is made from the source beside this file, and
its folder, ~/.cache/llm-int8 (XDG_CACHE_HOME moves it), has to be the user's own. Its name holds a hash of all that it is made from, so
another version, compiler or processor finds no file of its own and compiles one. A file appears there complete, under its name, or not
at all. Where the folder cannot be used, a temporary one serves this process alone.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("native.c")

#: -ffp-contract=off is part of the contract: a product and a sum round one by one.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread")

#: Seconds; it takes one or two.
TIME_LIMIT = 120


class BuildError(Exception):
    """The library could not be made or loaded; says why."""


def library(name: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """native.c compiled with `flags`, from the cache if it is there.

    Args:
        name: of the set of instructions, a part of the file's name.
        flags: the compiler's, for these instructions.

    Raises:
        BuildError: there is no compiler, it fails, or what it made does not load.
    """
    compiler = find_compiler()
    command = [compiler, *FLAGS, *flags, str(SOURCE)]
    file_name = f"native-{name}-{_key(command)}.so"
    try:
        folder = cache_folder()
    except (OSError, RuntimeError):  # read-only, not the user's own, or no home at all
        return _load_from_a_temporary_folder(command, file_name)
    made = folder / file_name
    if not made.exists():
        try:
            compile_library(command, made)
        except OSError:  # no space, or made read-only since
            return _load_from_a_temporary_folder(command, file_name)
    try:
        return ctypes.CDLL(str(made))
    except OSError:  # cut off by a full disk, or of another system that shares this home: made anew
        compile_library(command, made)
        return _loaded(made)


def find_compiler() -> str:
    """Path of the C compiler: CC, if set, or else cc, gcc or clang.

    Raises:
        BuildError: there is none.
    """
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(f"no C compiler: {' or '.join(names)} is not on PATH")


def cache_folder() -> Path:
    """The folder of the compiled libraries, made if it is missing.

    Raises:
        OSError: it cannot be made, or others than its user could write to it or exchange it.
        RuntimeError: there is no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "llm-int8"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    if sys.platform != "win32":
        _check_owner(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder


def _check_owner(folder: Path) -> None:
    """Checks that nobody but this user, or root, can write to `folder` or put another in its place."""
    own = os.geteuid()
    for place in (folder, *folder.parents):
        found = place.stat()
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # In a sticky folder, such as /tmp, nobody can rename what belongs to another.
        if found.st_uid not in ({own} if place == folder else {own, 0}) or (
            others_write and (place == folder or not found.st_mode & stat.S_ISVTX)
        ):
            raise PermissionError(f"others than user {own} can write to {place}")


def sources() -> list[Path]:
    """SOURCE and the files beside it that it includes."""
    return sorted(SOURCE.parent.glob(f"{SOURCE.stem}*.[ch]"))


def _key(command: list[str]) -> str:
    """A hash of what the library follows from."""
    compiler = os.stat(command[0])
    parts = [path.read_bytes() for path in sources()]
    told = (repr(command[:-1]), repr((compiler.st_size, compiler.st_mtime_ns)), platform.machine(), sys.platform)
    return hashlib.sha256(b"\0".join([*parts, *map(str.encode, told)])).hexdigest()[:20]


def compile_library(command: list[str], target: Path) -> None:
    """Compiles to `target`, which appears complete: another process may do the same at the same time."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".compiling-") as private:
        made = Path(private) / "native.so"
        try:
            done = subprocess.run(
                [*command, "-o", str(made), "-lm"], capture_output=True, text=True, timeout=TIME_LIMIT, stdin=subprocess.DEVNULL
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            raise BuildError(f"{command[0]} did not compile native.c: {error}") from error
        if done.returncode or not made.exists():
            said = next((line for line in done.stderr.splitlines() if "error" in line), "it made nothing")
            raise BuildError(f"{command[0]} did not compile native.c: {said.strip()}")
        os.replace(made, target)


def _load_from_a_temporary_folder(command: list[str], file_name: str) -> ctypes.CDLL:
    """Compiled and loaded for this process; the file goes at once, which a loaded library does not mind."""
    try:
        with tempfile.TemporaryDirectory(prefix="llm-int8-") as folder:  # of this user, 0700
            made = Path(folder) / file_name
            compile_library(command, made)
            return _loaded(made)
    except OSError as error:
        raise BuildError(f"there is no folder to compile native.c in: {error}") from error


def _loaded(made: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(made))
    except OSError as error:
        raise BuildError(f"{made.name} does not load: {error}") from error
