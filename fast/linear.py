"""A linear layer in int8, as a torch module: see reference/linear.py for the two phases."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments, attachments, bitsandbytes_checkpoint
from .eager import engine_for
from .guard import HoldsCodes
from .operators import int8_linear
from .stored_state import check_stored, without_casting
from .transformers_traits import initialized, is_conv1d
from .weights import QuantizedWeight, absmax_scale, absolute_maximum

#: float32 whatever the model is cast to: half precision would round them, and with them every output.
SCALES = ("weight_absmax", "weight_scale")

#: The codes and what they mean.
STORED = ("weight", *SCALES, "weight_zero_point")


@initialized
class Int8Linear(HoldsCodes, nn.Linear):
    """A linear layer whose weight is held in int8. Make one with `Int8Linear.from_float`, or load a state dict into an empty one.

    It keeps 1 byte per weight and 4 bytes per row, and 2 or 4 more bytes per weight with `outlier_weight="float"`. The weight is
    frozen; gradients reach the input and the bias. The arithmetic is the same in `train()` and `eval()`. The output has the
    input's dtype, under autocast the autocast dtype (as torch.nn.Linear), whatever the data. Casting the module
    (`.half()`, `.to(torch.bfloat16)`) casts bias and float weight, never codes or scales.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is one.
        threshold, outlier_weight, quantizer, granularity: as in `from_float`.
        device, dtype: of the parameters; the dtype is that of bias and float weight. On "meta" nothing is allocated.

    Attributes:
        weight: (N, K) int8 codes.
        weight_absmax: (N, 1) float32, or (1, 1) if the granularity is "tensor" or "row": the largest magnitudes, from
            which the scales follow. None with the quantizer "zeropoint".
        weight_scale: float32, the shape of weight_absmax, for either quantizer. With "absmax" it is computed from weight_absmax; with
            "zeropoint" it is a parameter.
        weight_zero_point: int32, the shape of weight_scale; None with the quantizer "absmax".
        float_weight: (N, K), the original weight; None with the outlier weight "dequantized".
        bias: (N,), or None.
        float_dtype: what `dequantize` gives: the dtype of the float weight, or what the module was cast to since.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, or is not one of the allowed values; the message names it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold: float | None = 6.0,
        outlier_weight: str = "dequantized",
        quantizer: str = "absmax",
        granularity: str = "vector",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate and draw a float weight
        arguments.threshold(threshold)
        arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
        arguments.one_of("quantizer", quantizer, arguments.QUANTIZERS)
        arguments.one_of("granularity", granularity, arguments.GRANULARITIES)
        arguments.accumulator_fits(in_features, quantizer)
        self.in_features, self.out_features = in_features, out_features
        self.threshold = threshold
        self.outlier_weight = outlier_weight
        self.quantizer = quantizer
        self.granularity = granularity
        self.float_dtype = dtype or torch.get_default_dtype()

        def zeros(*shape: int, of: torch.dtype | None) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=of, device=device), requires_grad=False)

        n, absmax = out_features, quantizer == "absmax"
        slices = n if granularity == "vector" else 1
        # Each is among the parameters, also where it is None: `QuantizedWeight.of_layer` takes them from there.
        self.register_parameter("weight", zeros(n, in_features, of=torch.int8))
        self.register_parameter("weight_absmax", zeros(slices, 1, of=torch.float32) if absmax else None)
        # Not by registering: `weight_scale` is a property, and a parameter for zeropoint only.
        self._parameters["weight_scale"] = None if absmax else zeros(slices, 1, of=torch.float32)
        self.register_parameter("weight_zero_point", None if absmax else zeros(slices, 1, of=torch.int32))
        self.register_parameter("float_weight", zeros(n, in_features, of=dtype) if outlier_weight == "float" else None)
        self.register_parameter("bias", zeros(n, of=dtype) if bias else None)

    @classmethod
    def from_float(
        cls,
        weight: Tensor | nn.Module,
        bias: Tensor | None = None,
        threshold: float | None = 6.0,
        outlier_weight: str = "dequantized",
        quantizer: str = "absmax",
        granularity: str = "vector",
    ) -> "Int8Linear":
        """The load phase: quantizes a weight.

        Args:
            weight: (N, K) float16, bfloat16 or float32; or a torch.nn.Linear or a transformers Conv1D, whose weight and
                bias are quantized, and whose hooks, buffers and attributes the layer takes over.
            bias: (N,) of the same dtypes, or None.
            threshold: as in `outlier_columns`.
            outlier_weight: "dequantized" or "float": where the outlier columns' weights come from.
            quantizer: "absmax" or "zeropoint".
            granularity: "tensor", "row" or "vector".

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape, or is not one of the allowed values; the message names it.
        """
        settings: Any = (threshold, outlier_weight, quantizer, granularity)
        if not isinstance(weight, nn.Module):
            return cls._of_tensors(weight, bias, *settings)
        if bias is not None:
            raise TypeError("bias must be None where weight is a module, which brings its own")
        layer = cls._of_tensors(*weight_and_bias(weight), *settings)
        if reason := attachments.obstacle(weight):
            raise ValueError(f"this {type(weight).__name__} cannot become an Int8Linear: {reason}")
        attachments.take_over(layer, weight)
        return layer

    @classmethod
    def _of_tensors(
        cls, weight: Tensor, bias: Tensor | None, threshold: float | None, outlier_weight: str, quantizer: str, granularity: str
    ) -> "Int8Linear":
        weight = arguments.floats("weight", weight, ndim=2).detach()
        if bias is not None:
            bias = arguments.floats("bias", bias, ndim=1)
            arguments.same_device("weight", weight, "bias", bias)
            if bias.shape != weight.shape[:1]:
                raise ValueError(f"bias must have shape ({weight.shape[0]},), one entry per row of weight, got {tuple(bias.shape)}")
        n, k = weight.shape
        layer = cls(k, n, bias is not None, threshold, outlier_weight, quantizer, granularity, "meta", weight.dtype)
        if weight.is_meta:
            return layer
        quantized = QuantizedWeight.from_float(weight, granularity, quantizer)
        layer._set("weight", quantized.codes)
        if quantizer == "absmax":
            layer._set("weight_absmax", absolute_maximum(weight, granularity == "vector"))
        else:
            layer._set("weight_scale", quantized.scale)
            layer._set("weight_zero_point", quantized.zero_point)
        if outlier_weight == "float":
            layer._set("float_weight", weight.contiguous())
        if bias is not None:
            layer._set("bias", bias.detach())
        return layer

    def dequantize(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """Returns a float layer: the weight that the codes stand for (with "float", the weight that is kept) and a copy of the bias.

        Args:
            dtype: of weight and bias; None for `float_dtype`, and for the bias for its own.
        """
        bias = self.bias
        layer = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        layer.weight = nn.Parameter(self.dequantized_weight(dtype), requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(dtype or bias.dtype, copy=True), requires_grad=bias.requires_grad)
        return layer.train(self.training)

    def dequantized_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Returns the weight of `dequantize`, (N, K), a new tensor."""
        weight = QuantizedWeight.of_layer(self)
        if weight.float_weight is not None:
            return weight.float_weight.detach().to(dtype or self.float_dtype, copy=True)
        return weight.dequantized().detach().to(dtype or self.float_dtype)

    def requantize(self, weight: Tensor) -> None:
        """Quantizes `weight` (N, K), of floats, with the layer's settings, and writes codes and scales into the layer's own tensors."""
        made = Int8Linear.from_float(weight.detach(), None, self.threshold, self.outlier_weight, self.quantizer, self.granularity)
        for name in (*STORED, "float_weight"):
            if (own := self._parameters[name]) is not None:
                own.data.copy_(made._parameters[name])  # type: ignore[arg-type]

    @property
    def weight_scale(self) -> Tensor:  # noqa: D102, among the attributes
        kept = self._parameters["weight_scale"]
        if kept is not None:
            return kept
        absmax = self._parameters["weight_absmax"]
        assert absmax is not None
        return absmax_scale(absmax)

    def _set(self, name: str, value: Tensor | None) -> None:
        setattr(self, name, None if value is None else nn.Parameter(value, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x @ weight.T + bias, (..., N) for x (..., K), by mixed-precision decomposition."""
        own = self._parameters
        weight = QuantizedWeight.of_layer(self)
        bias = own["bias"] if "bias" in own else self.bias  # noqa: SIM401, which would ask the module for it at every call
        native = engine_for(x, weight, bias)
        if native is not None and x.shape[-1] == self.in_features:
            return native.linear(x, weight, bias, arguments.threshold(self.threshold), self.granularity != "tensor")
        return self._as_autocast(int8_linear(x, weight, bias, self.threshold, self.granularity))

    def _as_autocast(self, y: Tensor) -> Tensor:
        device = y.device.type
        if y.is_meta or not torch.is_autocast_enabled(device):  # the meta device has no autocast; even querying it fails
            return y
        return y.to(torch.get_autocast_dtype(device))

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        shown = [f"in_features={self.in_features}", f"out_features={self.out_features}", f"bias={self.bias is not None}"]
        shown.append(f"threshold={self.threshold}")
        defaults = {"outlier_weight": "dequantized", "quantizer": "absmax", "granularity": "vector"}
        shown += [f"{name}={getattr(self, name)}" for name, default in defaults.items() if getattr(self, name) != default]
        return ", ".join(shown)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        kept = [self._parameters.get(name) for name in STORED]
        scale = self._parameters.get(SCALES[self.quantizer != "absmax"])
        if scale is not None:
            self.float_dtype = fn(scale.detach()[:0].to(self.float_dtype)).dtype  # what a float weight would become

        return super()._apply(without_casting(kept, fn), recurse)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
        try:
            bitsandbytes_checkpoint.rename_layer(state_dict, prefix)
            self._check_state(state_dict, prefix)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _check_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Checks what copying into the parameters would silently accept."""
        for name in STORED:
            own, given = self._parameters.get(name), state_dict.get(prefix + name)
            if own is not None and given is not None:
                check_stored(prefix + name, own, given, symmetric=self.quantizer == "absmax")


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (N, K) and bias of a torch.nn.Linear or of a transformers Conv1D, which stores (K, N).

    Raises:
        TypeError: the module is neither, or is quantized already.
    """
    if isinstance(module, nn.Linear) and not isinstance(module, Int8Linear):
        return module.weight, module.bias
    if is_conv1d(module):
        return module.weight.T, module.bias  # type: ignore[return-value]
    raise TypeError(f"weight must be a tensor, a torch.nn.Linear or a transformers Conv1D, got {type(module).__name__}")
