"""A stranger's kernels on the emulator: they agree with NumPy, and a known mistake of each kind is reported with its line."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import emulator
from tests import compiled, strangers_checks

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def line_of(kernel: str) -> int:
    """The line of tests/strangers.py with the mistake of a kernel."""
    source = inspect.getsource(inspect.getmodule(strangers_checks.strangers.softmax_rows.fn)).splitlines()
    begins = next(i for i, text in enumerate(source) if text.startswith(f"def {kernel}("))
    return next(i for i in range(begins, len(source)) if "# the mistake" in source[i]) + 1


def fault(arch, function, *arguments) -> emulator.Fault:
    with pytest.raises(emulator.Fault) as raised:
        compiled.call(arch, function, arch, *arguments)
    return raised.value


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_softmax_agrees_with_numpy(arch):
    # exp is exact to a unit in the last place here, the sum of 781 positive terms to 781 of them.
    assert compiled.call(arch, strangers_checks.softmax, arch) <= 800 * 2.0**-24


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(130, 70, 96), (64, 64, 45), (1, 1, 1)])
@pytest.mark.parametrize("relu", [False, True])
def test_a_matrix_product_agrees_with_numpy(arch, shape, relu):
    # Sums of k products of numbers below 5, in float32 and rounded to float16: half a unit of 2**-10 relatively, of sums below 64.
    assert compiled.call(arch, strangers_checks.product, arch, *shape, relu) <= 64 * 2.0**-11


def test_a_product_has_the_same_bits_for_every_seed():
    assert len({compiled.call("sm_80", strangers_checks.product, "sm_80", 130, 70, 96, seed=seed) for seed in range(3)}) == 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_missing_mask_is_reported_with_its_line(arch):
    found = fault(arch, strangers_checks.softmax, 5, 781, "softmax_without_a_mask")
    assert (found.kind, found.kernel, found.line) == ("bounds", "softmax_without_a_mask", line_of("softmax_without_a_mask"))
    assert found.thread is not None
    assert found.address is not None


def test_a_missing_wait_is_reported_where_the_copy_is_used():
    found = fault("sm_80", strangers_checks.product_without_its_wait)
    assert (found.kind, found.kernel) == ("pending", "product_tiles")
    source = inspect.getsource(inspect.getmodule(strangers_checks.strangers.softmax_rows.fn)).splitlines()
    assert "tl." in source[found.line - 1]


@pytest.mark.parametrize("seed", range(2))
def test_programs_that_overwrite_each_other_are_reported_with_their_line(seed):
    assert compiled.call("sm_80", strangers_checks.total, "sm_80", "sum_by_all", seed) == 999 * 500
    found = fault("sm_80", strangers_checks.total, "sum_without_atomics", seed)
    assert (found.kind, found.line) == ("race", line_of("sum_without_atomics"))


def test_a_read_of_an_unwritten_tensor_is_reported():
    assert fault("sm_90", strangers_checks.unwritten).kind == "uninitialized"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_tensor_descriptor_in_a_record_is_refused_as_on_a_gpu(arch):
    assert compiled.call(arch, strangers_checks.copied_tile, arch, in_a_record=False)
    with pytest.raises(emulator.Unsupported, match="a tensor descriptor in a tuple"):
        compiled.call(arch, strangers_checks.copied_tile, arch, in_a_record=True)


def test_contexts_may_be_nested():
    assert compiled.call("sm_80", strangers_checks.nested) == ["sm_90", "sm_80", "True"]  # `call` opens one itself


def test_the_how_to_page_does_what_it_says(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "howto" / "check_your_kernel.md").read_text()
    kernel, check, mended, loop, broken, count = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shown = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "EMULATE")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])

    def run(code: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "check.py").write_text(code)
        return subprocess.run([sys.executable, "check.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)

    (tmp_path / "softmax.py").write_text(kernel)
    stopped = run(check)
    assert stopped.returncode
    for line in shown[0].splitlines():
        assert line in stopped.stderr or "address" in line
    (tmp_path / "softmax.py").write_text(kernel.replace("    values = tl.load(x + row * columns + at)\n", mended))
    assert float(run(check).stdout.removeprefix("tensor(").rstrip(")\n")) < 1e-6
    assert run(check + loop).returncode == 0
    race = run(check + broken)
    assert "race: a read of what another warp wrote, without a barrier between" in race.stderr
    counted = run(count).stdout
    # Registers and machine code are ptxas' matter, which comes with Triton.
    assemblers = r"\d+ registers|\d+ programs at once|machine instructions .*|issue .* xu \d+|bytes on their way to .*|outside of loops: .*"
    assert re.sub(assemblers, "", counted) == re.sub(assemblers, "", shown[1])
    assert [re.sub(r"[\d,]+", "", line) for line in counted.splitlines()] == [re.sub(r"[\d,]+", "", x) for x in shown[1].splitlines()]


def test_the_page_names_every_rule():
    page = (Path(__file__).parents[1] / "docs" / "emulator.md").read_text()
    for kind, rule in emulator.KINDS.items():
        assert f"| `{kind}` | {rule} |" in page
