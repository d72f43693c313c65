"""The suite's comparisons with the native engine under the address and the undefined-behaviour sanitizer.

    python -m tests.tools.native_sanitized                    every set of instructions that this processor has
    python -m tests.tools.native_sanitized -k avx2 -x         what else pytest is to be told

Each call runs in a process of its own (tests/native_driver.c), every array in a block of memory of exactly its size.
"""

import sys

import pytest

from fast.cpu import engine
from tests import native_driver

FILES = ("pairs", "edges", "exhaustive", "worked_examples", "laws", "bounds", "third_opinion", "experts")


def main(arguments: list[str]) -> int:
    """The command; returns pytest's exit status."""
    names = engine.available()
    for name in names:
        engine.put(native_driver.sanitized(name))
    chosen = [] if "-k" in arguments else ["-k", " or ".join(names)]
    return pytest.main([*(f"tests/test_{file}.py" for file in FILES), *chosen, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
