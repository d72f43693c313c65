"""What every test runs under: one thread, where the kernels run, hypothesis' profiles, and the packages of this very clone."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings

TRITON_IS_THERE = importlib.util.find_spec("triton") is not None
#: An architecture such as sm_90: the kernels are compiled for it, and run as PTX in the emulator.
EMULATE = os.environ.get("EMULATE")
# Before Triton is imported, which decides once for all of its functions.
if EMULATE:
    os.environ["TRITON_INTERPRET"] = "0"
elif TRITON_IS_THERE and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]

# Programs that tests start find the packages of this clone, too, whether they are installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

torch.set_num_threads(1)

if os.environ.get("TRITON_INTERPRET") == "1" and TRITON_IS_THERE:
    from tests.tools.interpreter import correct_bfloat16

    correct_bfloat16()

#: The same examples on every run, and no database: a failure depends on nothing but the code. Nothing is shrunk, which takes minutes in
#: Triton's interpreter: an example is one line as it is, and the blob that is printed reproduces it under any profile.
NO_SHRINKING = (Phase.explicit, Phase.generate, Phase.target)
settings.register_profile("default", max_examples=25, derandomize=True, deadline=None, database=None, print_blob=True, phases=NO_SHRINKING)
#: For tests/tools/mutants.py: one fault after the other, each seen by many tests.
settings.register_profile("mutants", settings.get_profile("default"), max_examples=12)
#: Other examples on every run, kept in .hypothesis/ where they fail, shrunk; hypothesis prints the seed.
settings.register_profile("deep", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config: pytest.Config) -> None:
    """Packages named `fast` and `reference` exist on PyPI: what is tested must be what lies beside the tests."""
    for package in ("reference", "fast", "emulator"):
        spec = importlib.util.find_spec(package)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != ROOT / package:
            raise pytest.UsageError(f"{package} must come from {ROOT / package}, got {found}; run pytest from {ROOT}, or pip install -e .")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What the kernels run on, and which versions."""
    if not TRITON_IS_THERE:
        device = "nothing: Triton is not installed"
    elif EMULATE:
        device = f"an emulated {EMULATE}, compiled and executed as PTX in the emulator"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        device = "Triton's interpreter, on the CPU"
    elif torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()}, compute capability {'.'.join(map(str, torch.cuda.get_device_capability()))}"
    else:
        device = "nothing: neither a CUDA GPU nor TRITON_INTERPRET=1 is there"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("torch", "triton", "numpy", "hypothesis", "bitsandbytes", "transformers"))
    return [f"kernels on: {device}", f"versions: {versions}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without Triton, skips what runs on its side (tests/comparison.py)."""
    for item in items if not TRITON_IS_THERE else ():
        parameters = getattr(item, "callspec", None)
        if parameters is not None and any(getattr(value, "name", None) == "triton" for value in parameters.params.values()):
            item.add_marker(pytest.mark.skip(reason="could not import 'triton'"))


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    """The CPU's engine computes, not the kernels in Triton's interpreter: they would take minutes to test what is around them."""
    from fast import backend

    with backend("cpu"):
        yield


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    """With EMULATE set, each test runs within an emulated GPU."""
    if not EMULATE:
        yield
        return
    import emulator

    with emulator.gpu(EMULATE):
        yield


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets block shapes of the kernels, so that Triton's interpreter, which takes a moment for each block, gets few. A GPU keeps its own.

    Called with the kind of configuration ("scan", "rows", "product", "decode") and what to replace in it: fields, or a function of K
    that gives them.
    """

    def replace(kind: str, fields: dict[str, int] | Callable[[int], dict[str, int]]) -> None:
        if os.environ.get("TRITON_INTERPRET") != "1":
            return
        from fast.kernels import decode, outliers, product, quantization

        module = {"scan": outliers, "rows": quantization, "product": product, "decode": decode}[kind]
        chosen = getattr(module, f"{kind}_configuration")

        def configuration(*arguments: Any, **options: Any) -> Any:
            return chosen(*arguments, **options)._replace(**(fields(arguments[-1]) if callable(fields) else fields))

        monkeypatch.setattr(module, f"{kind}_configuration", configuration)

    return replace


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tells the compiled side apart from what ran in the interpreter."""
    reports = [r for r in terminalreporter.stats.get("passed", []) if r.nodeid.startswith("tests/test_compiled.py")]
    if reports:
        seconds = sum(r.duration for r in reports)
        terminalreporter.write_line(f"compiled: {len(reports)} cases executed as PTX in the emulator, {seconds:.0f} s of the tests' time")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


# Here, since what they import has to find the environment that is set above.
from tests.tiny_models import folder, text  # noqa: F401


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the built site is served."""
    from tests.tools import browser

    assert (browser.SITE / "index.html").exists(), "build the site first: make docs"
    with browser.server() as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    from tests.tools import browser

    with browser.browser() as running:
        yield running


@pytest.fixture
def open_page(address: str, chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages of the site, and fails in the end if one of them complained or asked another host."""
    from tests.tools import browser

    contexts, listeners = [], []

    def open_one(path: str, **settings: Any) -> Any:
        context = chromium.new_context(**settings)
        page = context.new_page()
        contexts.append(context)
        listeners.append(browser.Listener(page, address))
        page.goto(address + path, wait_until="load")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [complaint for listener in listeners for complaint in listener.complaints] == []
