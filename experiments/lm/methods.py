"""The quantization methods of the paper's Table 1, and how one of them is set for a measurement."""

from dataclasses import dataclass

ENGINES = ("reference", "fast")

#: "all" leaves the output head in float, as `fast.quantize_model` does; "all-and-head" takes it, too.
LAYERS = ("attention", "mlp", "all", "all-and-head")


@dataclass(frozen=True)
class Method:
    """One row of the paper's Table 1; quantizer None is the float model."""

    label: str
    quantizer: str | None = None
    granularity: str = "vector"
    decomposition: bool = False


#: In the paper's order: from coarse scales to fine ones, then with the outlier columns in 16 bits.
METHODS = {
    "float32": Method("float32"),
    "absmax-tensor": Method("absmax, by tensor", "absmax", "tensor"),
    "zeropoint-tensor": Method("zeropoint, by tensor", "zeropoint", "tensor"),
    "absmax-row": Method("absmax, by row", "absmax", "row"),
    "zeropoint-row": Method("zeropoint, by row", "zeropoint", "row"),
    "absmax-vector": Method("absmax, by vector", "absmax", "vector"),
    "zeropoint-vector": Method("zeropoint, by vector", "zeropoint", "vector"),
    "absmax-tensor-decomposed": Method("absmax, by tensor + decomposition", "absmax", "tensor", True),
    "zeropoint-tensor-decomposed": Method("zeropoint, by tensor + decomposition", "zeropoint", "tensor", True),
    "absmax-row-decomposed": Method("absmax, by row + decomposition", "absmax", "row", True),
    "zeropoint-row-decomposed": Method("zeropoint, by row + decomposition", "zeropoint", "row", True),
    "llm-int8-absmax": Method("LLM.int8(), absmax", "absmax", "vector", True),
    "llm-int8-zeropoint": Method("LLM.int8(), zeropoint", "zeropoint", "vector", True),
}


@dataclass(frozen=True)
class Setting:
    """What one row of the table runs.

    Attributes:
        method: a key of METHODS.
        layers: the linear layers it replaces, one of LAYERS.
        threshold: of the decomposition; None where there is none.
        outlier_weight: as in `fast.Int8Linear`.
        batch: how many windows go through the model together. They share what belongs to a whole input: the scale of a tensor,
            and the columns in 16 bits.
    """

    method: str
    layers: str = "all"
    threshold: float | None = None
    outlier_weight: str = "float"
    batch: int = 1

    @property
    def label(self) -> str:
        """The row's name, with what differs from the default."""
        parts = [METHODS[self.method].label]
        if self.layers == "all-and-head":
            parts.append("the output head too")
        elif self.layers != "all":
            parts.append(f"{self.layers} only")
        if METHODS[self.method].decomposition and self.threshold != 6.0:
            parts.append("threshold " + ("off" if self.threshold is None else f"{self.threshold:g}"))
        if self.batch != 1:
            parts.append(f"batch of {self.batch}")
        return ", ".join(parts)


#: Method and where the outlier columns take their weights from, by label.
SETTINGS = {
    "absmax, by tensor": Setting("absmax-tensor"),
    "absmax, by vector": Setting("absmax-vector"),
    "zeropoint, by vector": Setting("zeropoint-vector"),
    "LLM.int8(), dequantized weights": Setting("llm-int8-absmax", threshold=6.0, outlier_weight="dequantized"),
    "LLM.int8(), float weights": Setting("llm-int8-absmax", threshold=6.0),
}
