"""A GPU that is not here: finds the tests that would fail on a real one because they hand CPU tensors to kernels.

    TRITON_INTERPRET=0 python -m pytest -p tests.tools.absent_gpu tests/test_kernels.py tests/test_operators.py

The interpreter takes CPU tensors, so a test that forgets `.to(DEVICE)` passes there. Here the kernels' device is "meta": its tensors have
shapes and strides but no memory. No kernel runs; a launch only checks on which device its tensors are. A test thus fails where
a launch, an operator or a sum of two tensors meets the wrong device, and ends without a verdict where it first needs a number.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

DEVICE = torch.device("meta")
#: What a GPU would refuse, by the message: Torch's of two devices in one operation, `fast.dispatch`'s of a CPU tensor for kernels.
REFUSED = re.compile(r"not on the expected device|to be on the same device|Triton kernels need a CUDA tensor")

_cpu = Tensor.cpu
_mistakes: list[str] = []


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a kernel's argument: a tensor, a descriptor's, or those of a record."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors(part)
    elif hasattr(value, "base"):
        yield value.base


def launch(kernel: JITFunction, *arguments: Any, **options: Any) -> None:
    """Stands for `JITFunction.run`: computes nothing, and notes each argument that is not on the device."""
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    wrong = [f"{name} on {t.device}" for name, value in given.items() for t in tensors(value) if t.device != DEVICE]
    if wrong:
        _mistakes.append(f"{kernel.__name__} was launched with {', '.join(wrong)}")


def _zeros_or_copy(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else _cpu(tensor, *arguments, **options)


def pytest_configure() -> None:
    """Sets the device of all tests before any is collected."""
    from tests import comparison

    comparison.DEVICE = DEVICE
    JITFunction.run = launch
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    Tensor.is_cuda = property(lambda self: self.is_meta)  # type: ignore[assignment]
    # The part of a test that prepares its numbers goes on, with zeros.
    Tensor.cpu = _zeros_or_copy  # type: ignore[assignment,method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails a test for what a GPU would refuse, and for nothing else."""
    _mistakes.clear()
    try:
        yield
    except (pytest.skip.Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        if REFUSED.search(str(error)):
            raise
    if _mistakes:
        pytest.fail(_mistakes[0], pytrace=False)
