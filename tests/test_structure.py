"""The two implementations mirror each other, and nothing imports what it must not."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fast
import reference

ROOT = Path(__file__).resolve().parents[1]

#: Every function that exists twice, by the file that holds it on both sides.
PAIRS = {
    "absmax": ("absmax_quantize", "absmax_dequantize"),
    "zeropoint": ("zeropoint_quantize", "zeropoint_dequantize"),
    "vectorwise": ("int8_matmul", "quantized_matmul"),
    "decomposition": ("outlier_columns", "llm_int8_matmul"),
    "linear": ("Int8Linear",),
}
PAIRED = [name for names in PAIRS.values() for name in names]

#: The theory of the method and the study of a model: there is nothing to make fast.
REFERENCE_ONLY = ("bounds", "features")

#: What a package may import besides the standard library and itself; `fast` loads its optional ones only where they are used
#: (`test_fast_loads_neither_the_reference_nor_what_is_optional`).
OPTIONAL = {"triton", "tqdm", "transformers", "safetensors", "accelerate"}
MAY_IMPORT = {"reference": {"numpy"}, "fast": {"torch", *OPTIONAL}, "emulator": {"numpy", "triton"}}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def signature(function):
    """Names, order, kinds and defaults; the types differ by nature."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_table_of_pairs_is_complete():
    assert sorted(PAIRED) == sorted(reference.__all__)
    assert set(PAIRED) <= set(fast.__all__)


@pytest.mark.parametrize("name", PAIRED[:-1])
def test_twins_take_the_same_arguments(name):
    assert signature(getattr(reference, name)) == signature(getattr(fast, name))


def test_the_layers_take_the_same_arguments():
    ours, theirs = fast.Int8Linear, reference.Int8Linear
    assert signature(ours.from_float) == signature(theirs.from_float)
    assert signature(ours.forward) == signature(theirs.__call__)


def test_results_have_the_same_fields():
    for name in ("Absmax", "Zeropoint"):
        module = name.lower()
        twins = [getattr(getattr(package, module), name)._fields for package in (reference, fast)]
        assert twins[0] == twins[1]


@pytest.mark.parametrize("file", PAIRS)
def test_twins_live_in_files_of_the_same_name(file):
    for package in (reference, fast):
        for name in PAIRS[file]:
            assert Path(inspect.getsourcefile(getattr(package, name))) == ROOT / package.__name__ / f"{file}.py"


def test_every_reference_file_has_its_twin_or_is_reference_only():
    names = {path.stem for path in files("reference")}
    assert set(REFERENCE_ONLY) <= names
    assert names - set(REFERENCE_ONLY) <= {path.stem for path in files("fast")}


@pytest.mark.parametrize("package", [reference, fast], ids=lambda package: package.__name__)
@pytest.mark.parametrize("name", [*PAIRED[:-1], "Int8Linear.from_float"])
def test_a_docstring_says_every_argument(package, name):
    function = package
    for part in name.split("."):
        function = getattr(function, part)
    arguments = inspect.getdoc(function).split("Args:")[1].split("Returns:")[0]
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}:" in arguments or f"{parameter}," in arguments


def imports(path):
    """The packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_what_it_may(package):
    found = {(path.name, name) for path in files(package) for name in imports(path)}
    one = {"reference": ("absmax.py", "numpy"), "fast": ("absmax.py", "torch"), "emulator": ("launch.py", "triton")}
    assert one[package] in found
    assert {pair for pair in found if pair[1] not in MAY_IMPORT[package] | sys.stdlib_module_names} == set()


def test_nothing_imports_the_tests_or_the_tutorials():
    found = {(path.name, name) for path in files("experiments") for name in imports(path)}
    assert "fast" in {name for _, name in found}
    assert {pair for pair in found if pair[1] in ("tests", "tutorials")} == set()


def test_triton_is_imported_by_the_kernels_alone():
    importers = {path.parent.name for path in files("fast") if "triton" in imports(path)}
    assert importers == {"kernels"}


def run(code, **environment):
    """Runs `code` in a fresh interpreter, in the root of the repository."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_reference_loads_nothing_but_numpy_and_the_standard_library():
    modules = [path.stem for path in files("reference") if path.stem != "__init__"]
    code = (
        "import sys; before = set(sys.modules); import reference, importlib\n"
        f"for name in {modules}: importlib.import_module('reference.' + name)\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(loaded - set(sys.stdlib_module_names)))"
    )
    assert run(code).split() == ["numpy", "reference"]


def test_fast_loads_neither_the_reference_nor_what_is_optional():
    loaded = run("import sys, torch; before = set(sys.modules); import fast; print(*sorted(set(sys.modules) - before))").split()
    assert "fast.linear" in loaded
    assert {name.partition(".")[0] for name in loaded} & {"reference", *OPTIONAL} == set()


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch, fast
x, w = torch.randn(3, 40).half(), torch.randn(5, 40).half()
x[1, 2] = 20.0
exact = x.float() @ w.float().T
for quantizer in ("absmax", "zeropoint"):
    assert (fast.llm_int8_matmul(x, w, quantizer=quantizer) - exact).abs().max() < 0.5
    assert fast.quantized_matmul(x, w, quantizer=quantizer).shape == (3, 5)
codes, scale = fast.absmax_quantize(x, -1)
assert fast.absmax_dequantize(codes, scale).shape == x.shape
assert fast.zeropoint_dequantize(*fast.zeropoint_quantize(x)).shape == x.shape
assert fast.int8_matmul(codes, codes).dtype == torch.int32
assert fast.outlier_columns(x).sum() == 1
model = fast.quantize_model(torch.nn.Sequential(torch.nn.Linear(40, 5)))
assert isinstance(model[0], fast.Int8Linear)
model(x.float())
{then}
"""


def test_fast_works_without_triton():
    run(WITHOUT_TRITON.format(then=""))


def test_asking_for_kernels_without_triton_is_a_clear_error():
    then = "with fast.backend('triton'):\n    try: fast.absmax_quantize(x)\n    except RuntimeError as error: print(error)"
    assert "needs the package triton" in run(WITHOUT_TRITON.format(then="import os; os.environ['TRITON_INTERPRET'] = '1'\n" + then))
    assert "TRITON_INTERPRET=1" in run(WITHOUT_TRITON.format(then=then))


def test_importing_asks_no_device_anything():
    code = (
        "import torch, triton, triton.runtime.driver\n"
        "def asked(*arguments, **options): raise AssertionError('a device was asked')\n"
        "queries = [n for n in dir(torch.cuda) if callable(getattr(torch.cuda, n)) and n.startswith(('is_', 'get_', 'device_'))]\n"
        "for name in ['_lazy_init', *queries]: setattr(torch.cuda, name, asked)\n"
        "type(triton.runtime.driver).active = property(asked)\n"
        "import fast, fast.kernels\n"
        "print(len(queries))\n"
        "try: torch.cuda.is_available()\n"
        "except AssertionError: print('seen')"
    )
    count, seen = run(code).split()
    assert int(count) > 10
    assert seen == "seen"
