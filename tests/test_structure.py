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
    "experts": ("Int8Experts",),
}
PAIRED = [name for names in PAIRS.values() for name in names]
#: Their constructors differ for the experts: a module of transformers on one side, arrays on the other.
FUNCTIONS = [name for name in PAIRED if not name.startswith("Int8")]

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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_twins_take_the_same_arguments(name):
    assert signature(getattr(reference, name)) == signature(getattr(fast, name))


def test_the_layers_take_the_same_arguments():
    ours, theirs = fast.Int8Linear, reference.Int8Linear
    assert signature(ours.from_float) == signature(theirs.from_float)
    assert signature(ours.forward) == signature(theirs.__call__)


def test_the_experts_take_the_same_arguments():
    ours, theirs = (list(inspect.signature(call).parameters) for call in (fast.Int8Experts.forward, reference.Int8Experts.__call__))
    assert ours == theirs == ["self", "hidden_states", "top_k_index", "top_k_weights"]


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
@pytest.mark.parametrize("name", [*FUNCTIONS, "Int8Linear.from_float", "Int8Experts.from_float"])
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


def functions(package):
    """Name, number of lines, number of arguments, and whether it is compiled by Triton, of every function of a package."""
    for path in files(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                compiled = any(ast.unparse(decorator) in ("triton.jit", "gluon.jit") for decorator in node.decorator_list)
                yield f"{path.name}: {node.name}", node.end_lineno - node.lineno + 1, len(arguments), compiled


@pytest.mark.parametrize("package", ["reference", "fast"])
def test_functions_are_short_and_take_few_arguments(package):
    found = list(functions(package))
    assert ("product.py: product_kernel", True) in {(name, compiled) for name, _, _, compiled in functions("fast")}
    assert {name: lines for name, lines, _, compiled in found if lines > 60 and not compiled} == {}
    assert {name: count for name, _, count, _ in found if count > 20} == {}


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


OURS = ("reference", "fast", "experiments", "tutorials", "tests")


def private_reaches(source):
    """Names with an underscore of modules of this repository that `source` imports, reads or replaces."""
    tree = ast.parse(source)
    found, imported = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] in OURS}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] in OURS):
            imported |= {a.asname or a.name for a in node.names}
            found += [a.name for a in node.names if private(a.name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and root_of(node) in imported:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and len(node.args) > 1 and root_of(node.args[0]) in imported:  # setattr, patch.object
            found += [str(a.value) for a in node.args[1:2] if isinstance(a, ast.Constant) and private(str(a.value))]
    return found


def private(name):
    return name.startswith("_") and not name.startswith("__")


def root_of(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", None)


@pytest.mark.parametrize("folder", ["tests", "tutorials", "experiments", "docs/hooks"])
def test_nobody_reaches_for_the_private_name_of_another_module(folder):
    reaches = [(path.name, name) for path in files(folder) for name in private_reaches(path.read_text(encoding="utf-8"))]
    assert reaches == []


@pytest.mark.parametrize(
    ("source", "reaches"),
    [
        ("from fast import cpu\ncpu._quantize(1)", ["cpu._quantize"]),
        ("import fast.cpu\nfast.cpu.product._best", ["fast.cpu.product._best"]),
        ("from fast.cpu import _quantize", ["_quantize"]),
        ("from . import checks\nchecks._layer", ["checks._layer"]),
        ("from fast import model\nmonkeypatch.setattr(model, '_now', None)", ["_now"]),
        ("import torch\ntorch._int_mm\nfrom fast import cpu\ncpu.__name__\nself._x", []),
    ],
)
def test_a_reach_for_a_private_name_is_seen(source, reaches):
    assert private_reaches(source) == reaches
