"""fast.distributed, with two real processes that talk through gloo on the loopback address: what they compute together is what one does.

One process is the oracle: `Int8Linear` itself, which is compared with the reference elsewhere.
"""

import copy
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import parallelize_module

import fast
from fast import Int8Linear, distributed
from fast.distributed import Int8ColwiseParallel, Int8RowwiseParallel
from fast.operators import quantize
from fast.weights import QuantizedWeight
from tests.comparison import assert_product, assert_same
from tests.strategies import Recipe, factors, granularities, outlier_weights, quantizers, thresholds

PROCESSES = 2
#: Seconds until a process counts as stuck; the first answer has to wait until both have imported torch.
PATIENCE = 300


class Processes:
    """Processes in one group, which wait for functions to run; each runs the same, with the same arguments."""

    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(PROCESSES):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, f"file://{folder}/store", there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Returns what each process returned, in the order of ranks; raises what one raised, with its traceback."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(PATIENCE):
                raise TimeoutError(f"process {rank} gave no answer in {PATIENCE} s")
            answers.append(pipe.recv())
        for error, _ in answers:
            if error is not None:
                raise RuntimeError(error)
        return [value for _, value in answers]

    def stop(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(20)


def serve(rank: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    while (task := pipe.recv()) is not None:
        function, arguments = task
        try:
            with fast.backend("cpu"), torch.no_grad():
                pipe.send((None, function(*arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(str(tmp_path_factory.mktemp("group")))
    yield processes
    processes.stop()


def alone(layer: nn.Module, x: Tensor) -> Tensor:
    with fast.backend("cpu"), torch.no_grad():
        return layer(x)


def own_columns(x: Tensor) -> Tensor:
    """This process's columns, as torch cuts a dimension: rounded up, so that the last process may have fewer, or none."""
    return x.tensor_split([-(-x.shape[-1] // PROCESSES)], dim=-1)[dist.get_rank()]


# What the processes run: functions of this module, so that they can be sent by name.


def parallel(style: Any, layer: nn.Module, x: Tensor) -> Tensor:
    return parallelize_module(layer, init_device_mesh("cpu", (PROCESSES,)), style)(x)


def row_wise(layer: Int8Linear, x: Tensor) -> tuple[Tensor, ...]:
    """codes and scale of x, the accumulators and the output, of a layer that is split by input features."""
    whole = QuantizedWeight.of_layer(layer)
    weight = QuantizedWeight(*(None if t is None else own_columns(t) if t.shape == layer.weight.shape else t for t in whole))
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
    own = own_columns(rows).contiguous()
    own = own.masked_fill(fast.outlier_columns(own, layer.threshold), 0)
    codes, scale, zero_point = distributed.quantize_shard(own, layer.granularity != "tensor", layer.quantizer)
    acc = distributed.accumulate(codes, zero_point, weight)
    y = parallel(Int8RowwiseParallel(), copy.deepcopy(layer), own_columns(x))
    return codes, scale, zero_point, acc, y


@given(factors(finite=False), thresholds, outlier_weights, quantizers, granularities)
def test_a_row_wise_layer_has_the_codes_accumulators_and_output_of_one_process(
    both, given, threshold, outlier_weight, quantizer, granularity
):
    x, w, bias = given.tensors()
    layer = Int8Linear.from_float(w, bias, threshold, outlier_weight, quantizer, granularity)
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
    with fast.backend("cpu"):
        regular = rows.masked_fill(fast.outlier_columns(rows, threshold), 0)
        codes, scale, zero_point = quantize(regular, granularity != "tensor", quantizer)
    shifted = codes.long() - (0 if zero_point is None else zero_point)
    acc = shifted @ (layer.weight.long() - (0 if zero_point is None else layer.weight_zero_point)).T

    results = both(row_wise, layer, x)
    assert_same(torch.cat([own for own, *_ in results], 1), codes)
    for _, its_scale, its_zero_point, its_acc, y in results:
        assert_same(its_scale, scale)
        if zero_point is not None:
            assert_same(its_zero_point, zero_point)
        assert_same(its_acc.long(), acc)
        assert_same(y, alone(layer, x))


@given(factors(finite=False), outlier_weights, quantizers, granularities, st.booleans())
def test_a_column_wise_layer_without_outliers_has_the_output_of_one_process(both, given, outlier_weight, quantizer, granularity, gather):
    x, w, bias = given.tensors()
    layer = Int8Linear.from_float(w, bias, None, outlier_weight, quantizer, granularity)
    results = both(parallel, Int8ColwiseParallel(gather_output=gather), layer, x)
    for y in results if gather else [torch.cat(results, -1)]:
        assert_same(y, alone(layer, x))


@given(factors(), thresholds, outlier_weights, quantizers)
def test_a_column_wise_layer_with_outliers_differs_by_the_order_of_float32_sums(both, given, threshold, outlier_weight, quantizer):
    x, w, bias = given.tensors()
    layer = Int8Linear.from_float(w, bias, threshold, outlier_weight, quantizer)
    # How a float32 product of the outlier columns adds up depends on how many rows of the weight it is given.
    with fast.backend("cpu"):
        outliers, y = fast.outlier_columns(x, threshold), alone(layer, x.float())
        dequantized = (layer.weight - (0 if quantizer == "absmax" else layer.weight_zero_point)) * layer.weight_scale
    met = dequantized if outlier_weight == "dequantized" else w
    for actual in both(parallel, Int8ColwiseParallel(gather_output=True), layer, x):
        assert_product(actual, y, x, met, outliers, bias)


@pytest.mark.parametrize("quantizer", ["absmax", "zeropoint"])
@pytest.mark.parametrize("column", [0, 9], ids=["first process", "last process"])
def test_a_nan_that_one_process_sees_spoils_its_row_in_all(both, quantizer, column):
    x = Recipe((3, 10), torch.float32, seed=1).tensor()
    x[1, column] = torch.nan
    layer = Int8Linear.from_float(Recipe((4, 10), torch.float32, seed=2).tensor(), quantizer=quantizer)
    for _, scale, _, _, y in both(row_wise, layer, x):
        assert scale.isnan().flatten().tolist() == [False, True, False]
        assert y.isnan().all(1).tolist() == [False, True, False]


def mlp(layers: nn.Sequential, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    plan = {"0": Int8ColwiseParallel(), "2": Int8RowwiseParallel()}
    parallelize_module(layers, init_device_mesh("cpu", (PROCESSES,)), plan)
    return layers(x), {name: value.full_tensor() for name, value in layers.state_dict().items()}


@pytest.mark.parametrize("threshold", [None, 0.0, 6.0, float("inf")], ids=str)
@pytest.mark.parametrize("granularity", ["vector", "tensor"])
@pytest.mark.parametrize("hidden", [8, 7], ids=["divisible", "not divisible"])
def test_two_layers_in_a_row_exchange_nothing_between_them(both, threshold, granularity, hidden):
    # Outliers in the second layer only: the sums of a column-wise one are those of one process up to their order.
    first = Int8Linear.from_float(nn.Linear(6, hidden), threshold=None, granularity=granularity)
    model = nn.Sequential(first, nn.ReLU(), Int8Linear.from_float(nn.Linear(hidden, 5), None, threshold, granularity=granularity))
    x = Recipe((3, 6), torch.float32, seed=3).tensor()
    for y, whole in both(mlp, copy.deepcopy(model), x):
        assert_same(y, alone(model, x))
        for name, value in model.state_dict().items():
            assert_same(whole[name], value)


def count(layer: Int8Linear, x: Tensor) -> dict[str, int]:
    """Bytes that this process puts into collectives while it computes the layer, by kind."""
    parallelize_module(layer, init_device_mesh("cpu", (PROCESSES,)), Int8RowwiseParallel())
    sent = {"all_reduce": 0, "all_gather": 0}
    reduce, gather = dist.all_reduce, dist.all_gather

    def counted(kind: str, function: Callable, tensor: int) -> Callable:
        def call(*arguments: Any) -> Any:
            sent[kind] += arguments[tensor].numel() * arguments[tensor].element_size()
            return function(*arguments)

        return call

    dist.all_reduce, dist.all_gather = counted("all_reduce", reduce, 0), counted("all_gather", gather, 1)
    try:
        layer(own_columns(x))
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather
    return sent


def exchange_of_the_page() -> Callable[..., dict[str, int]]:
    from tests.tools.pages import python_blocks

    scope: dict[str, Any] = {}
    exec(python_blocks("several_devices")[-1], scope)
    return scope["exchanged"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("quantizer", ["absmax", "zeropoint"])
@pytest.mark.parametrize("outliers", [0, 1, 3])
def test_the_bytes_exchanged_are_those_of_the_page(both, dtype, quantizer, outliers):
    m, k, n = 5, 16, 12
    x = Recipe((m, k), dtype, seed=1).tensor()
    x[:, 1 : 1 + outliers] = 20  # all in the columns of the first process
    layer = Int8Linear.from_float(Recipe((n, k), dtype, seed=2).tensor(), quantizer=quantizer)
    expected = exchange_of_the_page()(m, n, outliers, x.element_size(), quantizer)
    for sent in both(count, layer, x):
        assert sent == {"all_reduce": expected["ranges"] + expected["accumulators"], "all_gather": expected["outliers"]}


def wrong_input(layer: Int8Linear, x: Tensor) -> None:
    parallelize_module(layer, init_device_mesh("cpu", (PROCESSES,)), Int8RowwiseParallel())(x)


def test_a_row_wise_layer_refuses_the_whole_input(both):
    layer = Int8Linear.from_float(torch.ones(3, 8))
    with pytest.raises(RuntimeError, match="x and weight must have the same last dimension K"):
        both(wrong_input, layer, torch.ones(2, 8))


def whole_input(layer: Int8Linear, x: Tensor, as_dtensor: bool) -> Tensor:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    module = parallelize_module(layer, mesh, Int8RowwiseParallel(split_input=not as_dtensor))
    return module(DTensor.from_local(x, mesh, [Replicate()]) if as_dtensor else x)


@pytest.mark.parametrize("as_dtensor", [False, True])
def test_a_row_wise_layer_may_be_told_to_split_the_whole_input(both, as_dtensor):
    layer = Int8Linear.from_float(Recipe((3, 7), torch.float32, seed=1).tensor())
    x = Recipe((2, 7), torch.float32, seed=2).tensor()
    for y in both(whole_input, copy.deepcopy(layer), x, as_dtensor):
        assert_same(y, alone(layer, x))


def with_gradient(style: Any, layer: Int8Linear, x: Tensor) -> None:
    with torch.enable_grad():
        parallel(style, layer, x.requires_grad_())


@pytest.mark.parametrize("style", [Int8ColwiseParallel(), Int8RowwiseParallel(split_input=True)], ids=["column", "row"])
def test_a_gradient_that_would_be_lost_is_refused(both, style):
    with pytest.raises(RuntimeError, match="gives no gradients; call the model under"):
        both(with_gradient, style, Int8Linear.from_float(torch.ones(3, 8)), torch.ones(2, 8))


@pytest.mark.parametrize("style", [Int8ColwiseParallel(), Int8RowwiseParallel()], ids=["column", "row"])
def test_only_an_int8_linear_can_be_sharded(both, style):
    with pytest.raises(RuntimeError, match="module must be an Int8Linear, got Linear"):
        both(parallel, style, nn.Linear(4, 4), torch.ones(2, 4))


def under_autocast(style: Any, layer: Int8Linear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return parallel(style, layer, x)


@pytest.mark.parametrize("style", [Int8ColwiseParallel(gather_output=True), Int8RowwiseParallel(split_input=True)], ids=["column", "row"])
def test_autocast_means_the_same_as_in_one_process(both, style):
    layer = Int8Linear.from_float(Recipe((6, 8), torch.float32, seed=1).tensor())
    x = Recipe((3, 8), torch.float32, seed=2).tensor()
    with torch.autocast("cpu", torch.bfloat16):
        expected = alone(layer, x)
    assert expected.dtype == torch.bfloat16
    for y in both(under_autocast, style, copy.deepcopy(layer), x):
        assert_same(y, expected)


def fully_sharded(model: nn.Sequential, x: Tensor) -> Tensor:
    return fully_shard(model, mesh=init_device_mesh("cpu", (PROCESSES,)))(x)


@pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="Torch 2.11's fully_shard takes floats only")
def test_fully_shard_takes_a_model_in_int8(both):
    model = fast.quantize_model(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5)).requires_grad_(False))
    x = Recipe((3, 6), torch.float32, seed=3).tensor()
    for y in both(fully_sharded, copy.deepcopy(model), x):
        assert_same(y, alone(model, x))
