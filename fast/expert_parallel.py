"""Expert parallelism: the experts of one `Int8Experts` over several processes, equal to one process bit for bit.

A process holds whole experts, codes, maxima and biases, and is given all tokens and what each of them chose. Since the rows of an expert
alone decide about its outlier columns, nothing has to be agreed on before the products:

1. Sorted by expert, the rows of a process's experts are one slice of all rows. It computes both projections of its slice.
2. The slices are gathered in the order of the processes: (S, H) in x's dtype, sorted by expert, what one process would have.
3. Each process weighs and adds up the rows of every token as one process does: in float32, in the order of top_k_index, rounded once.

The usual way, adding up what each process has weighed and rounded, would round differently: its result depends on which experts share a
process. And the rows are fewer bytes: gathered, each is sent to the others once, in an all-reduce nearly twice.
"""

import functools
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from .distributed import gather_rows
from .expert_operators import sorted_by_expert
from .experts import Int8Experts


class ExpertParallelInt8Experts(Int8Experts):
    """An `Int8Experts` of which this process holds some experts; `Int8ExpertParallel` makes one. Its parameters are DTensors."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None) -> Tensor:
        """As `Int8Experts`: every process is given all tokens, and returns the whole result.

        Raises:
            RuntimeError: hidden_states needs a gradient.
        """
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise RuntimeError("expert-parallel Int8Experts give no gradients; call the model under torch.no_grad()")
        return super().forward(_whole(hidden_states), *(None if t is None else _whole(t) for t in (top_k_index, top_k_weights)))

    def dequantize(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Refused: a float module of the model's own class would take this process's experts for all.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("expert-parallel Int8Experts cannot be dequantized; load the model in one process, and dequantize it there")

    def _both(self, x: Tensor, ends: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        if ends is None:
            assert chosen is not None
            order, ends = sorted_by_expert(chosen, len(self._parameters["down_proj"]))  # type: ignore[arg-type]
            y = self._both(x[order // chosen.shape[1]], ends)
            return torch.empty_like(y).index_copy_(0, order, y)
        mesh: DeviceMesh = self._parameters["down_proj"].device_mesh  # type: ignore[union-attr, assignment]
        rank, first = mesh.get_local_rank(), self._first_experts(mesh.size())
        cuts = [0, *torch.cat([ends.new_zeros(1), ends])[first[1:]].tolist()]  # on a GPU the host synchronizes here
        mine = slice(cuts[rank], cuts[rank + 1])
        with torch.no_grad():
            own_ends = ends[first[rank] : first[rank + 1]] - mine.start
            y = self._project(self.experts_layout.first, x[mine], own_ends)
            y = self._between_of_slice(y, mine, len(x))
            y = self._project("down_proj", y.to(x.dtype), own_ends)
            gathered = gather_rows(y, [end - start for start, end in itertools.pairwise(cuts)], mesh.get_group())
            # Rows of no expert, which come last, are zero.
            return self._after(torch.cat([gathered, gathered.new_zeros(len(x) - cuts[-1], gathered.shape[1])]))

    def _first_experts(self, processes: int) -> list[int]:
        """The first expert of each process, as torch cuts a dimension, and behind the last one's."""
        experts = len(self._parameters["down_proj"])  # type: ignore[arg-type]
        sizes = [Shard.local_shard_size_and_offset(experts, processes, rank)[0] for rank in range(processes)]
        return [0, *itertools.accumulate(sizes)]

    def _between_of_slice(self, y: Tensor, mine: slice, rows: int) -> Tensor:
        """What is between the projections, of some rows as of all of them.

        On a CPU Torch computes the end of a tensor in other instructions than the rest of it: rows must lie where one process has them.
        """
        if y.is_cuda:
            return self._between(y)
        everywhere = y.new_zeros(rows, y.shape[1])
        everywhere[mine] = y
        return self._between(everywhere)[mine]

    def _weight(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.no_grad():
            return tuple(t.to_local() if isinstance(t, DTensor) else t for t in super()._weight(name))  # type: ignore[return-value]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _empty, (type(self).float_class,), self.__dict__


@functools.cache
def _parallel_class(int8_class: type[Int8Experts]) -> type[ExpertParallelInt8Experts]:
    return type(f"ExpertParallel{int8_class.__name__}", (ExpertParallelInt8Experts, int8_class), {"__module__": __name__})


def _empty(float_class: type[nn.Module]) -> ExpertParallelInt8Experts:
    """An object without anything, for copying."""
    from .experts import _int8_class

    made = _parallel_class(_int8_class(float_class))  # type: ignore[arg-type]
    return made.__new__(made)


def _whole(t: Tensor) -> Tensor:
    return t.redistribute(placements=[Replicate()] * t.device_mesh.ndim).to_local() if isinstance(t, DTensor) else t


class Int8ExpertParallel(ParallelStyle):
    """Gives each process some of the experts of an `Int8Experts`; for `torch.distributed.tensor.parallel.parallelize_module`.

    Experts are cut as torch cuts a dimension: rounded up, so that the last process may have fewer, or none.
    """

    def convert(self, module: nn.Module) -> None:
        """Gives experts with sharded parameters the forward pass that belongs to them."""
        module.__class__ = _parallel_class(type(module))  # type: ignore[arg-type, assignment]

    def shard(self, module: nn.Module, name: str, mesh: DeviceMesh, source: int | None = None) -> None:
        """Replaces a parameter by this process's experts of it; `source` is the rank whose values count, None for everyone's own."""
        parameter = module._parameters[name]
        sharded = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=source)  # type: ignore[union-attr]
        module._parameters[name] = nn.Parameter(sharded, requires_grad=parameter.requires_grad)  # type: ignore[union-attr]

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, Int8Experts) or isinstance(module, ExpertParallelInt8Experts):
            raise TypeError(f"module must be Int8Experts of one process, got {type(module).__name__}")
        for name in [name for name, parameter in module._parameters.items() if parameter is not None]:
            self.shard(module, name, device_mesh, self.src_data_rank)
        self.convert(module)
        return module
