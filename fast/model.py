"""Turns the linear layers of a model into int8, in place, and says what it did."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from . import arguments
from .linear import Int8Linear, weight_and_bias
from .selection import Summary, choose_layers, size_of
from .transformers_traits import is_pretrained

logger = logging.getLogger(__name__)


def quantize_model(
    model: nn.Module,
    threshold: float | None = 6.0,
    skip: Sequence[str] = ("lm_head",),
    outlier_weight: str = "dequantized",
    quantizer: str = "absmax",
    granularity: str = "vector",
    progress: bool | None = None,
) -> nn.Module:
    """Replaces the linear layers of `model` by `Int8Linear`, in place.

    torch.nn.Linear and transformers' Conv1D are replaced. What stays as it was, and why, is in the summary: it is logged
    (logger "fast.model", level INFO) and kept as `model.quantization_summary`. Layers are replaced one after another, so that
    no more than one layer's float and int8 weights exist together. All arguments are checked before the first. If one fails all
    the same (no memory), each layer is either the float one or the int8 one and the model works; calling again goes on.

    Args:
        model: any module; a bare linear layer is replaced and returned.
        threshold: as in `Int8Linear.from_float`.
        skip: names not to touch: a module's full name, the end of one or any dotted part of one ("lm_head", "model.layers.0").
        outlier_weight, quantizer, granularity: as in `Int8Linear.from_float`.
        progress: whether to show a progress bar on stderr; None for where stderr is a terminal. It needs the package tqdm.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: an argument is none of these, or a layer cannot be quantized (K too large); nothing was changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a sequence of names, got the string {skip!r}; write ({skip!r},)")
    arguments.threshold(threshold)
    arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
    arguments.one_of("quantizer", quantizer, arguments.QUANTIZERS)
    arguments.one_of("granularity", granularity, arguments.GRANULARITIES)

    summary = Summary(bytes_before=size_of(model))
    chosen = choose_layers(model, lambda name: any(f".{part}." in f".{name}." for part in skip), summary)
    for module in chosen:
        arguments.accumulator_fits(weight_and_bias(module)[0].shape[1], quantizer)

    pending = [(module, names) for module, names in chosen.items()]
    chosen.clear()
    with _progress_bar(len(pending), progress) as advance:
        while pending:
            module, names = pending.pop(0)  # so that the float layer goes as soon as the model lets go of it
            try:
                layer = Int8Linear.from_float(module, None, threshold, outlier_weight, quantizer, granularity)
            except Exception as error:
                done = len(summary.quantized)
                error.add_note(
                    f"quantize_model stopped at {names[0]}: {done} of {done + 1 + len(pending)} layers are int8, the others still float; "
                    "the model works as it is, and calling again goes on"
                )
                raise
            summary.quantized[names[0]] = (size_of(module), size_of(layer))
            for name in names:
                if name == "":
                    model = layer
                else:
                    parent, _, last = name.rpartition(".")
                    setattr(model.get_submodule(parent), last, layer)
            advance()

    summary.bytes_after = size_of(model)
    model.quantization_summary = summary  # type: ignore[assignment]
    if is_pretrained(model):
        from .huggingface import declare

        declare(model)  # type: ignore[arg-type]  # so that what save_pretrained writes can be read back
    logger.info("quantized a model\n%s", summary)
    return model


@contextmanager
def _progress_bar(total: int, progress: bool | None) -> Iterator[Callable[[], object]]:
    try:
        from tqdm import tqdm
    except ImportError:
        if progress:
            raise ModuleNotFoundError("progress=True needs the package tqdm: pip install tqdm") from None
        yield lambda: None
        return
    # tqdm's None: only where stderr is a terminal.
    with tqdm(total=total, desc="quantizing", unit="layer", disable=None if progress is None else not progress) as bar:
        yield bar.update


def dequantize_model(model: nn.Module) -> nn.Module:
    """Replaces each `Int8Linear` of `model` by a torch.nn.Linear with the weight that its codes stand for, in place.

    Rounding is not undone: the float model has the weights that the int8 model computed with. A model of transformers has the method
    `dequantize`, which calls this and takes the quantization out of its config.

    Args:
        model: any module; a bare `Int8Linear` is replaced and returned.

    Returns:
        The same model.
    """
    made: dict[nn.Module, nn.Linear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, Int8Linear):
            continue
        if module not in made:
            made[module] = module.dequantize()
        layer = made[module]
        if name == "":
            return layer
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return model
