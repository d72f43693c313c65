"""A mixture of experts in int8, as a torch module: see reference/experts.py for what is computed."""

import copy
import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from . import arguments
from .adapters import is_peft
from .expert_operators import decodes, experts_decode, experts_linear, sorted_by_expert
from .experts_layout import PROJECTIONS, Layout, layout, obstacle
from .guard import Frozen
from .stored_state import check_stored, without_casting
from .transformers_traits import initialized
from .weights import QuantizedWeight, absolute_maximum

#: The only settings of `Int8Linear.from_float` that experts have.
SETTINGS = {"outlier_weight": "dequantized", "quantizer": "absmax", "granularity": "vector"}

#: What a projection keeps beside its codes is named NAME_absmax.
ABSMAX = "_absmax"


@initialized
class Int8Experts(nn.Module):
    """Experts whose weights are held in int8: 1 byte per weight and 4 bytes per row. Make them with `Int8Experts.from_float`.

    It is the module of the model itself, of another class, derived from this one and from its own: its gate, its activation, a norm after
    the experts, its names and its hooks stay. Each projection NAME holds codes, and NAME_absmax beside them; both are frozen. Gradients
    reach the input, the routing weights and the biases. Routing and the weighted sum are as transformers' "grouped_mm" has them, whatever
    `experts_implementation` says.

    Attributes:
        gate_up_proj or up_proj, down_proj: (E, N, K) int8 codes, however the model laid out its weights.
        gate_up_proj_absmax or up_proj_absmax, down_proj_absmax: (E, N, 1) float32, the largest magnitude of each row.
        threshold: as in `Int8Linear.from_float`.
        float_dtype: what `dequantize` gives: the dtype of the float weights, or what the module was cast to since.
    """

    outlier_weight, quantizer, granularity = SETTINGS.values()

    #: The model's own class.
    float_class: type[nn.Module]

    threshold: float | None
    float_dtype: torch.dtype
    experts_layout: Layout

    @classmethod
    def from_float(cls, module: nn.Module, threshold: float | None = 6.0) -> "Int8Experts":
        """The load phase: quantizes the experts of a module, in place.

        Args:
            module: experts of a model of transformers, as `fast.experts_layout.layout` knows them; float16, bfloat16 or float32.
            threshold: as in `outlier_columns`.

        Returns:
            The same module.

        Raises:
            TypeError: module is not one of experts that are known.
            ValueError: K so large that int32 could overflow, something hangs on the module that would be lost, or a wrong threshold;
                nothing was changed.
        """
        stored = layout(module)
        if stored is None or isinstance(module, Int8Experts):
            raise TypeError(f"module must be experts by transformers' interface for them, in float, got {type(module).__name__}")
        if reason := obstacle(module):
            raise ValueError(f"this {type(module).__name__} cannot become Int8Experts: {reason}")
        arguments.threshold(threshold)
        check_accumulators(module)
        made: dict[str, nn.Parameter] = {}
        for name in (stored.first, "down_proj"):
            weight = module._parameters[name]
            codes, absmax = quantize_experts(weight.detach().transpose(1, 2) if stored.transposed else weight.detach())  # type: ignore[union-attr]
            made[name], made[name + ABSMAX] = (nn.Parameter(value, requires_grad=False) for value in (codes, absmax))
            made[name].__dict__.update(vars(weight))
        dtype = module._parameters[stored.first].dtype  # type: ignore[union-attr]
        module.__class__ = _int8_class(type(module))  # type: ignore[arg-type]
        for name, parameter in made.items():
            module.register_parameter(name, parameter)
        module.threshold, module.float_dtype, module.experts_layout = threshold, dtype, stored  # type: ignore[assignment]
        return module  # type: ignore[return-value]

    def dequantize(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Returns a float module of the model's own class, with the weights that the codes stand for, in the model's own layout.

        Args:
            dtype: of weights and biases; None for `float_dtype`, and for a bias for its own.
        """
        module = copy.copy(self)
        module._parameters = dict(self._parameters)
        for name in (self.experts_layout.first, "down_proj"):
            weight = self.dequantized_weight(name, dtype)
            del module._parameters[name + ABSMAX]
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)
            bias = self._parameters.get(f"{name}_bias")
            if bias is not None:
                module._parameters[f"{name}_bias"] = nn.Parameter(bias.detach().to(dtype or bias.dtype, copy=True), bias.requires_grad)
        for name in ("threshold", "float_dtype", "experts_layout"):
            del module.__dict__[name]
        module.__class__ = type(self).float_class  # type: ignore[assignment]
        return module

    def dequantized_weight(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the weights of one projection, a new tensor in the model's own layout: (E, N, K), or (E, K, N) where it transposes.

        Args:
            name: of the projection, such as "down_proj".
            dtype: None for `float_dtype`.
        """
        weight = QuantizedWeight(self._parameters[name], self._parameters[name + ABSMAX]).dequantized().to(dtype or self.float_dtype)  # type: ignore[arg-type]
        return weight.transpose(1, 2).contiguous() if self.experts_layout.transposed else weight

    def forward(self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None) -> Tensor:
        """Each token's experts, weighed and added up in float32 and rounded once.

        Args:
            hidden_states: (T, H) float16, bfloat16 or float32, one row per token; for Llama 4 a block of rows for each expert.
            top_k_index: (T, k) of an integer dtype: the experts of each token. E and more stand for no expert. None for Llama 4.
            top_k_weights: (T, k) of a floating dtype: what each expert's row is multiplied by. None for Llama 4.

        Returns:
            (T, H) of hidden_states' dtype.
        """
        experts = len(self._parameters["down_proj"])  # type: ignore[arg-type]
        if self.experts_layout.in_blocks:
            rows = hidden_states.shape[0] // experts
            ends = torch.arange(1, experts + 1, device=hidden_states.device) * rows
            return self._both(hidden_states, ends)
        if top_k_index is None or top_k_weights is None:
            raise TypeError("top_k_index and top_k_weights must be given")
        tokens, k = top_k_index.shape
        biases = [self._parameters.get(f"{name}_bias") for name in (self.experts_layout.first, "down_proj")]
        if decodes(hidden_states, top_k_index, any(bias is not None and bias.requires_grad for bias in biases)):
            y = self._both(hidden_states, chosen=top_k_index.to(torch.int64).contiguous())
        else:
            order, ends = sorted_by_expert(top_k_index, experts)
            y = self._both(hidden_states[order // k], ends)
            y = y[torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))]
        weights = top_k_weights.float().masked_fill(top_k_index >= experts, 0.0)
        return (y.view(tokens, k, y.shape[1]).float() * weights.unsqueeze(-1)).sum(1).to(hidden_states.dtype)

    def _both(self, x: Tensor, ends: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        """Both projections and what the model has between and after them: of rows sorted by expert, or of tokens and what they chose."""
        y = self._project(self.experts_layout.first, x, ends, chosen)
        y = self._project("down_proj", self._between(y).to(x.dtype), ends, chosen)
        return self._after(y)

    def _between(self, y: Tensor) -> Tensor:
        if self.experts_layout.in_blocks:
            gate, up = y.chunk(2, dim=-1)
            return up * self.act_fn(gate)  # type: ignore[operator]
        return self._apply_gate(y) if self.has_gate else self.act_fn(y)  # type: ignore[operator]

    def _after(self, y: Tensor) -> Tensor:
        return self.post_expert_norm(y) if getattr(self, "has_post_expert_norm", False) else y  # type: ignore[operator]

    def _weight(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, maxima and biases of a projection."""
        own = self._parameters
        return own[name], own[name + ABSMAX], own.get(f"{name}_bias")  # type: ignore[return-value]

    def _project(self, name: str, x: Tensor, ends: Tensor | None, chosen: Tensor | None = None) -> Tensor:
        codes, absmax, bias = self._weight(name)
        if chosen is not None:
            y = experts_decode(x, codes, absmax, bias, chosen, name == "down_proj", self.threshold)
        else:
            y = experts_linear(x, codes, absmax, bias, ends, self.threshold)  # type: ignore[arg-type]
        device = y.device.type
        if y.is_meta or not torch.is_autocast_enabled(device):  # the meta device has no autocast; even querying it fails
            return y
        return y.to(torch.get_autocast_dtype(device))

    def extra_repr(self) -> str:
        """What `print(model)` shows of the module."""
        shapes = [f"{name}={tuple(value.shape)}" for name in PROJECTIONS if (value := self._parameters.get(name)) is not None]
        return ", ".join([*shapes, f"threshold={self.threshold}"])

    def stored_names(self) -> list[str]:
        """Names of the parameters that hold codes and maxima."""
        return [name + end for name in PROJECTIONS if self._parameters.get(name) is not None for end in ("", ABSMAX)]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch.nn.Module's; codes are frozen."""
        super().register_parameter(name, param)
        self._freeze()

    def _freeze(self) -> None:
        for name in PROJECTIONS:
            codes = self._parameters.get(name)
            if type(codes) is nn.Parameter and codes.dtype == torch.int8:
                codes.requires_grad_ = Frozen(codes, f"{name} of {type(self).__name__}")  # type: ignore[method-assign, assignment]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        absmax = self._parameters["down_proj" + ABSMAX]
        self.float_dtype = fn(absmax.detach()[:0].to(self.float_dtype)).dtype  # type: ignore[union-attr]  # what float weights would become
        super()._apply(without_casting([self._parameters[name] for name in self.stored_names()], fn), recurse)
        self._freeze()
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
        try:
            for name in self.stored_names():
                if (given := state_dict.get(prefix + name)) is not None:
                    check_stored(prefix + name, self._parameters[name], given, symmetric=True)  # type: ignore[arg-type]
        except ValueError as error:
            error_msgs.append(str(error))
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _empty, (type(self).float_class,), self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._freeze()


def other_settings(outlier_weight: str, quantizer: str, granularity: str) -> str | None:
    """Why experts are not quantized with these settings; None if they are."""
    given = {"outlier_weight": outlier_weight, "quantizer": quantizer, "granularity": granularity}
    other = [f"{name}={value!r}" for name, value in given.items() if value != SETTINGS[name]]
    return f"experts do not take {other[0]}" if other else None


def check_accumulators(module: nn.Module) -> None:
    """Checks that the int32 accumulators of a module with a `layout` cannot overflow.

    Raises:
        ValueError: they can.
    """
    stored = layout(module)
    for name in PROJECTIONS:
        weight = module._parameters.get(name)
        if weight is not None and stored is not None:
            arguments.accumulator_fits(weight.shape[1 if stored.transposed else 2], "absmax")


def quantize_experts(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (E, N, K) int8 and row maxima (E, N, 1) float32 of weights (E, N, K), one expert after the other."""
    codes = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    absmax = torch.empty((*w.shape[:2], 1), dtype=torch.float32, device=w.device)
    for e in range(0 if w.is_meta else len(w)):
        codes[e], absmax[e] = quantize_rows(w[e])
    return codes, absmax


def quantize_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (N, K) int8 and row maxima (N, 1) float32 of one expert's weight (N, K)."""
    w = w.contiguous()
    return QuantizedWeight.from_float(w).codes, absolute_maximum(w, True)


@functools.cache
def _int8_class(float_class: type[nn.Module]) -> type[Int8Experts]:
    return type(f"Int8{float_class.__name__}", (Int8Experts, float_class), {"__module__": __name__, "float_class": float_class})


def _empty(float_class: type[nn.Module]) -> Int8Experts:
    """An object without anything, for copying and unpickling."""
    made = _int8_class(float_class)  # type: ignore[arg-type]
    return made.__new__(made)


def _refuse_adapters(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    """Adapters of PEFT that train the parameters of experts (`target_parameters`) would add floats to codes."""
    if isinstance(module, Int8Experts) and name == "base_layer" and is_peft(type(parent).__module__):
        raise TypeError(
            f"{type(module).__name__} holds int8 codes, which {type(parent).__name__} of PEFT cannot adapt: leave these experts out of "
            "target_parameters, and out of target_modules names that PEFT takes for experts (all-linear, gate_proj, up_proj, down_proj), "
            "or keep them float: name them in skip (quantize_model) or skip_modules (Int8Config)"
        )


register_module_module_registration_hook(_refuse_adapters)
