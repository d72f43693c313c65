"""Turns the linear layers and the experts of a model into int8, in place, and says what it did."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from . import arguments
from .experts import Int8Experts, check_accumulators, other_settings
from .linear import Int8Linear, weight_and_bias
from .selection import Summary, choose_layers, named_in, size_of
from .selection.choice import is_float_experts
from .selection.placeholders import check_weights_are_here
from .transformers_traits import heads, transformers_is_loaded

logger = logging.getLogger(__name__)


def quantize_model(
    model: nn.Module,
    threshold: float | None = 6.0,
    skip: Sequence[str] | None = None,
    outlier_weight: str = "dequantized",
    quantizer: str = "absmax",
    granularity: str = "vector",
    progress: bool | None = None,
) -> nn.Module:
    """Replaces the linear layers of `model` by `Int8Linear`, in place, and turns its experts into `Int8Experts`.

    torch.nn.Linear, subclasses of it that compute the same, and transformers' Conv1D are replaced; experts that transformers 5 stores as
    3-dimensional parameters become int8 where they are, if the settings below are the default ones. What stays as it was, and why,
    is in the summary: it is logged (logger "fast.model", level INFO; WARNING if nothing was quantized) and kept as
    `model.quantization_summary`. Layers are replaced one after another, so that no more than one layer's float and int8 weights
    exist together. All arguments are checked before the first. If a layer still fails (out of memory), every layer is either
    float or int8, the model works, and calling again resumes.

    Models of transformers, inside `model` or around it, are marked as `from_pretrained` marks them, and what `save_pretrained`
    writes of them can be loaded. Each such model gets a config of its own: another that shared it is not affected.

    Args:
        model: any module, also a part of a model; a bare linear layer is replaced and returned.
        threshold: as in `Int8Linear.from_float`.
        skip: names not to touch: a module's full name, the end of one or any dotted part of one ("lm_head", "model.layers.0").
            None for the output head: what is named lm_head, and for a model of transformers what `from_pretrained` leaves alone.
        outlier_weight, quantizer, granularity: as in `Int8Linear.from_float`.
        progress: whether to show a progress bar on stderr; None for where stderr is a terminal. It needs the package tqdm.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is not one of the allowed values, a layer cannot be quantized (K too
            large), or its weight is not there (offloaded, on the meta device beside weights that are not); nothing was changed.
    """
    _check(model, skip)
    arguments.threshold(threshold)
    arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
    arguments.one_of("quantizer", quantizer, arguments.QUANTIZERS)
    arguments.one_of("granularity", granularity, arguments.GRANULARITIES)

    summary = Summary(bytes_before=size_of(model))
    skipped = _skipped(model, skip)
    check_weights_are_here(model, skipped)
    chosen = choose_layers(model, skipped, summary, other_settings(outlier_weight, quantizer, granularity))
    _check_sizes(chosen, quantizer)
    pending = list(chosen.items())
    chosen.clear()
    with _progress_bar(len(pending), progress) as advance:
        model = _replace_layers(model, pending, (threshold, outlier_weight, quantizer, granularity), summary, advance)

    summary.bytes_after = size_of(model)
    model.quantization_summary = summary  # type: ignore[assignment]
    if transformers_is_loaded():
        from .huggingface import declare

        declare(model)  # so that what save_pretrained writes can be read back
    _log(model, summary)
    return model


def _log(model: nn.Module, summary: Summary) -> None:
    if summary.quantized:
        logger.info("quantized a model\n%s", summary)
    else:
        logger.warning("quantize_model found no layer to quantize in %s\n%s", type(model).__name__, summary)


def _check(model: nn.Module, skip: Sequence[str] | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a sequence of names, got the string {skip!r}; write ({skip!r},)")


def _check_sizes(chosen: Iterable[nn.Module], quantizer: str) -> None:
    for module in chosen:
        if is_float_experts(module):
            check_accumulators(module)
        else:
            arguments.accumulator_fits(weight_and_bias(module)[0].shape[1], quantizer)


def _skipped(model: nn.Module, skip: Sequence[str] | None) -> Callable[[str], bool | str]:
    if skip is not None:
        return named_in(skip)
    left_alone = heads(model)
    return lambda name: "an output head; write skip=() to quantize it, too" if name in left_alone else False


def _replace_layers(
    model: nn.Module, pending: list[tuple[nn.Module, list[str]]], settings: tuple, summary: Summary, advance: Callable[[], object]
) -> nn.Module:
    """Replaces each of the `pending` modules under all of its names, and returns the model, which may be one of them.

    Args:
        model: to replace them in.
        pending: float layers and their names; emptied, so that each float layer is freed as soon as the model drops it.
        settings: what `Int8Linear.from_float` takes after weight and bias.
        summary: its `quantized` is filled in.
        advance: called after each layer.
    """
    while pending:
        module, names = pending.pop(0)
        before, experts = size_of(module), is_float_experts(module)
        try:
            layer = Int8Experts.from_float(module, settings[0]) if experts else Int8Linear.from_float(module, None, *settings)
        except Exception as error:
            done = len(summary.quantized)
            error.add_note(
                f"quantize_model stopped at {names[0]}: {done} of {done + 1 + len(pending)} layers are int8, the others still float; "
                "the model works as it is, and calling again goes on"
            )
            raise
        summary.quantized[names[0]] = (before, size_of(layer))
        if experts:
            summary.experts.add(names[0])
        for name in names if layer is not module else ():
            if name == "":
                model = layer
            else:
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, layer)
        advance()
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


def dequantize_model(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replaces each `Int8Linear` of `model` by a torch.nn.Linear with the weight that its codes stand for, in place; experts likewise.

    Rounding is not undone: the float model has the weights that the int8 model computed with. The method `dequantize` of a model of
    transformers does the same, and takes the quantization out of its config.

    Args:
        model: any module; bare `Int8Linear` or `Int8Experts` are replaced and returned.
        dtype: of weights and biases; None for that of the float weights that were quantized.

    Returns:
        The same model.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, (Int8Linear, Int8Experts)):
            continue
        if module not in made:
            made[module] = module.dequantize(dtype)
        if name == "":
            return made[module]
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made[module])
    return model
