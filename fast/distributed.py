"""Tensor parallelism: one `Int8Linear` over several processes, equal to one process bit for bit.

Column-wise, a process holds some rows of the weight, with their scales, and computes its part of the output alone.
Row-wise, it holds some columns, and sees only those of x. What one process would compute is then put together in this order:

1. Outlier columns: whether a column is one depends on that column alone, so each process decides for its own.
2. The range of each row of x: the largest over the processes (float32, M numbers; 2 M for zeropoint). All processes
   then quantize with the same scale.
3. The accumulators, added up as integers: exact, so the order does not matter (int32, M * N; int64 for zeropoint).
4. The outlier columns of x and of the weight, gathered in the order of the processes: one product, in the order of one process.
   Adding float products of each process would round differently, and the difference would change the next layer's codes.
5. Scaling back and the bias: once.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from . import arguments
from .linear import SCALES, Int8Linear
from .operators import int8_linear, quantize
from .weights import QuantizedWeight

Group = dist.ProcessGroup | None


def quantize_shard(x: Tensor, per_row: bool, quantizer: str, group: Group = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantizes this process's columns of x as one process would quantize all of them.

    Args:
        x: (M, K of this process) float16, bfloat16 or float32.
        per_row: one scale per row, or one for all.
        quantizer: "absmax" or "zeropoint".
        group: the processes that hold the other columns.

    Returns:
        codes (M, K of this process) int8, scale float32, zero_point int32 or None, as `fast.operators.quantize`.
    """
    # The zero column: it belongs to every range, and a process may hold no column at all.
    slices = torch.cat([x, x.new_zeros(len(x), 1)], 1)
    slices = slices if per_row else slices.reshape(1, -1)
    ends = torch.cat([-slices.amin(1, keepdim=True), slices.amax(1, keepdim=True)], 1) if slices.numel() else slices.new_zeros(1, 2)
    if quantizer == "absmax":
        ends = ends.amax(1, keepdim=True)
    # A maximum over processes may lose a NaN (gloo's does); infinity stands for it, and gives the same codes and scale.
    ends = ends.float().nan_to_num(nan=torch.inf, posinf=torch.inf)
    dist.all_reduce(ends, dist.ReduceOp.MAX, group)
    if quantizer == "zeropoint":
        ends = ends * ends.new_tensor([-1, 1])
    # Columns that hold the ends of the range make the local range the common one.
    codes, scale, zero_point = quantize(torch.cat([x, ends.to(x.dtype).expand(len(x), -1)], 1), per_row, quantizer)
    return codes[:, : x.shape[1]], scale, zero_point


def accumulate(codes: Tensor, zero_point: Tensor | None, weight: QuantizedWeight, group: Group = None) -> Tensor:
    """The accumulators (M, N) of one process, from the columns that each process holds: int32, for zeropoint int64 and corrected."""
    acc = torch.ops.llm_int8.int8_matmul(codes.contiguous(), weight.codes)
    if zero_point is not None and weight.zero_point is not None:
        zx, zw = zero_point.long(), weight.zero_point.long().T
        acc = acc - zx * weight.codes.sum(-1, dtype=torch.int64) - zw * codes.sum(-1, keepdim=True) + codes.shape[1] * zx * zw
    dist.all_reduce(acc, dist.ReduceOp.SUM, group)
    return acc


def outlier_product(x: Tensor, outliers: Tensor, weight: QuantizedWeight, group: Group = None) -> Tensor | None:
    """X[:, O] @ W[:, O].T in float32, (M, N), over the outlier columns of all processes; None if there are none."""
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, outliers.sum(dtype=torch.int64).reshape(1), group)
    sizes = [int(count) for count in counts]
    if not any(sizes):
        return None

    x_outliers = _gather_columns(x[:, outliers], sizes, group).float()
    if weight.float_weight is None:
        codes, w = _gather_columns(weight.codes[:, outliers], sizes, group), None
    else:
        w = _gather_columns(weight.float_weight[:, outliers], sizes, group)
        codes = torch.zeros_like(w, dtype=torch.int8)
    # At threshold 0 the layer is this product alone.
    gathered = QuantizedWeight(codes, None, weight.scale, weight.zero_point, w)
    return int8_linear(x_outliers, gathered, None, 0.0)


def _gather_columns(columns: Tensor, sizes: list[int], group: Group) -> Tensor:
    """The columns of all processes side by side, in their order; `sizes` says how many each has."""
    return gather_rows(columns.T, sizes, group).T


def gather_rows(rows: Tensor, sizes: list[int], group: Group) -> Tensor:
    """The rows of all processes below each other, in their order; `sizes` says how many each has."""
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), rows.shape[1])])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Sharded(Int8Linear):
    """What the two kinds have in common: the parameters are DTensors."""

    def _local(self) -> tuple[QuantizedWeight, Tensor | None]:
        def local(parameter: Any) -> Any:
            return parameter.to_local() if isinstance(parameter, DTensor) else parameter

        # Without gradients to_local returns the same tensor each time, so that what was derived from it is kept.
        with torch.no_grad():
            return QuantizedWeight(*map(local, QuantizedWeight.of_layer(self))), local(self.bias)

    def _mesh(self) -> DeviceMesh:
        return self.weight.device_mesh  # type: ignore[attr-defined]

    def _local_input(self, x: Tensor, placement: Placement) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a tensor-parallel Int8Linear gives no gradients; call the model under torch.no_grad()")
        return x.redistribute(placements=[placement]).to_local() if isinstance(x, DTensor) else x


class ColumnParallelInt8Linear(_Sharded):
    """An `Int8Linear` of which this process holds some rows of the weight; `Int8ColwiseParallel` makes one."""

    gather_output = False

    def forward(self, x: Tensor) -> Tensor:
        """Returns this process's features of the output, (..., N of this process), for the whole x (..., K)."""
        weight, bias = self._local()
        x = self._local_input(x, Replicate())
        y = self._as_autocast(int8_linear(x, weight, bias, self.threshold, self.granularity))
        if not self.gather_output:
            return y
        mesh = self._mesh()
        sizes = [Shard.local_shard_size_and_offset(self.out_features, mesh.size(), rank)[0] for rank in range(mesh.size())]
        return _gather_columns(arguments.rows_of(y), sizes, mesh.get_group()).reshape(*y.shape[:-1], self.out_features)


class RowParallelInt8Linear(_Sharded):
    """An `Int8Linear` of which this process holds some columns of the weight; `Int8RowwiseParallel` makes one."""

    split_input = False

    def forward(self, x: Tensor) -> Tensor:
        """Returns the whole output, (..., N), for this process's features of x, (..., K of this process)."""
        mesh = self._mesh()
        if self.split_input and not isinstance(x, DTensor):
            x = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        x = arguments.floats("x", self._local_input(x, Shard(-1)))
        weight, bias = self._local()
        arguments.same_k("x", x, "weight", weight.codes)
        with torch.autocast(x.device.type, enabled=False):
            y = self._product(arguments.rows_of(x), weight, bias, mesh.get_group())
        return self._as_autocast(y.to(x.dtype).reshape(*x.shape[:-1], self.out_features))

    def _product(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None, group: Group) -> Tensor:
        threshold = arguments.threshold(self.threshold)
        outliers = torch.ops.llm_int8.outlier_columns(x, threshold)
        codes, scale, zero_point = quantize_shard(x.masked_fill(outliers, 0), self.granularity != "tensor", self.quantizer, group)
        y = (accumulate(codes, zero_point, weight, group).float() * scale) * weight.scale.T
        product = None if threshold is None else outlier_product(x, outliers, weight, group)
        y = y if product is None else y + product
        return y if bias is None else y + bias.float()


class _Int8Style(ParallelStyle):
    """What the two styles have in common: their parameters become DTensors, and their class the one that computes with them."""

    def _placement(self, name: str, parameter: Tensor) -> Placement:
        raise NotImplementedError

    def convert(self, module: nn.Module) -> None:
        """Gives a layer with sharded parameters the forward pass that belongs to them."""
        raise NotImplementedError

    def shard(self, module: nn.Module, name: str, mesh: DeviceMesh, source: int | None = None) -> None:
        """Replaces a parameter by this process's shard of it; `source` is the rank whose values count, None for everyone's own."""
        parameter = getattr(module, name)
        sharded = distribute_tensor(parameter.detach(), mesh, [self._placement(name, parameter)], src_data_rank=source)
        setattr(module, name, nn.Parameter(sharded, requires_grad=parameter.requires_grad))

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if type(module) is not Int8Linear:
            raise TypeError(f"module must be an Int8Linear, got {type(module).__name__}")
        for name, _ in list(module.named_parameters(recurse=False)):
            self.shard(module, name, device_mesh, self.src_data_rank)
        self.convert(module)
        return module


class Int8ColwiseParallel(_Int8Style):
    """Shards an `Int8Linear` by output features; for `torch.distributed.tensor.parallel.parallelize_module`.

    Args:
        gather_output: whether each process gets the whole output, or its own features of it.
    """

    def __init__(self, gather_output: bool = False) -> None:
        super().__init__()
        self.gather_output = gather_output

    def _placement(self, name: str, parameter: Tensor) -> Placement:
        # One scale for the whole weight is kept by all.
        return Replicate() if name in (*SCALES, "weight_zero_point") and len(parameter) == 1 else Shard(0)

    def convert(self, module: nn.Module) -> None:  # noqa: D102
        module.__class__ = ColumnParallelInt8Linear
        module.gather_output = self.gather_output  # type: ignore[assignment]


class Int8RowwiseParallel(_Int8Style):
    """Shards an `Int8Linear` by input features; for `torch.distributed.tensor.parallel.parallelize_module`.

    Args:
        split_input: whether each process is given the whole input, or its own features of it.
    """

    def __init__(self, split_input: bool = False) -> None:
        super().__init__()
        self.split_input = split_input

    def _placement(self, name: str, parameter: Tensor) -> Placement:
        return Shard(1) if name in ("weight", "float_weight") else Replicate()

    def convert(self, module: nn.Module) -> None:  # noqa: D102
        module.__class__ = RowParallelInt8Linear
        module.split_input = self.split_input  # type: ignore[assignment]
