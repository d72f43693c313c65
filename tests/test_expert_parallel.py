"""Experts in int8 over two real processes that talk through gloo: what they compute together is what one does, bit for bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers as tf
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import parallelize_module
from transformers.distributed import DistributedConfig

import fast
from fast import Int8Experts
from fast.expert_parallel import ExpertParallelInt8Experts, Int8ExpertParallel
from fast.huggingface import Int8Config
from fast.huggingface.parallel_plan import EpDispatchExpertsParallel
from tests.comparison import assert_same
from tests.expert_cases import EXPERTS, FAMILIES, Plain, activations, experts_of, routed, with_random_weights
from tests.test_distributed import PROCESSES, Processes, both
from tests.test_saved_experts import MODELS, TOKENS, made

__all__ = ["both"]  # the fixture, which pytest finds by its name

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def inputs(family: str, tokens: int, dtype: torch.dtype, empty: int | None = None) -> tuple[Tensor, ...]:
    if family == "Llama 4":
        return (activations(tokens * EXPERTS, dtype),)
    return activations(tokens, dtype), *routed(tokens, 2, EXPERTS, dtype, empty=empty)


def expected(module: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Tensor:
    with fast.backend("cpu"), torch.no_grad():
        torch.set_num_threads(1)  # as the processes have
        return module(*given)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# What the processes run: functions of this module, so that they can be sent by name. Experts cannot be pickled with their activation, so
# each makes its own.


def of_family(family: str, dtype: torch.dtype, threshold: float | None = 6.0) -> Int8Experts:
    return Int8Experts.from_float(experts_of(family, dtype), threshold)


def plain(experts: int, bias: bool) -> Int8Experts:
    """Experts of an odd size: rows end anywhere in a register."""
    return Int8Experts.from_float(with_random_weights(Silu(experts, 33, 17, bias)))


class Silu(Plain):
    """With a gate whose bits may depend on where an entry lies in its tensor."""

    def _apply_gate(self, y: Tensor) -> Tensor:
        gate, up = y.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up


def parallel(module: Int8Experts, given: tuple[Tensor, ...]) -> tuple[Tensor, list[int]]:
    """The result, and how many experts of each parameter this process holds."""
    module = parallelize_module(module, init_device_mesh("cpu", (PROCESSES,)), Int8ExpertParallel())
    assert isinstance(module, ExpertParallelInt8Experts)
    return module(*given), [len(parameter.to_local()) for parameter in module._parameters.values()]


def parallel_family(family: str, dtype: torch.dtype, threshold: float | None, *given: Tensor) -> tuple[Tensor, list[int]]:
    return parallel(of_family(family, dtype, threshold), given)


def parallel_plain(experts: int, bias: bool, *given: Tensor) -> tuple[Tensor, list[int]]:
    return parallel(plain(experts, bias), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_have_the_bits_of_one(both: Processes, family, dtype):
    for tokens, threshold in ((1, 6.0), (5, None), (33, 6.0), (33, 0.0)):
        given = inputs(family, tokens, dtype, empty=1 if tokens == 5 else None)
        one = expected(of_family(family, dtype, threshold), given)
        for y, held in both(parallel_family, family, dtype, threshold, *given):
            assert_same(y, one)
            assert set(held) == {EXPERTS // PROCESSES}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("experts", [1, 2, 3, 7])
def test_experts_that_do_not_divide_evenly_and_rows_for_nobody(both: Processes, experts, bias):
    x, (index, weights) = activations(9, torch.float32, 33), routed(9, min(3, experts), experts, torch.float32)
    index[4] = experts + 2
    index[7, 0] = experts
    one = expected(plain(experts, bias), (x, index, weights))
    answers = both(parallel_plain, experts, bias, x, index, weights)
    for y, _ in answers:
        assert_same(y, one)
    assert [held[0] for _, held in answers] == [-(-experts // 2), experts // 2]


def test_all_tokens_may_go_to_one_process(both: Processes):
    x, (index, weights) = activations(6, torch.float32, 33), routed(6, 2, 2, torch.float32)
    for shift in (0, 2):
        for y, _ in both(parallel_plain, 4, False, x, index + shift, weights):
            assert_same(y, expected(plain(4, False), (x, index + shift, weights)))


def test_a_nan_reaches_its_own_token_alone(both: Processes):
    x, (index, weights) = activations(5, torch.float32, 33), routed(5, 2, 4, torch.float32)
    x[1], x[2, 5] = torch.nan, torch.inf
    one = expected(plain(4, False), (x, index, weights))
    assert one.isnan().any(1).tolist() == [False, True, True, False, False]
    for y, _ in both(parallel_plain, 4, False, x, index, weights):
        assert_same(y, one)


def exchanged(experts: int, *given: Tensor) -> int:
    """Bytes that this process puts into collectives."""
    module = parallelize_module(plain(experts, False), init_device_mesh("cpu", (PROCESSES,)), Int8ExpertParallel())
    sent, gather = [0], dist.all_gather

    def counted(parts: list[Tensor], tensor: Tensor, *arguments: Any) -> Any:
        sent[0] += tensor.numel() * tensor.element_size()
        return gather(parts, tensor, *arguments)

    dist.all_gather = counted
    try:
        module(*given)
    finally:
        dist.all_gather = gather
    return sent[0]


def test_what_is_exchanged_are_the_rows_of_the_busiest_process(both: Processes):
    x, (index, weights) = activations(9, torch.float32, 33), routed(9, 2, 4, torch.float32)
    busiest = max(int((index < 2).sum()), int((index >= 2).sum()))
    assert both(exchanged, 4, x, index, weights) == [4 * 33 * busiest] * 2


def as_dtensors(*given: Tensor) -> Tensor:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    module = parallelize_module(plain(4, True), mesh, Int8ExpertParallel())
    x, index, weights = given
    return module(*(DTensor.from_local(t, mesh, [Replicate()]) for t in (x, index, weights)))


def test_inputs_may_be_dtensors(both: Processes):
    given = activations(9, torch.float32, 33), *routed(9, 2, 4, torch.float32)
    for y in both(as_dtensors, *given):
        assert_same(y, expected(plain(4, True), given))


def cast_and_copied(*given: Tensor) -> tuple[Tensor, Tensor]:
    module = parallelize_module(plain(4, True), init_device_mesh("cpu", (PROCESSES,)), Int8ExpertParallel())
    copied = copy.deepcopy(module)(*given)
    return copied, module.to(torch.bfloat16)(*given)


def test_copies_and_casts_keep_codes_and_maxima(both: Processes):
    given = activations(9, torch.float32, 33), *routed(9, 2, 4, torch.float32)
    for copied, cast in both(cast_and_copied, *given):
        assert_same(copied, expected(plain(4, True), given))
        assert_same(cast, expected(plain(4, True).to(torch.bfloat16), given))


def refused(what: str) -> None:
    module = parallelize_module(plain(4, False), init_device_mesh("cpu", (PROCESSES,)), Int8ExpertParallel())
    if what == "gradient":
        with torch.enable_grad():
            module(torch.ones(2, 33).requires_grad_(), *routed(2, 1, 4, torch.float32))
    elif what == "dequantize":
        module.dequantize()
    elif what == "twice":
        parallelize_module(module, init_device_mesh("cpu", (PROCESSES,)), Int8ExpertParallel())
    else:
        parallelize_module(nn.Linear(2, 2), init_device_mesh("cpu", (PROCESSES,)), Int8ExpertParallel())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gradient", r"give no gradients; call the model under torch\.no_grad\(\)"),
        ("dequantize", "cannot be dequantized; load the model in one process"),
        ("twice", "module must be Int8Experts of one process, got ExpertParallelInt8Silu"),
        ("linear", "module must be Int8Experts of one process, got Linear"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(both: Processes, what, message):
    with pytest.raises(RuntimeError, match=message):
        both(refused, what)


def fully_sharded(*given: Tensor) -> Tensor:
    return fully_shard(plain(4, False), mesh=init_device_mesh("cpu", (PROCESSES,)))(*given)


@pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="Torch 2.11's fully_shard takes floats only")
def test_fully_shard_takes_experts_in_int8(both: Processes):
    given = activations(9, torch.float32, 33), *routed(9, 2, 4, torch.float32)
    for y in both(fully_sharded, *given):
        assert_same(y, expected(plain(4, False), given))


# Within a model of transformers.

#: transformers 5.17 has no plan for whole experts.
NEEDS_A_PLAN = pytest.mark.skipif(EpDispatchExpertsParallel is None, reason="this transformers cannot spread whole experts over processes")
NAMES = ["Mixtral", "Qwen3-MoE", "gpt-oss"]


def load(folder: Path, name: str, options: dict[str, Any], **others: Any) -> nn.Module:
    kind = getattr(tf, MODELS[name][0])
    return kind.from_pretrained(folder, distributed_config=DistributedConfig(**options), **others).eval()


def loaded(folder: Path, name: str, options: dict[str, Any]) -> tuple[Tensor, Tensor, list[tuple[str, int, int]]]:
    """Logits, what it generates, and class, experts and experts held of each module of experts."""
    model = load(folder, name, options)
    held = [
        (type(each).__name__, len(each.down_proj), len(each.down_proj.to_local()))
        for each in model.modules()
        if isinstance(each, Int8Experts)
    ]
    return model(TOKENS).logits, model.generate(TOKENS, max_new_tokens=3, do_sample=False), held


BOTH: dict[str, Any] = {"tp_size": 2, "ep_size": 2}


def whole(model: nn.Module) -> dict[str, str]:
    """A plan that splits nothing."""
    return dict.fromkeys(model.tp_plan, "replicate")


@NEEDS_A_PLAN
@pytest.mark.parametrize("dense", ["whole", "split"])
@pytest.mark.parametrize("name", NAMES)
def test_from_pretrained_gives_each_process_its_experts_and_the_logits_of_one(both: Processes, name, dense, tmp_path):
    model = fast.quantize_model(made(name), threshold=None if dense == "split" else 3.0, progress=False)
    model.save_pretrained(tmp_path)
    options = BOTH | ({"tp_plan": whole(model)} if dense == "whole" else {})
    one = expected(lambda: model(TOKENS).logits, ())
    tokens = model.generate(TOKENS, max_new_tokens=3, do_sample=False)
    for logits, generated, held in both(loaded, tmp_path, name, options):
        assert len(held) == 2
        assert all(kind.startswith("ExpertParallelInt8") and (all_of, own) == (4, 2) for kind, all_of, own in held)
        assert_same(logits, one)
        assert_same(generated, tokens)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a part of each expert": (
        {"tp_size": 2},
        {},
        r"as wholes, not by the style 'packed_\w+': load the model with Distr",
    ),
    "other tokens in each process": ({"fsdp_size": 2, "ep_size": 2}, {}, "ep_size must equal tp_size, got 2 and 1"),
    "quantized while it is sharded": (
        BOTH,
        {"quantization_config": Int8Config()},
        "a model cannot be quantized while it is sharded; quantize it once without",
    ),
}


@NEEDS_A_PLAN
@pytest.mark.parametrize("how", REFUSED)
def test_other_ways_to_spread_experts_are_refused_by_name(both: Processes, how, tmp_path):
    options, others, message = REFUSED[how]
    model = made("Qwen3-MoE")
    if others:
        options = options | {"tp_plan": whole(model)}
    (model if others else fast.quantize_model(model, progress=False)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=message):
        both(load_with, tmp_path, options, others)


def load_with(folder: Path, options: dict[str, Any], others: dict[str, Any]) -> None:
    load(folder, "Qwen3-MoE", options, **others)


def float_experts(folder: Path) -> tuple[Tensor, str]:
    model = load(folder, "Qwen3-MoE", BOTH)
    return model(TOKENS).logits, type(model.model.layers[0].mlp.experts).__name__


@NEEDS_A_PLAN
def test_float_experts_of_an_int8_model_keep_the_way_of_transformers(both: Processes, tmp_path):
    model = fast.quantize_model(made("Qwen3-MoE"), threshold=None, skip=("experts", "lm_head"), progress=False)
    model.save_pretrained(tmp_path)
    for logits, kind in both(float_experts, tmp_path):
        assert kind == "Qwen3MoeExperts"
        torch.testing.assert_close(logits, expected(lambda: model(TOKENS).logits, ()), rtol=1e-4, atol=1e-5)
