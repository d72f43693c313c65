"""No test hands a kernel a tensor of the wrong device: seen without a GPU (tests/tools/absent_gpu.py).

The program that looks runs on its own: what it replaces stays replaced, and Triton's interpreter must be off.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]
#: The files whose tests call kernels on tensors that they place themselves; elsewhere `tests.comparison.Side` places them.
FILES = ("test_kernels.py", "test_operators.py")

#: Each hands over what a GPU would refuse; the last is right, up to where it needs a number.
PLANTED = {
    "launch": "kernels.outlier_columns(torch.ones(3, 4), 6.0)",
    "descriptor": "product.int8_matmul(torch.ones(64, 64, dtype=torch.int8), torch.ones(64, 64, dtype=torch.int8))",
    "operator": "with fast.backend('triton'): fast.absmax_quantize(torch.ones(3, 4))",
    "sum": "torch.ones(3, device=DEVICE) + torch.ones(3)",
    "nothing": "assert kernels.outlier_columns(torch.ones(3, 4, device=DEVICE), 6.0).cpu().all(), 'a number'",
}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.tools.absent_gpu", "-p", "no:cacheprovider", "-m", "not deep"]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_no_test_hands_kernels_a_tensor_of_another_device():
    done = run("--tb=line", *(ROOT / "tests" / name for name in FILES))
    assert done.returncode == 0, done.stdout


def test_a_tensor_on_the_wrong_device_is_seen(tmp_path):
    imports = "import torch\nimport fast\nfrom fast import kernels\nfrom fast.kernels import product\nfrom tests.comparison import DEVICE\n"
    tests = "".join(f"\ndef test_{name}():\n    {line}\n" for name, line in PLANTED.items())
    (tmp_path / "test_planted.py").write_text(imports + tests)
    done = run("-rA", "--rootdir", ROOT, "-p", "tests.conftest", tmp_path)
    verdicts = {name: verdict for verdict, name in re.findall(r"^(PASSED|FAILED) .*::test_(\w+)", done.stdout, re.MULTILINE)}
    assert verdicts == {name: "PASSED" if name == "nothing" else "FAILED" for name in PLANTED}, done.stdout
