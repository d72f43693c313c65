"""The most memory that loading a mixture of experts takes: quantized while it is read, and read in float first.

It is measured in a process of its own, where nothing else was loaded before. Anonymous memory counts, not the file, which is mapped.
A thread reads it twice per millisecond.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import fast
from fast.huggingface import Int8Config

#: A Mixtral of 8 layers with 8 experts: large enough that Python and Torch do not matter, small enough for any machine.
SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2}


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """The most memory while `call` runs, above what there was before; and what it returns."""
    gc.collect()
    done, before, seen = threading.Event(), anonymous(), [0]

    def watch() -> None:
        while not done.wait(0.0005):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return max(seen) - before, result


def both_ways(folder: str) -> dict[str, int]:
    """Peaks and sizes, in bytes, of loading the float32 checkpoint in `folder` for bfloat16."""
    torch.set_num_threads(1)

    def load(**options: Any) -> Any:
        return transformers.MixtralForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)

    with fast.backend("cpu"):
        streamed, model = peak(lambda: load(quantization_config=Int8Config()))
        float_first, _ = peak(lambda: fast.quantize_model(load(), progress=False))
    summary = model.quantization_summary
    return {
        "streamed": streamed,
        "float_first": float_first,
        "float": summary.bytes_before,
        "int8": summary.bytes_after,
        "largest": model.model.layers[0].mlp.experts.gate_up_proj.numel(),
    }


def measure() -> dict[str, int]:
    """`both_ways` of a model of SIZES, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES))
        model.to_empty(device="cpu").save_pretrained(folder)
        # What is freed is to go back at once.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        code = f"from {__name__} import print_both_ways; print_both_ways({folder!r})"
        done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_both_ways(folder: str) -> None:
    """What the process of `measure` does: one line of JSON."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(json.dumps(both_ways(folder)))
