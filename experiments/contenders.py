"""What is timed: float products, our layer, its stages, and (`peers`) the layers of other libraries.

A contender is prepared from W (N, K) in bfloat16, once, as in a model; bound to X (M, K), it gives a call without arguments, whose result
`truth` checks before it is timed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fast

from . import peers
from .contender import Bind, Contender, accumulator_work, called, detect_work, float_work, int8_work, product_work, quantize_work
from .timing import Call
from .truth import THRESHOLD, check_accumulators, check_codes, check_float, check_int8, check_mask


def contenders(device: str, compile_torchao: bool = False) -> dict[str, Contender]:
    """Everything that can be timed on `device` ("cpu" or "cuda") with what is installed, by name."""
    found = {
        "linear-bf16": Contender("F.linear, bfloat16", linear(torch.bfloat16), check_float, float_work(torch.bfloat16)),
        "linear-fp16": Contender("F.linear, float16", linear(torch.float16), check_float, float_work(torch.float16)),
        "linear-fp32": Contender("F.linear, float32", linear(torch.float32), check_float, float_work(torch.float32)),
        "int-mm": Contender("torch._int_mm, codes to int32", int_mm, check_accumulators, accumulator_work, foreign=True),
    }
    found |= peers.contenders(device, compile_torchao)
    for name, label, options, clean in (
        ("int8", "fast.Int8Linear", {}, False),
        ("int8-float", "fast.Int8Linear, float outlier weight", {"outlier_weight": "float"}, False),
        ("int8-none", "fast.Int8Linear, threshold None", {"threshold": None}, False),
        ("int8-clean", "fast.Int8Linear, X without outliers", {}, True),
    ):
        found[name] = Contender(label, int8(**options), partial(check_int8, **options), int8_work, clean=clean)
    if device != "cuda":
        return found | stages()
    found["int8-launched"] = replace(found["int8"], label="fast.Int8Linear, launched by the host", capturable=False)
    return found | kernel_stages()


def linear(dtype: torch.dtype) -> Callable[[Tensor], Bind]:
    """A float layer, all of it in `dtype`."""

    def prepare(w: Tensor) -> Bind:
        return partial(_bound, F.linear, w.to(dtype), dtype)

    return prepare


def _bound(product: Callable[[Tensor, Tensor], Any], weight: Tensor, dtype: torch.dtype, x: Tensor) -> Call:
    x = x.to(dtype)
    return lambda: product(x, weight)


def int_mm(w: Tensor) -> Bind:
    """PyTorch's integer product of the codes: neither quantization nor scales."""
    return partial(_product_of_codes, torch._int_mm, fast.absmax_quantize(w, -1).codes.T)


def int8_matmul(w: Tensor) -> Bind:
    """Our integer product of the codes."""
    return partial(_product_of_codes, fast.int8_matmul, fast.absmax_quantize(w, -1).codes)


def _product_of_codes(product: Callable[[Tensor, Tensor], Tensor], weight: Tensor, x: Tensor) -> Call:
    codes = fast.absmax_quantize(x, -1).codes
    return lambda: product(codes, weight)


def int8(**options: Any) -> Callable[[Tensor], Bind]:
    """Our layer."""
    return lambda w: partial(called, fast.Int8Linear.from_float(w, **options))


def _alone(stage: Callable[[Tensor], Any]) -> Callable[[Tensor], Bind]:
    """A stage that W has no part in."""
    return lambda w: partial(called, stage)


def stages() -> dict[str, Contender]:
    """The parts of our layer that are public functions."""
    codes = partial(check_codes, decomposed=False)
    detect, quantize = partial(fast.outlier_columns, threshold=THRESHOLD), partial(fast.absmax_quantize, axis=-1)
    return {
        "detect": Contender("detection", _alone(detect), check_mask, detect_work, stage=True),
        "quantize": Contender("quantization", _alone(quantize), codes, quantize_work, stage=True),
        "product": Contender("product", int8_matmul, check_accumulators, accumulator_work, stage=True),
    }


def kernel_stages() -> dict[str, Contender]:
    """The launches of our layer, one by one and together, as `fast.kernels.tiled` makes them."""
    from fast.kernels import outliers, product, quantization
    from fast.weights import QuantizedWeight

    def launch(threshold: float | None) -> Callable[[Tensor], Bind]:
        def prepare(w: Tensor) -> Bind:
            weight = QuantizedWeight.from_float(w)

            def bind(x: Tensor) -> Call:
                quantized = quantization.quantize_regular(x, threshold, outlier_weight=weight.codes)
                y = x.new_empty(x.shape[0], w.shape[0])
                return lambda: product.launch_product(quantized, weight, y, x)

            return bind

        return prepare

    def scan(x: Tensor) -> Tensor | None:
        return outliers.scan(x, THRESHOLD, extremes=False, zeropoint=False).flags

    def quantize(threshold: float | None) -> Callable[[Tensor], Bind]:
        """W has a part in it where its outlier columns are gathered."""

        def prepare(w: Tensor) -> Bind:
            w_codes = fast.absmax_quantize(w, -1).codes
            return partial(called, lambda x: quantization.quantize_regular(x, threshold, outlier_weight=w_codes)[:2])

        return prepare

    unmasked, masked = (partial(check_codes, decomposed=d) for d in (False, True))
    return {
        "detect": Contender("detection", _alone(scan), check_mask, detect_work, stage=True),
        "quantize": Contender("quantization", quantize(None), unmasked, quantize_work, stage=True),
        "detect-quantize": Contender("detection and quantization", quantize(THRESHOLD), masked, quantize_work, stage=True),
        "product": Contender("product", launch(None), partial(check_int8, threshold=None), product_work, stage=True),
        "product-outliers": Contender("product with outlier columns", launch(THRESHOLD), check_int8, product_work, stage=True),
    }
