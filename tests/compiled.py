"""The fourth side: the kernels compiled for a GPU that is not here, executed as PTX in the emulator.

Triton's interpreter, under which the suite runs without a GPU, replaces the compiler in the whole process. So each process of the suite has
a second one beside it, without the interpreter, which runs the compiled kernels and hands results and errors back.
"""

import atexit
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any
from unittest import mock


@cache
def _process() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)
    atexit.register(pool.shutdown)
    return pool


def _begin() -> None:
    import torch

    torch.set_num_threads(1)


def call(arch: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What `function` returns or raises, called where the kernels are compiled for `arch`. Everything passed must be picklable."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"EMULATE": arch}
    with mock.patch.dict(os.environ, environment, clear=True):  # the process inherits it when it starts
        return _process().submit(_called, arch, function, arguments, options).result()


def _called(arch: str, function: Callable[..., Any], arguments: tuple, options: dict[str, Any]) -> Any:
    import emulator
    import fast
    from tests.comparison import poisoned

    with emulator.gpu(arch), fast.backend("triton"), poisoned():
        return function(*arguments, **options)


def run_case(arch: str, name: str) -> None:
    """Runs a case of tests/compiled_cases.py; for `call`."""
    from tests import compiled_cases

    compiled_cases.cases(arch)[name]()
