"""transformers' tensor-parallel plans for models whose layers are in int8: the styles of `distributed.py` under names of their own."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer, replace_layer_number_by_wildcard

from ..experts import Int8Experts
from ..linear import Int8Linear


class _TensorParallel(TensorParallelLayer):
    """A style of transformers' tensor-parallel plans for layers in int8; other layers keep the style `otherwise`."""

    def __init__(self, otherwise: str, style: Any) -> None:
        self.otherwise, self.style = otherwise, style

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        if isinstance(module, Int8Experts):
            raise ValueError(
                f"experts in int8 ({param}) cannot be spread over processes; name them in skip_modules when the model is quantized"
            )
        if not isinstance(module, Int8Linear):
            ALL_PARALLEL_STYLES[self.otherwise].shard_param(module, param, mesh)
            return
        if module.weight.dtype != torch.int8:
            raise ValueError(
                "a model cannot be quantized while it is sharded; quantize it once without, and load what save_pretrained wrote"
            )
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


def use_int8_styles(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """Puts "int8_colwise" for "colwise" and so on into the model's plans, for what is in int8: layers, and experts, which are refused."""
    from ..distributed import Int8ColwiseParallel, Int8RowwiseParallel

    styles = {
        "colwise": Int8ColwiseParallel(),
        "colwise_rep": Int8ColwiseParallel(gather_output=True),
        "colwise_gather_output": Int8ColwiseParallel(gather_output=True),
        "rowwise": Int8RowwiseParallel(),
        "rowwise_rep": Int8RowwiseParallel(split_input=True),
        "rowwise_split_input": Int8RowwiseParallel(split_input=True),
    }
    patterns = {replace_layer_number_by_wildcard(name) for name in layers}
    for plan in (model.tp_plan, getattr(model, "ep_plan", {})):
        for pattern, name in list(plan.items()):
            if (pattern in patterns or pattern.rpartition(".")[0] in patterns) and not name.startswith("int8_"):
                ALL_PARALLEL_STYLES.register(f"int8_{name}", _TensorParallel(name, styles.get(name)))  # type: ignore[arg-type]
                plan[pattern] = f"int8_{name}"
