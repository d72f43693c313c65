"""How the native engine is built and which of its forms is chosen."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import fast
from fast import cpu
from fast.cpu import build, engine
from tests import native_driver
from tests.comparison import NATIVE

ROOT = Path(__file__).resolve().parents[1]
HERE = [side.name for side in NATIVE if side.name in engine.available()]

needs_a_compiler = pytest.mark.skipif(not HERE, reason="no C compiler")
engines = pytest.mark.parametrize("name", HERE)


pytestmark = pytest.mark.usefixtures("on_the_cpu")


# Building it.

SMALL = "int answer(void) { return 42; }\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and a source that compiles in no time."""
    source = tmp_path / "small.c"
    source.write_text(SMALL)
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llm-int8"


def compiler(folder, monkeypatch, script):
    path = folder / "mycc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


def made(cache):
    return sorted(path.name for path in cache.iterdir())


@needs_a_compiler
def test_a_library_is_compiled_once_into_a_folder_of_its_user(cache, monkeypatch):
    assert build.library("small", ()).answer() == 42
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert len(made(cache)) == 1
    monkeypatch.setattr(build, "compile_library", lambda *_: pytest.fail("compiled again"))
    assert build.library("small", ()).answer() == 42


@needs_a_compiler
def test_another_source_other_flags_or_another_compiler_make_another_library(cache, tmp_path, monkeypatch):
    build.library("small", ())
    build.library("small", ("-DOTHER",))
    compiler(tmp_path, monkeypatch, f'exec {build.find_compiler()} "$@"')
    build.library("small", ())
    build.SOURCE.write_text(SMALL.replace("42", "43"))
    assert build.library("small", ()).answer() == 43
    assert len(made(cache)) == 4


@needs_a_compiler
def test_a_file_that_was_cut_off_is_made_anew(cache):
    build.library("small", ())
    (path,) = cache.iterdir()
    path.unlink()  # not overwritten: it is loaded
    path.write_bytes(b"\x7fELF")
    assert build.library("small", ()).answer() == 42


@needs_a_compiler
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_is_not_used(cache, mode):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert build.library("small", ()).answer() == 42
    assert made(cache) == []


@needs_a_compiler
def test_a_folder_whose_parent_others_can_write_is_not_used(cache):
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o777)
    assert build.library("small", ()).answer() == 42
    assert made(cache) == []
    cache.parent.chmod(0o1777)  # as /tmp: nobody can rename what is another's
    build.library("small", ())
    assert len(made(cache)) == 1


@needs_a_compiler
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_folder_of_another_user_is_not_used(cache):
    cache.mkdir(parents=True, mode=0o700)
    os.chown(cache, 12345, -1)
    assert build.library("small", ()).answer() == 42
    assert made(cache) == []


@needs_a_compiler
@pytest.mark.parametrize("why", ["a file in the way", "no right to write", "a full disk"])
def test_without_a_folder_the_library_is_made_for_this_process(cache, tmp_path, monkeypatch, why):
    if why == "a file in the way":
        (tmp_path / "cache").write_text("")
    elif why == "no right to write":
        allowed = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and allowed(path, mode))
    else:
        whole, compile_it = [], build.compile_library

        def full(command, target):
            if not whole:
                whole.append(target)
                raise OSError(28, "No space left on device")
            compile_it(command, target)

        monkeypatch.setattr(build, "compile_library", full)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(build.tempfile, "tempdir", str(temporary))
    assert build.library("small", ()).answer() == 42
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'x.c:1: error: boom' >&2; exit 1", "did not compile native.c: x.c:1: error: boom"),
        ("exit 0", "did not compile native.c: it made nothing"),
        ('for last; do :; done; while [ "$1" != -o ]; do shift; done; echo text > "$2"', "does not load"),
        ("while :; do :; done", "did not compile native.c: .* timed out"),
    ],
)
def test_a_broken_compiler_is_named(cache, tmp_path, monkeypatch, script, said):
    monkeypatch.setattr(build, "TIME_LIMIT", 1)
    compiler(tmp_path, monkeypatch, script)
    with pytest.raises(build.BuildError, match=said):
        build.library("small", ())
    assert not any(name.startswith(".compiling") for name in made(cache))


def test_no_compiler_is_named(cache, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match="no C compiler: cc or gcc or clang is not on PATH"):
        build.library("small", ())
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no C compiler: no-such-compiler is not on PATH"):
        build.library("small", ())


@needs_a_compiler
def test_a_file_has_its_name_when_it_is_complete_and_not_before(cache, monkeypatch):
    def interrupted(*_):
        raise OSError("interrupted")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(build.BuildError, match="interrupted"):
        build.library("small", ())
    assert made(cache) == []


ALONE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("build", sys.argv[1])
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.SOURCE = build.Path(sys.argv[2])
print(build.library("small", ()).answer())
"""


@needs_a_compiler
def test_processes_may_build_at_the_same_time(cache):
    command = [sys.executable, "-c", ALONE, build.__file__, str(build.SOURCE)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in running] == ["42\n"] * 4
    assert len(made(cache)) == 1


# Choosing it.


@pytest.fixture
def choose(monkeypatch):
    """Chooses as in a new process, on a processor with these features (None: this one)."""

    def chosen(features=None):
        if features is not None:
            monkeypatch.setattr(engine, "features", lambda: frozenset(features))
        return engine.chosen.__wrapped__()

    return chosen


@needs_a_compiler
def test_the_fastest_instructions_of_the_processor_are_taken(choose):
    best = engine.available()[0]
    assert choose() == (engine.Engine(best, "the fastest instructions that this processor has"), engine.forced(best))
    assert fast.cpu_engine().name in (best, "torch")


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ((), ["portable"]),
        (("avx2", "fma"), ["portable"]),
        (("avx2", "fma", "f16c"), ["avx2", "portable"]),
        (("avx2", "fma", "f16c", "avx_vnni"), ["avx_vnni", "avx2", "portable"]),
        (("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"), ["avx2", "portable"]),
        (("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"), ["avx512_vnni", "avx2", "portable"]),
        ((*engine.INSTRUCTIONS["avx512_vnni"].needs, "amx_tile"), ["avx512_vnni", "avx2", "portable"]),
        ((*engine.INSTRUCTIONS["avx512_vnni"].needs, "amx_tile", "amx_int8"), ["amx_int8", "avx512_vnni", "avx2", "portable"]),
        (("asimd", "asimddp"), ["neon_dotprod", "portable"]),
    ],
)
def test_instructions_need_all_of_their_features(features, names, monkeypatch):
    monkeypatch.setattr(engine, "features", lambda: frozenset(features))
    assert engine.available() == names


@needs_a_compiler
def test_what_multiplies_wrongly_or_does_not_compile_is_passed_over(choose, monkeypatch):
    best, *others = engine.available()
    if not others:
        pytest.skip("one set of instructions only")
    kept, monkeypatched = engine.forced, []

    def refuse(name):
        if name == best:
            monkeypatched.append(name)
            raise build.BuildError("no such flag")
        return kept(name)

    monkeypatch.setattr(engine, "forced", refuse)
    assert choose()[0] == engine.Engine(others[0], f"tried before it: {best}: no such flag")
    assert monkeypatched


class Wrong:
    """An engine whose product is off by one in one place."""

    def __init__(self, place):
        self.place = place

    def int8_matmul(self, a, b):
        acc = a.int() @ b.int().T
        acc[self.place(*acc.shape)] += 1
        return acc


@pytest.mark.parametrize("place", [lambda m, n: (0, 0), lambda m, n: (m - 1, n - 1), lambda m, n: (m // 2, n // 2)])
def test_the_self_test_sees_one_wrong_sum(place):
    assert not engine.is_exact(Wrong(place))


def test_the_self_test_sees_sums_that_saturate(monkeypatch):
    exact = Wrong(lambda m, n: (slice(0), slice(0)))
    assert engine.is_exact(exact)
    right = exact.int8_matmul
    monkeypatch.setattr(exact, "int8_matmul", lambda a, b: right(a, b).clamp(max=130 * 127 * 128 - 1))
    assert not engine.is_exact(exact)


def test_without_a_compiler_torch_operations_compute_and_one_line_says_so(choose, monkeypatch, caplog):
    def refuse(name):
        raise build.BuildError("no C compiler: cc is not on PATH")

    monkeypatch.setattr(engine, "forced", refuse)
    with caplog.at_level(logging.INFO):
        chosen = choose()
    assert chosen == (engine.Engine("torch", "no C compiler: cc is not on PATH"), None)
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert "no C compiler: cc is not on PATH" in record.getMessage()


def test_the_environment_turns_it_off_silently(choose, monkeypatch, caplog):
    monkeypatch.setenv("LLM_INT8_NATIVE", "0")
    assert choose() == (engine.Engine("torch", "LLM_INT8_NATIVE=0"), None)
    assert not caplog.records


FRESH = """
import torch, fast
layer = fast.Int8Linear.from_float(torch.eye(64))
x = torch.arange(64.0)[None]
print(fast.cpu_engine().name, bool(((layer(x) - x).abs() < 0.5).all()))
"""


def test_a_process_without_a_compiler_computes_all_the_same(tmp_path):
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "torch True\n"
    assert len(done.stderr.splitlines()) == 1
    assert "no C compiler" in done.stderr


@pytest.mark.parametrize("name", ["amx_int8", "avx512_vnni", "portable"])
@pytest.mark.parametrize("rows", [1, 8, 9, 100])
def test_many_rows_are_torchs_where_the_engine_has_no_instructions(name, rows, monkeypatch):
    computes = object()
    monkeypatch.setattr(engine, "chosen", lambda: (engine.Engine(name, ""), computes))
    everywhere = name != "portable"
    assert engine.implementation("cpu", rows) is (computes if rows <= 8 or everywhere else cpu)
    assert engine.for_all_rows() is (computes if everywhere else None)


def test_instructions_that_the_system_withholds_are_passed_over(choose, monkeypatch):
    def withheld(name, flags):
        library = native_driver.Driven(name, lambda: [])
        library.llm_int8_prepare = lambda: int(name == "avx2")
        return library

    monkeypatch.setattr(engine.build, "library", withheld)
    monkeypatch.setattr(engine, "is_exact", lambda native: True)
    monkeypatch.setattr(engine, "made_engines", {})
    chosen, native = choose({"avx2", "fma", "f16c"})
    assert chosen == engine.Engine("portable", "tried before it: avx2: the system does not let this process use the instructions avx2")
    assert native is not None


def test_an_engine_that_cannot_run_here_is_named(monkeypatch):
    monkeypatch.setattr(engine, "features", lambda: frozenset())
    monkeypatch.setattr(engine, "made_engines", {})
    with pytest.raises(RuntimeError, match="avx2 cannot run here: this processor does not have the instructions avx2; it has portable"):
        engine.implementation("avx2", 1)
    monkeypatch.setattr(engine, "chosen", lambda: (engine.Engine("torch", "LLM_INT8_NATIVE=0"), None))
    with pytest.raises(RuntimeError, match="the native engine cannot run here: LLM_INT8_NATIVE=0"):
        engine.implementation("native", 1)
    with pytest.raises(ValueError, match=r"backend must be one of .*'torch', 'native', 'amx_int8', 'avx512_vnni'"), fast.backend("c"):
        pass


# Installing it.


def test_the_source_is_installed_with_the_package():
    # hatch takes every file of a package that git does not ignore.
    assert build.SOURCE == ROOT / "fast" / "cpu" / "native.c"
    assert subprocess.run(["git", "check-ignore", "-q", str(build.SOURCE)], cwd=ROOT).returncode != 0
