"""Int8 layers of other libraries, each as its documentation has it. Only bitsandbytes treats outlier columns apart, as LLM.int8() does.

`pip install -e ".[peers]"` installs them; what is not there is left out.
"""

import ctypes
import logging
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .contender import Bind, Contender, called, int8_work
from .timing import Call
from .truth import THRESHOLD, Truth, check_quantized


def installed(package: str) -> bool:
    """Whether a package that we only compare with is there."""
    return util.find_spec(package) is not None


def contenders(device: str, compile_torchao: bool = False) -> dict[str, Contender]:
    """The layers that can be timed on `device` ("cpu" or "cuda") with what is installed, by name."""
    found = {}
    by_row, by_tensor = partial(check_quantized, decomposed=False), check_per_tensor
    if installed("bitsandbytes"):
        check = partial(check_quantized, decomposed=True)
        found["bitsandbytes"] = Contender("bitsandbytes", bitsandbytes, check, int8_work, foreign=True, capturable=False)
    if installed("torchao"):
        found["torchao"] = Contender("torchao, dynamic int8", torchao, by_row, int8_work, foreign=True)
        if compile_torchao:
            prepare = partial(torchao, compiled=True)
            found["torchao-compiled"] = Contender("torchao, compiled", prepare, by_row, int8_work, foreign=True)
    if device == "cuda":
        return found
    found["torch-dynamic"] = Contender("torch quantize_dynamic", torch_dynamic, by_tensor, int8_work, foreign=True)
    if installed("onnxruntime") and installed("onnx"):
        found["onnxruntime"] = Contender("onnxruntime, dynamic int8", onnxruntime, by_tensor, int8_work, foreign=True)
    if installed("openvino"):
        found["openvino"] = Contender("OpenVINO, int8 weights", openvino, by_tensor, int8_work, foreign=True)
    if installed("llama_cpp"):
        found["ggml"] = Contender("llama.cpp, Q8_0", ggml, by_row, int8_work, foreign=True)
    return found


def check_per_tensor(truth: Truth, y: Tensor | NDArray) -> None:
    """A layer that gives all of X one scale, of 7 bits at least."""
    check_quantized(truth, y if isinstance(y, Tensor) else torch.from_numpy(y), decomposed=False, per_tensor=True)


def quiet() -> None:
    """Keeps other libraries from saying at every call that they cast bfloat16, and what they say of each other when imported."""
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def bitsandbytes_layer(weight: Tensor, bias: Tensor | None = None) -> torch.nn.Module:
    """bitsandbytes' LLM.int8() layer for a float weight (N, K)."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=bias is not None, has_fp16_weights=False, threshold=THRESHOLD)
    layer.weight = bnb.nn.Int8Params(weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
    # Moving it is what quantizes it.
    return layer.to(weight.device).eval()


def bitsandbytes(w: Tensor) -> Bind:
    """bitsandbytes' layer."""
    quiet()
    return partial(called, bitsandbytes_layer(w))


def float_layer(w: Tensor) -> torch.nn.Linear:
    """A float layer of the weight (N, K), for libraries that convert one."""
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype, device="meta")
    layer.weight = torch.nn.Parameter(w, requires_grad=False)
    return layer


def torchao(w: Tensor, compiled: bool = False) -> Bind:
    """torchao's layer with dynamically quantized activations; compiled is how its documentation runs it."""
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        layer = float_layer(w)
        quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    product = torch.compile(F.linear, dynamic=False) if compiled else F.linear
    return lambda x: lambda: product(x, layer.weight)


def torch_dynamic(w: Tensor) -> Bind:
    """PyTorch's `quantize_dynamic`: one asymmetric scale of X, float32 in and out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(float_layer(w.float())), {torch.nn.Linear}, torch.qint8)
    return lambda x: called(model, x.float())


def codes_of(w: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (N, K) and scales (N, 1) of a weight, symmetric, one scale per row."""
    wide = w.float()
    scale = wide.abs().amax(1, keepdim=True) / 127
    return (wide / scale).round().to(torch.int8).numpy(), scale.numpy()


def onnxruntime(w: Tensor) -> Bind:
    """The nodes that onnxruntime's dynamic quantization makes of a MatMul: one asymmetric scale of X, float32 in and out."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    codes, scale = codes_of(w)
    steps: tuple[tuple[str, list[str], list[str], dict[str, Any]], ...] = (
        ("DynamicQuantizeLinear", ["x"], ["q", "x_scale", "x_zero"], {}),
        ("MatMulInteger", ["q", "w", "x_zero"], ["acc"], {}),
        ("Cast", ["acc"], ["sums"], {"to": TensorProto.FLOAT}),
        ("Mul", ["x_scale", "w_scale"], ["scale"], {}),
        ("Mul", ["sums", "scale"], ["y"], {}),
    )
    graph = helper.make_graph(
        [helper.make_node(operation, given, made, **options) for operation, given, made, options in steps],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", w.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", w.shape[0]])],
        [numpy_helper.from_array(np.ascontiguousarray(codes.T), "w"), numpy_helper.from_array(scale[:, 0], "w_scale")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])

    def bind(x: Tensor) -> Call:
        given = {"x": x.float().numpy()}
        return lambda: session.run(None, given)[0]

    return bind


def openvino(w: Tensor) -> Bind:
    """OpenVINO's matrix product with an int8 weight, which it runs with dynamically quantized activations; float32 in and out."""
    import openvino as ov
    from openvino import opset13 as ops

    codes, scale = codes_of(w)
    x = ops.parameter([-1, w.shape[1]], np.float32)
    weight = ops.multiply(ops.convert(ops.constant(codes), "f32"), ops.constant(scale))
    model = ov.Model([ops.matmul(x, weight, False, True)], [x], "layer")
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 2**62,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()

    def bind(x: Tensor) -> Call:
        given = {0: x.float().numpy()}
        return lambda: request.infer(given, share_inputs=True, share_outputs=True)[0]

    return bind


class Parameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):
    """The beginning of a ggml_cplan, which differs between versions, and room for the rest."""

    _fields_ = [("size", ctypes.c_size_t), ("work", ctypes.c_void_p), ("rest", ctypes.c_char * 112)]


#: ggml_type.
GGML_F32, GGML_Q8_0 = 0, 8


def ggml_library() -> Callable[..., Callable[..., Any]]:
    """The functions of the ggml library that comes with llama_cpp: by name, and the types of the result and the arguments."""
    folder = Path(next(iter(util.find_spec("llama_cpp").submodule_search_locations))) / "lib"  # type: ignore[union-attr,arg-type]
    libraries = [ctypes.CDLL(str(folder / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu")]

    def function(name: str, result: Any, *types: Any) -> Callable[..., Any]:
        found = next(getattr(library, name) for library in libraries if hasattr(library, name))
        found.restype, found.argtypes = result, types
        return found

    return function


def ggml(w: Tensor) -> Bind:
    """llama.cpp's Q8_0: blocks of 32 codes with a scale each, of W and of X; float32 in and out."""
    n, k = w.shape
    if k % 32:
        raise ValueError(f"Q8_0 has blocks of 32 columns, K is {k}")
    function = ggml_library()
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    start = function("ggml_init", pointer, Parameters)
    free = function("ggml_free", None, pointer)
    matrix = function("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, number, number)
    data = function("ggml_get_data", pointer, pointer)
    quantize = function("ggml_quantize_chunk", size, ctypes.c_int, pointer, pointer, number, number, number, pointer)
    wide = w.float().contiguous()
    codes = torch.empty(n * k // 32 * 34, dtype=torch.uint8)
    quantize(GGML_Q8_0, wide.data_ptr(), codes.data_ptr(), 0, n, k, None)

    def bind(x: Tensor) -> Call:
        x = x.float().contiguous()
        context = start(Parameters(codes.numel() + 4 * x.numel() + 4 * len(x) * n + (1 << 20), None, False))
        left, right = matrix(context, GGML_Q8_0, k, n), matrix(context, GGML_F32, k, len(x))
        ctypes.memmove(data(left), codes.data_ptr(), codes.numel())
        ctypes.memmove(data(right), x.data_ptr(), 4 * x.numel())
        y = function("ggml_mul_mat", pointer, pointer, pointer, pointer)(context, left, right)
        graph = function("ggml_new_graph", pointer, pointer)(context)
        function("ggml_build_forward_expand", None, pointer, pointer)(graph, y)
        plan = function("ggml_graph_plan", Plan, pointer, ctypes.c_int, pointer)(graph, torch.get_num_threads(), None)
        work = torch.empty(plan.size, dtype=torch.uint8)
        plan.work = work.data_ptr()
        compute = function("ggml_graph_compute", ctypes.c_int, pointer, ctypes.POINTER(Plan))
        result = torch.frombuffer((ctypes.c_float * (len(x) * n)).from_address(data(y)), dtype=torch.float32).view(len(x), n)

        def call(kept: Any = work) -> Tensor:
            if compute(graph, plan):
                raise RuntimeError("ggml_graph_compute failed")
            return result

        weakref.finalize(call, free, context)
        return call

    return bind
