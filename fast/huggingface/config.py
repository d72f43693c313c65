"""How a model is quantized, as `from_pretrained` takes it and config.json holds it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from .. import arguments

#: What a layer in int8 is made with, beside its weight.
SETTINGS = ("threshold", "outlier_weight", "quantizer", "granularity")

#: The method's name in config.json. Where this module is not imported, transformers warns that it does not know a method of this
#: name, and goes on, with codes instead of weights. So the name says what to do.
METHOD = "llm_int8: `import fast.huggingface` before loading this model"


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """How `from_pretrained` quantizes a model, and what `save_pretrained` writes into config.json.

    Args:
        threshold: as in `Int8Linear.from_float`.
        skip_modules: names of linear layers to leave alone, as transformers takes them: the start, the end or a regular expression of a
            module's name. None for those that transformers leaves alone: the output head, the last module and tied weights. A
            quantized checkpoint tells by itself which layers are int8.
        outlier_weight, quantizer, granularity: as in `Int8Linear.from_float`.
        checkpoint: whose names a quantized checkpoint has, "own" or "bitsandbytes"; `bitsandbytes_config` sets it.
        layers: where the layers of a quantized checkpoint have different settings, those of each that differ from the above, by the
            layer's name. `save_pretrained` writes it.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is not one of the allowed values; the message names it.
    """

    def __init__(
        self,
        threshold: float | None = 6.0,
        skip_modules: Sequence[str] | None = None,
        outlier_weight: str = "dequantized",
        quantizer: str = "absmax",
        granularity: str = "vector",
        checkpoint: str = "own",
        layers: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("quant_method", None)  # config.json names it
        if kwargs:
            raise TypeError(f"Int8Config has no argument {', '.join(kwargs)}")
        if isinstance(skip_modules, str):
            raise TypeError(f"skip_modules must be a sequence of names, got the string {skip_modules!r}; write [{skip_modules!r}]")
        self.quant_method = METHOD  # type: ignore[assignment]
        # JSON has no infinity.
        self.threshold = None if arguments.threshold(threshold) is None else threshold
        self.skip_modules = None if skip_modules is None else list(skip_modules)
        self.outlier_weight = arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
        self.quantizer = arguments.one_of("quantizer", quantizer, arguments.QUANTIZERS)
        self.granularity = arguments.one_of("granularity", granularity, arguments.GRANULARITIES)
        self.checkpoint = arguments.one_of("checkpoint", checkpoint, ("own", "bitsandbytes"))

        self.layers = None if layers is None else {name: dict(own) for name, own in layers.items()}
        for name, own in (self.layers or {}).items():
            if unknown := set(own) - set(SETTINGS):
                raise TypeError(f"layers[{name!r}] has no setting {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {name: value for name, value in super().to_dict().items() if name != "layers" or value is not None}

    def layer_arguments(self, *names: str) -> dict[str, Any]:
        """The arguments of `Int8Linear.from_float` that follow weight and bias.

        Args:
            names: of a layer, the most certain first: in the model that is loaded, in the file. The model that was saved may have been of
                another class, whose names have other prefixes.

        Raises:
            ValueError: the layers have different settings, and these names do not tell which are this layer's.
        """
        common = {setting: getattr(self, setting) for setting in SETTINGS}
        return common if self.layers is None or not names else common | self._own_settings(names)

    def _own_settings(self, names: Sequence[str]) -> dict[str, Any]:
        layers = self.layers or {}
        for name in names:
            if name in layers:
                return layers[name]
        parts = names[0].split(".")
        for i in range(len(parts)):
            suffix = ".".join(parts[i:])
            found = [own for name, own in layers.items() if name == suffix or name.endswith(f".{suffix}")]
            if found and all(own == found[0] for own in found):
                return found[0]
            if found:
                break
        raise ValueError(
            f"quantization_config.layers does not tell the settings of {names[0]}: {len(found)} layers of other names may "
            "be meant; load the checkpoint with the class that saved it"
        )

    def skips(self, name: str) -> bool:
        """Whether `skip_modules` names this module, by the rules of transformers 5.23: 5.17 takes "layers.1" for "layers.11", too."""
        end = r"(?:(?<=\.)|(?=\.|$))"
        return any(re.match(rf"(?:{key}){end}", name) or name.endswith(key) for key in self.skip_modules or ())
