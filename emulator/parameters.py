"""How a launch's arguments become the bytes that a kernel reads: buffers, parameters, tensor maps, as Triton's launcher lays them.

Sources: PTX ISA 9.0, 5.1.6.1 "Kernel Function Parameters"; the launcher that Triton generates for a kernel.
"""

import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from .parse import Kernel, Unsupported
from .tensor_map import TensorMap

#: Types of a signature -> how Triton's launcher passes them.
PASSED: dict[str, type] = {
    "i1": np.int8, "u1": np.uint8, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16, "i32": np.int32, "u32": np.uint32,
    "i64": np.int64, "u64": np.uint64, "fp16": np.float16, "fp32": np.float32, "f32": np.float32, "fp64": np.float64,
}  # fmt: skip
#: A tensor map's swizzle, as the compiler numbers it -> bytes.
SWIZZLES = {0: 0, 1: 32, 2: 64, 3: 128}
#: The buffers of a launch are copied, and those that a program may not reach are not: no tensor is larger.
LARGEST = 1 << 31


def raw(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)) if size else np.zeros(0, np.uint8)


def storage_bytes(tensor: Any) -> int:
    return int(tensor.numel()) * int(tensor.element_size())


def span(value: Any) -> tuple[int, int] | None:
    """The bytes that a tensor's entries lie in; None for what is no tensor, or has no entries."""
    tensor = getattr(value, "base", value) if type(value).__name__ == "TensorDescriptor" else value
    if not hasattr(tensor, "data_ptr") or not tensor.numel():
        return None
    device = getattr(tensor, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        raise Unsupported(f"a tensor on {device}: the emulated GPU reads the memory of the CPU")
    entries = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    first = tensor.data_ptr()
    if entries * tensor.element_size() > LARGEST:
        raise Unsupported(
            f"a tensor that spans {entries * tensor.element_size()} bytes: the emulator copies buffers, up to {LARGEST} bytes"
        )
    return first, first + entries * tensor.element_size()


def merged(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of memory, those that overlap taken together."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first < found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def packed(kernel: Kernel, signature: list[Any], values: list[Any], metadata: Any) -> tuple[bytes, dict[int, TensorMap]]:
    """The bytes of the kernel's parameters as Triton's launcher lays them, and the tensor maps by their offsets in them."""
    passed: list[Any] = []
    metas = iter(getattr(metadata, "tensordesc_meta", None) or ())
    for kind, value in zip(signature, values, strict=True):
        if kind == "constexpr":
            continue
        if kind.startswith("tensordesc"):
            passed += _descriptor(value, next(metas, None), len(getattr(metadata, "tensordesc_meta", None) or ()) > 0)
        elif kind.startswith("*"):
            passed.append(np.uint64(0 if value is None else value if isinstance(value, int) else value.data_ptr()))
        elif kind == "bf16":
            passed.append(np.uint16(np.float32(value).view(np.uint32) >> np.uint32(16)))
        else:
            passed.append(PASSED[kind](value))
    missing = len(kernel.parameters) - len(passed)
    if metadata.global_scratch_size:
        raise Unsupported("kernels that need scratch memory (tl.make_tensor_descriptor)")
    if missing not in (0, 1, 2):
        raise Unsupported(f"{len(passed)} values for {len(kernel.parameters)} parameters of kernel {kernel.name}")
    passed += [np.uint64(0)] * missing  # Triton's scratch buffers
    data = bytearray(max((at + size for at, size in kernel.parameters.values()), default=0))
    maps: dict[int, TensorMap] = {}
    for value, (at, size) in zip(passed, kernel.parameters.values(), strict=True):
        if isinstance(value, TensorMap):
            maps[at] = value
            continue
        if value.nbytes != size:
            raise Unsupported(f"a value of {value.nbytes} bytes for a parameter of {size} bytes of kernel {kernel.name}")
        data[at : at + size] = value.tobytes()
    return bytes(data), maps


def _descriptor(value: Any, meta: Any, by_engine: bool) -> list[Any]:
    """What a tensor descriptor is passed as: a tensor map where the copy engine reads it, else its parts; sizes and strides after it."""
    shape = [np.int32(n) for n in value.shape] + [np.int64(s) for s in value.strides]
    if not by_engine:
        flags = [np.uint8(value.padding == "nan")] + ([np.uint8(value.round_f32_to_tf32)] if hasattr(value, "round_f32_to_tf32") else [])
        if not _two_flags():
            flags = flags[:1]
        return [np.uint64(value.base.data_ptr()), *(np.int64(n) for n in (*value.shape, *value.strides)), *flags, *shape]
    if meta["fp4_padded"] or getattr(value, "round_f32_to_tf32", False) or value.padding != "zero":
        raise Unsupported("a tensor descriptor with padding other than zeros, rounding, or 4-bit entries")
    size = value.base.element_size()
    strides = [int(s) * size for s in value.strides]
    box = [int(n) for n in meta["block_size"]]
    tensor_map = TensorMap(value.base.data_ptr(), [int(n) for n in value.shape], strides, size, box, SWIZZLES[meta["swizzle"]])
    return [tensor_map, *shape]


@cache
def _two_flags() -> bool:
    """Whether Triton passes a descriptor that was taken apart with two flags (3.7) or one (3.6)."""
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7)
