"""The kernels as the compiler makes them for each NVIDIA architecture, executed as PTX in the emulator, against the reference.

One case for each row of each configuration table and for each flag. The sanitizer watches: a race, a wait that is missing, an access out
of bounds or a read of what nothing has written ends a case, whatever its numbers. `EMULATE=sm_90 pytest tests/test_kernels.py` runs other
tests so.
"""

import os

import pytest

from tests import compiled, compiled_cases

pytestmark = pytest.mark.skipif("EMULATE" in os.environ, reason="the whole session runs on the emulator")


@pytest.mark.parametrize(("arch", "case"), [(a, c) for a in compiled_cases.ARCHITECTURES for c in compiled_cases.cases(a)])
def test_compiled(arch, case):
    compiled.call(arch, compiled.run_case, arch, case)
