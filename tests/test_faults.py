"""What goes wrong in practice: numbers that are none, sizes at the edge, memory that runs out, threads, files that were damaged.

Either the result is right where it can be, or the error says what is wrong. Nothing plausible comes from nothing.
"""

import concurrent.futures
import contextvars
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fast
import fast.huggingface
from fast import Int8Linear
from fast.weights import QuantizedWeight
from reference import bounds
from tests import strategies
from tests.comparison import CPU, DEVICE, DTYPES, OUTLIER_WEIGHTS, QUANTIZERS, REFERENCE, SIDES, TRITON, array, assert_equal, assert_same
from tests.strategies import Recipe

# 70 = 64 + 6: the last tile of the interpreter's kernels is ragged, along K as well as along M and N.
M, N, K = 5, 35, 70
#: The one rounding to the output dtype; float32 needs none.
U = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 0.0}

sides = pytest.mark.parametrize("side", SIDES, ids=repr)


def weight(dtype: torch.dtype = torch.float32, k: int = K) -> Tensor:
    return Recipe((N, k), dtype, seed=1, exponent=-3).tensor()


def activations(dtype: torch.dtype = torch.float32, outliers: str = "none", rows: int = M, seed: int = 2) -> Tensor:
    return Recipe((rows, K), dtype, seed, outliers=outliers).tensor()


def assert_close_to_float64(y: Tensor, x: Tensor, w: Tensor, **options: Any) -> None:
    """Within the proven bound of the exact product, and one rounding to y's dtype."""
    exact = x.double() @ w.double().T
    bound = torch.from_numpy(bounds.llm_int8_matmul_bound(array(x), array(w), **options).copy())
    bound += U[y.dtype] * (exact.abs() + bound) + torch.finfo(y.dtype).smallest_normal
    assert bool(((y.double() - exact).abs() <= bound).all())


# NaN and infinities.


@sides
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("threshold", [6.0, None])
@pytest.mark.parametrize(("spoiler", "column"), [(float("nan"), 0), (-float("nan"), 41), (float("nan"), K - 1)])
def test_a_nan_in_x_spoils_its_own_row_and_no_other(side, quantizer, threshold, column, spoiler):
    x, w = activations(outliers="none"), weight()
    expected = side.llm_int8_matmul(x, w, threshold, quantizer)
    x[2, column] = spoiler
    y = side.llm_int8_matmul(x, w, threshold, quantizer)
    assert bool(y[2].isnan().all())
    keep = torch.arange(M) != 2
    assert_same(y[keep], expected[keep])


@sides
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(("spoiler", "column"), [("nan", 0), ("-nan", 41), ("inf", K - 1), ("-inf", 0)])
def test_what_is_no_number_in_w_spoils_its_own_output_and_no_other(side, quantizer, column, spoiler):
    x, w = activations(outliers="one"), weight()
    keep = torch.arange(N) != 3
    expected = side.layer(w, quantizer=quantizer)(x)
    w[3, column] = float(spoiler)
    y = side.layer(w, quantizer=quantizer)(x)
    assert bool(y[:, 3].isnan().all())
    assert_same(y[:, keep], expected[:, keep])


@sides
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("spoiler", ["inf", "-inf"])
def test_an_infinity_in_x_without_decomposition_spoils_its_own_row_and_no_other(side, quantizer, spoiler):
    x, w = activations(), weight()
    expected = side.quantized_matmul(x, w, "vector", quantizer)
    x[2, 5] = float(spoiler)
    y = side.quantized_matmul(x, w, "vector", quantizer)
    keep = torch.arange(M) != 2
    assert bool(y[2].isnan().all())
    assert_same(y[keep], expected[keep])


@sides
@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("spoiler", ["inf", "-inf"])
def test_an_infinity_in_x_is_an_outlier_and_comes_out_infinite(side, outlier_weight, spoiler):
    x, w = activations(), weight()
    x[2, 5] = float(spoiler)
    w[7, 5] = 0.0
    y = side.layer(w, outlier_weight=outlier_weight)(x)
    sign = float(np.sign(float(spoiler)))
    # Where the weight of the column is zero, or has the code zero, infinity times zero is NaN, as in any float product.
    codes = fast.absmax_quantize(w, -1).codes[:, 5]
    effective = codes.float() if outlier_weight == "dequantized" else w[:, 5]
    expected = torch.where(effective == 0, torch.nan, effective.sign() * sign * torch.inf)
    assert_same(y[2], expected)
    keep = torch.arange(M) != 2
    assert_close_to_float64(y[keep], x[keep], w, threshold=6.0, outlier_weight=outlier_weight)


@sides
def test_a_nan_in_the_bias_spoils_its_own_output_and_no_other(side):
    x, w, bias = activations(outliers="one"), weight(), torch.zeros(N)
    expected = side.layer(w, bias)(x)
    bias[4] = float("nan")
    y = side.layer(w, bias)(x)
    keep = torch.arange(N) != 4
    assert bool(y[:, 4].isnan().all())
    assert_same(y[:, keep], expected[:, keep])


@pytest.mark.parametrize("side", [REFERENCE, CPU], ids=repr)
@given(data=st.data())
def test_no_row_of_x_that_holds_a_nan_gives_a_number(side, data):
    x = Recipe((3, K), data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 2**32 - 1)), outliers="some columns").tensor()
    x[1, data.draw(st.integers(0, K - 1), label="column")] = float("nan")
    y = side.llm_int8_matmul(x, weight()[:3], data.draw(strategies.thresholds), data.draw(strategies.quantizers))
    assert bool(y[1].isnan().all())


# How many columns are outliers.

OUTLIERS: dict[str, Callable[[Tensor], Any]] = {
    "none": lambda x: None,
    "one": lambda x: x[:, 9].fill_(20),
    "the last of a ragged tile": lambda x: x[:, K - 1].fill_(20),
    "the first and the last": lambda x: x[:, [0, K - 1]].fill_(0) + x[0, [0, K - 1]].fill_(20),
    "all": lambda x: x.add_(20),
    "all but one": lambda x: x[:, 1:].add_(20),
    "a single entry": lambda x: x[-1, K - 1].fill_(-20),
}


@sides
@pytest.mark.parametrize("pattern", OUTLIERS)
@pytest.mark.parametrize(
    ("quantizer", "outlier_weight", "dtype", "rows"),  # few rows and many take different kernels
    [
        ("absmax", "dequantized", torch.float16, M),
        ("absmax", "float", torch.bfloat16, 18),
        ("zeropoint", "dequantized", torch.bfloat16, 18),
        ("zeropoint", "float", torch.float32, M),
    ],
)
def test_any_number_of_outlier_columns_keeps_the_bound(side, quantizer, outlier_weight, dtype, rows, pattern):
    x, w = activations(dtype, rows=rows), weight(dtype)
    OUTLIERS[pattern](x)
    y = side.layer(w, None, 6.0, outlier_weight, quantizer)(x)
    assert_close_to_float64(y, x, w, threshold=6.0, quantizer=quantizer, outlier_weight=outlier_weight)


@sides
def test_the_largest_outlier_leaves_all_but_its_column_alone(side):
    x, w = activations(), weight()
    w[:, 11] = 0
    x[:, 11] = 0
    expected = side.layer(w)(x)
    x[0, 11] = torch.finfo(torch.float32).max
    assert_equal(side.layer(w)(x), expected)


@sides
@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("size", [65_504.0, 70_000.0, 1e6, 1e30])
def test_bfloat16_activations_past_the_range_of_float16_are_not_narrowed(side, size, outlier_weight):
    x, w = activations(torch.bfloat16), weight(torch.bfloat16)
    x[1, 3] = size
    y = side.layer(w, None, 6.0, outlier_weight)(x)
    assert bool(y.isfinite().all())
    assert_close_to_float64(y, x, w, threshold=6.0, outlier_weight=outlier_weight)


@sides
@pytest.mark.parametrize("outliers", ["none", "one", "all columns"])
@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_weight_of_zeros_gives_the_bias(side, quantizer, outlier_weight, outliers):
    bias = Recipe((N,), torch.float32, seed=3).tensor()
    y = side.layer(torch.zeros(N, K), bias, 6.0, outlier_weight, quantizer)(activations(outliers=outliers))
    assert_equal(y, bias.expand(M, N))


@sides
def test_activations_of_zeros_give_the_bias(side):
    bias = Recipe((N,), torch.float32, seed=3).tensor()
    assert_equal(side.layer(weight(), bias)(torch.zeros(M, K)), bias.expand(M, N))


# The longest sum.

TOO_LONG = {"absmax": 133_145, "zeropoint": 131_072}


@sides
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_sum_that_could_overflow_int32_is_refused_by_name_everywhere(side, quantizer):
    k = TOO_LONG[quantizer]
    x, w = torch.ones(1, k), torch.ones(1, k)
    calls = [
        lambda: side.quantized_matmul(x, w, quantizer=quantizer),
        lambda: side.llm_int8_matmul(x, w, quantizer=quantizer),
        lambda: side.layer(w, quantizer=quantizer),
        lambda: Int8Linear(k, 1, quantizer=quantizer),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"K must be at most {k - 1} for {quantizer} codes, or the int32 accumulator may overflow"):
            call()


#: The kernels take a minute for it in the interpreter, and no time on a GPU.
INTERPRETED = pytest.param(TRITON, marks=pytest.mark.deep) if DEVICE.type == "cpu" else TRITON


@pytest.mark.parametrize("side", [REFERENCE, CPU, INTERPRETED], ids=repr)
def test_the_longest_sum_that_is_allowed_is_exact_at_its_worst(side):
    k = TOO_LONG["absmax"] - 1
    x = torch.ones(1, k)
    scale = torch.tensor(1.0) / 127
    assert_same(side.quantized_matmul(x, -x), (-torch.tensor(k * 127.0**2) * scale * scale).reshape(1, 1))  # 4,071 below 2**31
    k = TOO_LONG["zeropoint"] - 1
    a, b = torch.full((1, k), -128, dtype=torch.int8), torch.full((1, k), -128, dtype=torch.int8)
    a[0, 5], b[0, 5] = 127, -127  # an odd sum, which float32 does not hold
    assert_same(side.int8_matmul(a, b), torch.tensor([[(k - 1) * 128**2 - 127**2]], dtype=torch.int32))


# A model and its surroundings.


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=40
    )
    return transformers.LlamaForCausalLM(config).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(12).reshape(2, 6), use_cache=False).logits


@sides
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_without_a_row_gives_one_without_a_row(side, dtype):
    y = side.layer(weight(dtype), torch.ones(N, dtype=dtype))(torch.ones(0, 3, K, dtype=dtype))
    assert y.shape == (0, 3, N)


@pytest.mark.parametrize("side", [CPU, TRITON], ids=repr)
def test_a_model_takes_a_batch_without_a_row(side):
    model = nn.Sequential(nn.Embedding(40, K), nn.LayerNorm(K), nn.Linear(K, N), nn.GELU(), nn.Linear(N, 3))
    fast.quantize_model(model)
    device = DEVICE if side is TRITON else torch.device("cpu")
    with fast.backend(side.name):
        assert model.to(device)(torch.empty(0, 6, dtype=torch.long, device=device)).shape == (0, 6, 3)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_threads_share_one_layer(quantizer):
    inputs = [activations(outliers=outliers, seed=seed) for seed in range(4) for outliers in ("none", "one", "all columns")]
    expected = [Int8Linear.from_float(weight(), quantizer=quantizer)(x) for x in inputs]
    for _ in range(20):
        layer = Int8Linear.from_float(weight(), quantizer=quantizer)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(contextvars.copy_context().run, layer, x) for x in inputs]
            for future, y in zip(futures, expected, strict=True):
                assert_same(future.result(), y)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("failing", [0, 1, 6, 13])
def test_when_memory_runs_out_each_layer_is_float_or_int8_the_model_works_and_one_can_go_on(failing, monkeypatch):
    names = [name for name, module in llama().named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    model, calls = llama(), iter(range(100))
    original = QuantizedWeight.from_float

    def running_out(*arguments: Any) -> Any:
        if next(calls) == failing:
            raise torch.OutOfMemoryError("out of memory (simulated)")
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(QuantizedWeight, "from_float", running_out)
        with pytest.raises(torch.OutOfMemoryError, match="simulated") as raised:
            fast.quantize_model(model)
    assert raised.value.__notes__ == [
        f"quantize_model stopped at {names[failing]}: {failing} of 14 layers are int8, the others still float; "
        "the model works as it is, and calling again goes on"
    ]
    assert [name for name in names if isinstance(model.get_submodule(name), Int8Linear)] == names[:failing]
    assert_same(logits(model), logits(fast.quantize_model(llama(), skip=("lm_head", *names[failing:]))))
    assert_same(logits(fast.quantize_model(model)), logits(fast.quantize_model(llama())))


# Files.


def saved(folder: Path) -> Path:
    fast.quantize_model(llama()).save_pretrained(folder)
    return folder / "model.safetensors"


def load(folder: Path) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_saved_model_is_safetensors_and_loads_back(tmp_path):
    saved(tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert_same(logits(load(tmp_path)), logits(fast.quantize_model(llama())))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(kept, tmp_path):
    file = saved(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(safetensors.SafetensorError, match="deserializing header"):
        load(tmp_path)


class Payload:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.path,)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("write", [lambda value, file: pickle.dump(value, file, protocol=2), torch.save], ids=["pickle", "torch.save"])
def test_nothing_in_a_file_is_executed(write, name, tmp_path):
    saved(tmp_path).unlink()
    trace = tmp_path / "executed"
    with open(tmp_path / name, "wb") as file:
        write({"model.embed_tokens.weight": Payload(trace)}, file)
    with pytest.raises((safetensors.SafetensorError, pickle.UnpicklingError, OSError, RuntimeError)):
        load(tmp_path)
    assert not trace.exists()


def tamper(file: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> None:
    state = safetensors.torch.load_file(file)
    changed = change(state.pop(name))
    safetensors.torch.save_file(state if changed is None else state | {name: changed.contiguous()}, file, metadata={"format": "pt"})


LAYER = "model.layers.0.mlp.up_proj"
#: Ours, or that of a transformers that compares the shapes itself.
OTHER_SHAPE = "must have shape|mismatch"
TAMPERED = {
    "no absmax": (f"{LAYER}.weight_absmax", lambda t: None, f"the checkpoint holds no {LAYER}.weight_absmax"),
    "no codes": (f"{LAYER}.weight", lambda t: None, f"the checkpoint holds no {LAYER}.weight"),
    "codes of another shape": (f"{LAYER}.weight", lambda t: t[:, 1:], OTHER_SHAPE),
    "an absmax of another shape": (f"{LAYER}.weight_absmax", lambda t: t.T, OTHER_SHAPE),
}


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("what", TAMPERED)
def test_a_file_whose_layers_do_not_fit_is_refused(what, tmp_path):
    name, change, message = TAMPERED[what]
    tamper(saved(tmp_path), name, change)
    with pytest.raises((ValueError, RuntimeError), match=message):
        load(tmp_path)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threshold", -1, "threshold must be 0 or more"),
        ("quantizer", "int4", "quantizer must be one of"),
        ("bits", 4, "has no argument bits"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(name, value, message, tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, TypeError), match=message):
        load(tmp_path)
