"""When products are computed by the kernel in Gluon, and that `product_kernel` computes them wherever it cannot.

What the kernel computes is tested with the other compiled kernels (tests/test_compiled.py), its machine code with theirs, too
(tests/test_generated_code.py).
"""

import pytest
import torch

pytest.importorskip("triton")

from fast import kernels
from fast.kernels import configurations, operands, product
from tests import compiled, hopper_checks

GLUON, PLAIN = (True, ["hopper_product_kernel"]), (True, ["product_kernel"])


def test_the_rows_that_load_by_the_copy_engine_are_in_gluon_where_that_is_asked_for():
    def rows():
        shapes = [(m, n, general) for m in (32, 300, 4096) for n in (1024, 8192) for general in (False, True)]
        return {arch: [configurations.product_configuration(arch, *shape) for shape in shapes] for arch in configurations.PRODUCTS}

    before = rows()
    with kernels.gluon():
        within = rows()
    assert rows() == before
    assert not any(row.gluon for own in before.values() for row in own)
    for arch, own in within.items():
        assert [row._replace(gluon=False) for row in own] == before[arch]
        assert [row.gluon for row in own] == [row.tma for row in own]
        assert any(row.gluon for row in own) == (arch == "sm_90")


def test_an_error_ends_the_context():
    with pytest.raises(ZeroDivisionError), kernels.gluon():
        _ = 1 / 0
    assert not configurations.product_configuration("sm_90", 4096, 8192, general=False).gluon


@pytest.mark.parametrize("shape", hopper_checks.SHAPES)
def test_a_product_is_in_gluon_within_the_context_if_its_row_can_be(shape):
    inside, after = compiled.call("sm_90", hopper_checks.chosen, shape)
    assert inside == (PLAIN if shape == "unaligned" else GLUON)
    assert after == PLAIN


def test_the_product_of_a_layer_is_in_gluon():
    assert compiled.call("sm_90", hopper_checks.layer) == ["scan_columns", "quantize_rows", "hopper_product_kernel"]


@pytest.mark.parametrize("lacks", ["Gluon", "a part of it"])
def test_a_triton_that_does_not_compile_it_takes_the_plain_kernel_and_says_so_once(lacks):
    found, warned, error = compiled.call("sm_90", hopper_checks.without, lacks)
    assert found == [PLAIN, PLAIN]
    assert len(warned) == 1
    assert "does not compile the kernel in Gluon" in warned[0]
    assert warned[0].endswith("product_kernel multiplies instead")
    assert "does not compile the kernel in Gluon" in error


#: K, and entries of a configuration -> why the kernel in Gluon is not for it.
REASONS = {
    "fits": (144, {}, ""),
    "no copy engine": (144, {"tma": False}, "by the copy engine alone"),
    "unaligned": (33, {}, "by the copy engine alone"),
    "too many warps": (144, {"warps": 16}, "has 16 rows of the tile"),
    "too few rows": (144, {"block_m": 64}, "has 16 rows of the tile"),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_configuration_that_asks_for_gluon_gets_it_or_an_error(case):
    k, changes, reason = REASONS[case]
    error = compiled.call("sm_90", hopper_checks.by_name, 40, 24, k, **changes)
    assert reason in error
    assert bool(error) == bool(reason)


@pytest.mark.parametrize(
    ("arch", "dtype", "reason"), [("sm_90", torch.float32, "in 16 bits only"), ("sm_100", torch.float16, "is for sm_90, this is sm_100")]
)
def test_neither_float32_outliers_nor_other_architectures_are_for_gluon(arch, dtype, reason, monkeypatch):
    monkeypatch.setattr(product, "architecture", lambda device: arch)
    codes, config = torch.ones(2, 32, dtype=torch.int8), configurations.NARROW_HOPPER._replace(gluon=True)
    sides = operands.Quantized(codes), operands.Quantized(codes)
    with pytest.raises(RuntimeError, match=reason):
        product.launch_product(*sides, torch.empty(2, 2, dtype=dtype), torch.ones(2, 32, dtype=dtype), config=config)


@pytest.mark.skipif("not __import__('fast.interpreter').interpreter.interpreted()")
def test_the_interpreter_runs_the_plain_kernel():
    a, b = hopper_checks.codes(40, 24, 64)
    with kernels.gluon():
        assert torch.equal(kernels.int8_matmul(a, b), a.int() @ b.int().T)
