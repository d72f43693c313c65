"""transformers' tensor-parallel plans for models whose layers are in int8: the styles of `distributed.py` under names of their own."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer, replace_layer_number_by_wildcard

from ..experts import Int8Experts
from ..linear import Int8Linear

try:  # a transformers that spreads whole experts over processes
    from transformers.distributed.expert_parallel import EpDispatchExpertsParallel
except ImportError:
    EpDispatchExpertsParallel = None  # type: ignore[assignment, misc]

#: transformers' names for parameters of experts that are cut by expert, and for the module that brings tokens to them.
GROUPED, DISPATCH = "grouped_gemm", "ep_dispatch_experts"

WHILE_SHARDED = "a model cannot be quantized while it is sharded; quantize it once without, and load what save_pretrained wrote"


def _shard_experts(experts: Int8Experts, param: str, mesh: Any) -> None:
    from ..expert_parallel import Int8ExpertParallel

    if experts._parameters["down_proj"].dtype != torch.int8:  # type: ignore[union-attr]
        raise ValueError(WHILE_SHARDED)
    Int8ExpertParallel().shard(experts, param, mesh)


class _TensorParallel(TensorParallelLayer):
    """A style of transformers' tensor-parallel plans for layers in int8; other layers keep the style `otherwise`."""

    def __init__(self, otherwise: str, style: Any) -> None:
        self.otherwise, self.style = otherwise, style

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        if isinstance(module, Int8Experts):
            if self.otherwise != GROUPED or EpDispatchExpertsParallel is None:
                raise ValueError(
                    f"experts in int8 ({param}) are spread over processes as wholes, not by the style {self.otherwise!r}: load the model "
                    "with DistributedConfig(tp_size=P, ep_size=P) of transformers 5.23, or name them in skip_modules when it is quantized"
                )
            _shard_experts(module, param, mesh)
            return
        if not isinstance(module, Int8Linear):
            ALL_PARALLEL_STYLES[self.otherwise].shard_param(module, param, mesh)
            return
        if module.weight.dtype != torch.int8:
            raise ValueError(WHILE_SHARDED)
        if self.style is None:
            raise ValueError(
                f"the tensor-parallel style {self.otherwise!r} has no counterpart for Int8Linear; name such layers in skip_modules"
            )
        self.style.shard(module, param, mesh)

    def install_forward(self, module: nn.Module, mesh: Any) -> nn.Module:
        if not isinstance(module, Int8Linear):
            return ALL_PARALLEL_STYLES[self.otherwise].install_forward(module, mesh)
        self.style.convert(module)
        return module


def _dispatch(otherwise: Any) -> Any:
    """transformers' style for the modules of experts, which keeps its name in plans: transformers asks for it."""

    class Dispatch(EpDispatchExpertsParallel):  # type: ignore[misc, valid-type]
        def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
            if isinstance(module, Int8Experts):
                _shard_experts(module, param, mesh)
            else:
                otherwise.shard_param(module, param, mesh)

        def install_forward(self, module: nn.Module, ep_mesh: Any, *, tp_mesh: Any, **options: Any) -> nn.Module:
            """Experts in int8 exchange rows in a way of their own, whatever `ep_implementation` says."""
            if not isinstance(module, Int8Experts):
                return otherwise.install_forward(module, ep_mesh, tp_mesh=tp_mesh, **options)
            ranks = [dist.get_process_group_ranks(mesh.get_group()) for mesh in (ep_mesh, tp_mesh)]
            if ranks[0] != ranks[1]:
                raise ValueError(
                    "processes that share experts in int8 must be given the same tokens: "
                    f"ep_size must equal tp_size, got {len(ranks[0])} and {len(ranks[1])}"
                )
            from ..expert_parallel import Int8ExpertParallel

            Int8ExpertParallel().convert(module)
            return module

    return Dispatch()


def use_int8_styles(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """Puts "int8_colwise" for "colwise" and so on into the model's plans, for what is in int8.

    Experts are cut by expert ("grouped_gemm", transformers' plan for `ep_size`); other ways to spread them are refused by name.
    """
    from ..distributed import Int8ColwiseParallel, Int8RowwiseParallel

    styles = {
        "colwise": Int8ColwiseParallel(),
        "colwise_rep": Int8ColwiseParallel(gather_output=True),
        "colwise_gather_output": Int8ColwiseParallel(gather_output=True),
        "rowwise": Int8RowwiseParallel(),
        "rowwise_rep": Int8RowwiseParallel(split_input=True),
        "rowwise_split_input": Int8RowwiseParallel(split_input=True),
    }
    if EpDispatchExpertsParallel is not None and not hasattr(ALL_PARALLEL_STYLES[DISPATCH], "int8"):
        made = _dispatch(ALL_PARALLEL_STYLES[DISPATCH])
        made.int8 = True
        ALL_PARALLEL_STYLES.register(DISPATCH, made)
    patterns = {replace_layer_number_by_wildcard(name) for name in layers}
    for plan in (model.tp_plan, getattr(model, "ep_plan", {})):
        for pattern, name in list(plan.items()):
            if name == DISPATCH:
                continue
            if (pattern in patterns or pattern.rpartition(".")[0] in patterns) and not name.startswith("int8_"):
                ALL_PARALLEL_STYLES.register(f"int8_{name}", _TensorParallel(name, styles.get(name)))  # type: ignore[arg-type]
                plan[pattern] = f"int8_{name}"
