"""The kernels of a mixture of experts: each expert's rows as the reference has them, in as many launches as one layer takes."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import fast
from fast import Int8Experts, kernels
from fast.expert_operators import DECODE_TOKENS, decodes
from fast.kernels import configurations, expert_decoding, experts
from tests.comparison import DEVICE, assert_same
from tests.expert_cases import EXPERTS, HIDDEN, activations, experts_of, routed
from tests.expert_checks import check_decode, check_sorted, rows, weights
from tests.tools.guarded import guarded, guarded_buffers

HALVES = (torch.float16, torch.bfloat16)

#: Where the rows of each expert end, of 41 rows: of nobody at the end and nowhere else, empty experts, one that has all rows.
ROUTINGS = {
    "even": [10, 20, 30, 41],
    "empty ones": [0, 17, 17, 41],
    "nobody's": [9, 9, 30, 33],
    "one has all": [0, 0, 41, 41],
    "nobody has any": [0, 0, 0, 0],
    "one row each": [1, 2, 3, 4],
}


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("threshold", [None, 0.0, 6.0])
def test_each_experts_rows_are_those_of_a_layer(routing, dtype, threshold):
    check_sorted(rows(41, 70, dtype, (0, 9, 33, 69)), weights(4, 53, 70, dtype), ROUTINGS[routing], threshold)


@pytest.mark.parametrize(("e", "n", "k"), [(1, 33, 32), (3, 7, 130), (5, 65, 33), (8, 40, 64), (2, 5, 1)])
def test_shapes_need_not_fit_blocks(e, n, k):
    ends = [round(37 * (i + 1) / e) for i in range(e)]
    check_sorted(rows(37, k, torch.float16, (0, k - 1)), weights(e, n, k), ends, 6.0)


def test_rows_may_lie_apart_and_long_rows_are_read_in_blocks(monkeypatch):
    x = rows(41, 140, torch.float16, (0, 9, 33, 69))[:, ::2]
    check_sorted(x, weights(4, 53, 70), ROUTINGS["nobody's"], 6.0)
    monkeypatch.setattr(experts, "rows_configuration", lambda *_: configurations.Rows(1, 32, 1, 4))
    check_sorted(x, weights(4, 53, 70), ROUTINGS["nobody's"], 6.0)


@pytest.mark.parametrize("shape", [(0, 5, 8), (4, 0, 8), (4, 5, 0)])
def test_empty_matrices_are_no_errors(shape):
    p, n, k = shape
    check_sorted(rows(p, k, torch.float16), weights(2, n, k, torch.float16), [p // 2, p], 6.0)


def test_a_row_that_is_not_finite_stays_alone():
    x = rows(41, 70, torch.float16, (9, 33))
    x[3, 9], x[12, 5], x[30, 33] = torch.nan, torch.inf, torch.nan
    check_sorted(x, weights(4, 53, 70), ROUTINGS["even"], 6.0)


def chosen_by(tokens: int, choices: int, count: int, seed: int = 0) -> torch.Tensor:
    """Experts of tokens: different ones, of which some are none."""
    scores = torch.rand(tokens, count + 1, generator=torch.Generator().manual_seed(seed))
    return scores.topk(choices).indices


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("by_pair", [False, True])
@pytest.mark.parametrize(("tokens", "choices"), [(1, 1), (1, 3), (2, 2), (5, 3), (7, 2), (16, 4)])
@pytest.mark.parametrize("threshold", [None, 0.0, 6.0])
def test_few_tokens_are_one_launch(dtype, by_pair, tokens, choices, threshold):
    count = tokens * choices if by_pair else tokens
    x = rows(count, 70, dtype, (0, 9, 33, 69))
    check_decode(x, weights(5, 41, 70, dtype), chosen_by(tokens, choices, 5), by_pair, threshold)


@pytest.mark.parametrize(
    "chosen", [[[2, 2], [2, 0], [0, 0]], [[7, 1], [-1, 9], [1, 7]], [[4, 4], [4, 4], [4, 4]]], ids=["twice", "none", "all"]
)
def test_a_token_may_name_an_expert_twice_or_none(chosen):
    check_decode(rows(3, 70, torch.float16, (9,)), weights(5, 41, 70), torch.tensor(chosen), False, 6.0)


def test_a_token_elsewhere_is_not_among_an_experts_rows():
    x = rows(3, 70, torch.float16)
    x[1, 9], x[2, 5] = torch.nan, torch.inf
    check_decode(x, weights(5, 41, 70), torch.tensor([[0, 1], [1, 2], [2, 3]]), False, 6.0)


class Launches:
    """Notes the names of the kernels that are launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for name in ("scan_experts", "quantize_experts", "multiply_experts", "decode_experts"):
            module = expert_decoding if name == "decode_experts" else experts
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name: str, kernel: Any) -> Any:
        class Counted:
            def __getitem__(_, grid: tuple) -> Any:
                self.names.append(name)
                return kernel[grid]

        return Counted()


THREE = ["scan_experts", "quantize_experts", "multiply_experts"]


@pytest.mark.parametrize(("tokens", "threshold", "expected"), [(40, 6.0, THREE), (40, None, THREE[1:]), (5, 6.0, ["decode_experts"])])
def test_a_projection_is_three_launches_and_one_for_few_tokens(tokens, threshold, expected, monkeypatch):
    launches = Launches(monkeypatch)
    module = Int8Experts.from_float(experts_of("Qwen3-MoE", torch.bfloat16), threshold).to(DEVICE)
    given = [each.to(DEVICE) for each in (activations(tokens, torch.bfloat16), *routed(tokens, 2, EXPERTS, torch.bfloat16))]
    with torch.no_grad(), fast.backend("triton"):
        module(*given)
    assert launches.names == 2 * expected


class NotRun:
    """Stands for a kernel that is launched and has not begun."""

    def __getitem__(self, grid: tuple) -> Any:
        return lambda *_, **__: None


@pytest.mark.parametrize("tokens", [5, 40])
def test_the_host_reads_nothing_of_the_device(tokens, monkeypatch):
    """How many rows an expert has is never asked for: what would wait for a GPU raises here."""
    module = Int8Experts.from_float(experts_of("Qwen3-MoE", torch.bfloat16))
    given = activations(tokens, torch.bfloat16), *routed(tokens, 2, EXPERTS, torch.bfloat16)
    for name in [*THREE, "decode_experts"]:
        monkeypatch.setattr(expert_decoding if name == "decode_experts" else experts, name, NotRun())

    def waits(*_: Any) -> None:
        raise AssertionError("the host waits for the device")

    with torch.no_grad(), fast.backend("triton"):
        for name in ("item", "tolist", "__bool__", "__int__", "__index__", "nonzero", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, waits)
        y = module(*given)
        monkeypatch.undo()
    assert y.shape == given[0].shape


@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("family", ["Qwen3-MoE", "gpt-oss"])
def test_without_decomposition_a_module_has_the_bits_of_the_cpu(family, tokens):
    module = Int8Experts.from_float(experts_of(family, torch.bfloat16), None).to(DEVICE)
    given = [each.to(DEVICE) for each in (activations(tokens, torch.bfloat16), *routed(tokens, 2, EXPERTS, torch.bfloat16))]
    with torch.no_grad():
        with fast.backend("triton"):
            y = module(*given)
        with fast.backend("cpu"):
            expected = module.cpu()(*(each.cpu() for each in given))
    assert_same(y.cpu(), expected)


def test_the_one_launch_is_for_few_tokens_in_16_bits_without_gradients():
    assert DECODE_TOKENS == kernels.DECODE_ROWS
    x, chosen = torch.zeros(5, HIDDEN, dtype=torch.float16), torch.zeros(5, 2, dtype=torch.int64)
    with fast.backend("triton"):
        assert decodes(x, chosen, trained=False)
        assert not decodes(x.float(), chosen, trained=False)
        assert not decodes(x.clone().requires_grad_(), chosen, trained=False)
        assert not decodes(x, chosen, trained=True)
        assert not decodes(torch.zeros(17, HIDDEN, dtype=torch.float16), chosen.new_zeros(17, 2), trained=False)
        with torch.no_grad():
            assert decodes(x.clone().requires_grad_(), chosen, trained=True)
    with fast.backend("cpu"):
        assert not decodes(x, chosen, trained=False)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="memory of the host")
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("threshold", [None, 6.0])
def test_they_touch_their_tensors_only(at, threshold):
    w = weights(4, 41, 70, torch.float16)
    stored = [guarded(each, at) for each in w.stored]
    x = guarded(rows(41, 70, torch.float16, (0, 33, 69)), at)
    few = guarded(rows(5, 70, torch.float16, (0, 33, 69)), at)
    with fast.backend("triton"), guarded_buffers(at):
        y = kernels.experts_linear(x, *stored, guarded(torch.tensor(ROUTINGS["nobody's"]), at), threshold)
        z = kernels.experts_decode(few, *stored, guarded(chosen_by(5, 3, 4), at), False, threshold)
    assert y[:, :1].isfinite().all()
    assert z[:, :1].isfinite().all()
