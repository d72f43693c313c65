"""Compiles every kernel for GPUs that are not here, and reads what came out: `python -m tests.tools.generated_code --table`.

Nothing is guessed about how a kernel is called: the real launchers run, on tensors without memory (device "meta"), with the
architecture looked up by hand and the launch itself replaced by a note of its arguments. Each note is specialized as Triton's
launcher would (what is 1, what is divisible by 16), compiled ahead of time, and taken apart with the assembler's own tools, which
the Triton wheel carries. Runs without TRITON_INTERPRET; the test starts it as a program of its own.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonTensorDescriptor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from fast import kernels
from fast.kernels import decode, expert_decoding, experts, hopper, outliers, product, quantization
from fast.weights import QuantizedWeight
from tests.tools import machine_code

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "i8", torch.uint8: "u8", torch.int32: "i32",
    torch.int64: "i64",
}  # fmt: skip
KERNELS = {
    k.__name__: k
    for k in (
        outliers.scan_columns, quantization.quantize_rows, product.product_kernel, hopper.hopper_product_kernel, decode.decode_kernel,
        experts.scan_experts, experts.quantize_experts, experts.multiply_experts, expert_decoding.decode_experts,
    )
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


#: Where an argument stands: its number, and in a record the numbers of the fields that lead to it.
Place = tuple[int, ...]


class Launch(NamedTuple):
    """One specialized kernel: what `triton.compile` needs, and what to call it."""

    arch: str
    case: str
    kernel: str
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[Place, Any], ...]
    divisible: tuple[Place, ...]
    options: tuple[tuple[str, Any], ...]

    def named_constants(self) -> dict[str, Any]:
        """The constants among the arguments themselves, not in their fields."""
        return {self.signature[place[0]][0]: value for place, value in self.constants if len(place) == 1}


#: (M, N, K) that together reach every row of every table.
SHAPES = {
    "large": (4096, 8192, 8192),
    "medium": (512, 4096, 4096),
    "small": (200, 8192, 2048),
    "smaller": (100, 8192, 2048),
    "few": (48, 8192, 16384),
    "fewer": (24, 8192, 32768),
    "decode": (16, 8192, 8192),
    "decode narrow": (8, 4096, 4096),
    "decode narrowest": (4, 2048, 2048),
    "one row": (1, 8192, 8192),
    "one row narrow": (1, 2048, 2048),
}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and calls that together reach every row of every table, and every flag of every kernel."""
    for name, (m, n, k) in SHAPES.items():
        yield f"{name}, absmax", partial(linear, m, n, k)
        yield f"{name}, threshold None", partial(linear, m, n, k, threshold=None)
        yield f"{name}, absmax, float weight", partial(linear, m, n, k, torch.bfloat16, float_weight=torch.bfloat16)
        yield f"{name}, zeropoint", partial(linear, m, n, k, zeropoint=True)
    for m in (2, 4, 8):
        yield f"decode {m}, absmax", partial(linear, m, 8192, 8192)
    yield "float32", lambda: linear(4096, 8192, 8192, torch.float32)
    yield "float32, zeropoint, one scale", lambda: linear(4096, 8192, 8192, torch.float32, zeropoint=True, per_row=False)
    yield "float32 weight", lambda: linear(4096, 8192, 8192, torch.bfloat16, float_weight=torch.float32)
    yield "one scale", lambda: linear(4096, 8192, 8192, per_row=False)
    yield "64-bit correction", lambda: linear(4096, 8192, 53248, zeropoint=True)
    yield "decode, 64-bit correction", lambda: linear(8, 8192, 53248, zeropoint=True)
    yield "decode, one scale", lambda: linear(8, 8192, 8192, zeropoint=True, per_row=False)
    yield "ragged", lambda: linear(1001, 4097, 4099)
    yield "decode ragged", lambda: linear(3, 4097, 4099)
    yield "int8_matmul", lambda: product.int8_matmul(meta((4096, 8192), torch.int8), meta((8192, 8192), torch.int8))
    for name, call in gluon_cases():
        yield f"gluon, {name}", partial(in_gluon, call)
    yield "quantize a tensor", lambda: quantization.quantize(meta((8192, 8192), torch.float16), False, "zeropoint")
    yield "quantize rows", lambda: quantization.quantize(meta((8192, 8192), torch.float32), True, "zeropoint")
    yield from expert_cases()


#: (rows of X, experts, N, K) that together reach every row of every table of products: rows per expert on average decide.
ROUTED = {
    "few": (1024, 128, 1536, 2048),
    "some": (8192, 128, 1536, 2048),
    "more": (32768, 128, 1536, 2048),
    "many": (32768, 8, 14336, 4096),
}


def expert_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and calls that together reach every flag of the kernels of experts, and every row of the tables that they use."""
    for name, (p, e, n, k) in ROUTED.items():
        yield f"experts, {name}", partial(routed, p, e, n, k)
        yield f"experts, {name}, threshold None", partial(routed, p, e, n, k, threshold=None)
    yield "experts, bfloat16", lambda: routed(1024, 128, 2048, 768, torch.bfloat16)
    yield "experts, float32", lambda: routed(1024, 128, 1536, 2048, torch.float32)
    yield "experts, long rows", lambda: routed(1024, 8, 4096, 28672)
    yield "experts, ragged", lambda: routed(1001, 7, 1537, 2049)
    for tokens in (1, 2, 4, 8, 16):
        yield f"experts, {tokens} tokens", partial(chosen, tokens, 128, 1536, 2048, 8)
        yield f"experts, {tokens} tokens by pair", partial(chosen, tokens, 128, 2048, 768, 8, torch.bfloat16, by_pair=True)
        yield f"experts, {tokens} tokens of Mixtral", partial(chosen, tokens, 8, 28672, 4096, 2)
    yield "experts, 1 tokens, narrow", lambda: chosen(1, 8, 768, 2048, 2)
    yield "experts, 4 tokens, narrow", lambda: chosen(4, 2, 1024, 2048, 1)
    yield "experts, 16 tokens, threshold None", lambda: chosen(16, 128, 1536, 2048, 8, threshold=None)
    yield "experts, 5 tokens, ragged", lambda: chosen(5, 7, 1537, 2049, 3)


def routed(p: int, e: int, n: int, k: int, dtype: torch.dtype = torch.float16, threshold: float | None = 6.0) -> torch.Tensor:
    """One projection of `e` experts, of rows sorted by expert."""
    codes, absmax, bias = meta((e, n, k), torch.int8), meta((e, n, 1), torch.float32), meta((e, n), dtype)
    return kernels.experts_linear(meta((p, k), dtype), codes, absmax, bias, meta((e,), torch.int64), threshold)


def chosen(
    tokens: int, e: int, n: int, k: int, choices: int, dtype: torch.dtype = torch.float16, by_pair: bool = False,
    threshold: float | None = 6.0,
) -> torch.Tensor:  # fmt: skip
    """One projection of few tokens, in one launch."""
    codes, absmax, bias = meta((e, n, k), torch.int8), meta((e, n, 1), torch.float32), meta((e, n), dtype)
    x = meta((tokens * choices if by_pair else tokens, k), dtype)
    return kernels.experts_decode(x, codes, absmax, bias, meta((tokens, choices), torch.int64), by_pair, threshold)


def gluon_cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and calls that together reach every flag of the kernel in Gluon, and every row of the table that it can take."""
    m, n, k = SHAPES["large"]
    for name in ("large", "medium", "few"):
        yield f"{name}, absmax", partial(linear, *SHAPES[name])
        yield f"{name}, zeropoint", partial(linear, *SHAPES[name], zeropoint=True)
    yield "large, threshold None", partial(linear, m, n, k, threshold=None)
    yield "large, zeropoint, threshold None", partial(linear, m, n, k, threshold=None, zeropoint=True)
    for dtype in (torch.float16, torch.bfloat16):
        yield f"large, float weight, {dtype}".replace("torch.", ""), partial(linear, m, n, k, dtype, float_weight=dtype)
    yield "large, one scale", partial(linear, m, n, k, per_row=False)
    yield "int8_matmul", lambda: product.int8_matmul(meta((m, k), torch.int8), meta((n, k), torch.int8))


def in_gluon(call: Callable[[], Any]) -> None:
    """A call whose product the kernel in Gluon computes, where there is one."""
    with warnings.catch_warnings(), kernels.gluon():
        warnings.simplefilter("error")
        call()


#: Every row of every table once, without and with outliers: what the suite compiles on every run.
QUICK = (
    *(f"{name}, absmax" for name in SHAPES), "large, threshold None", "float32", "decode ragged", "gluon, large, absmax",
    "gluon, large, zeropoint", "gluon, int8_matmul", *(f"experts, {name}" for name in ROUTED), "experts, float32", "experts, ragged",
    "experts, 1 tokens", "experts, 1 tokens, narrow", "experts, 4 tokens, narrow", "experts, 16 tokens", "experts, 16 tokens of Mixtral",
    "experts, 5 tokens, ragged",
)  # fmt: skip


def meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def linear(
    m: int, n: int, k: int, dtype: torch.dtype = torch.float16, threshold: float | None = 6.0, zeropoint: bool = False,
    per_row: bool = True, float_weight: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    scale = (n, 1) if per_row else (1, 1)
    weight = QuantizedWeight(
        meta((n, k), torch.int8),
        None if zeropoint else meta(scale, torch.float32),
        meta(scale, torch.float32) if zeropoint else None,
        meta(scale, torch.int32) if zeropoint else None,
        None if float_weight is None else meta((n, k), float_weight),
    )
    return kernels.linear(meta((m, k), dtype), weight, meta((n,), dtype), threshold, per_row)


def launches(arch: str, wanted: Container[str] | None = None) -> list[Launch]:
    """Every kernel that the cases launch on `arch` (those in `wanted`, or all), each specialization once."""
    noted: dict[tuple, Launch] = {}
    case = ""

    def note(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = tuple((key, kwargs.pop(key)) for key in OPTIONS if key in kwargs)
        launch = specialize(arch, case, kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, options)
        noted.setdefault(launch[2:], launch)

    modules = (outliers, quantization, product, decode, experts, expert_decoding)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(JITFunction, "run", note))
        patches.enter_context(mock.patch.object(torch.version, "hip", "there" if arch == "gfx942" else None))
        for module in modules:
            patches.enter_context(mock.patch.object(module, "architecture", return_value=arch))
        for case, call in cases():
            if wanted is None or case in wanted:
                call()
    return list(noted.values())


def specialize(arch: str, case: str, kernel: JITFunction, args: dict[str, Any], options: tuple) -> Launch:
    """As Triton's launcher does: 1 and None become constants, divisibility by 16 is known, and so for each field of a record."""
    constants: dict[Place, Any] = {}
    divisible: list[Place] = []

    def kind(value: Any, place: Place) -> Any:
        if isinstance(value, tuple):
            return type(value)(*(kind(field, (*place, i)) for i, field in enumerate(value)))  # type: ignore[call-arg]
        if value is None or (type(value) is int and value == 1) or kernel.params[place[0]].is_constexpr:
            constants[place] = value
            return "constexpr"
        if isinstance(value, torch.Tensor):
            divisible.append(place)  # allocations are
            return f"*{POINTERS[value.dtype]}"
        if isinstance(value, TensorDescriptor | GluonTensorDescriptor):
            layout = f",{value.layout!r}" if isinstance(value, GluonTensorDescriptor) else ""
            return f"tensordesc<{POINTERS[value.base.dtype]}{list(value.block_shape)}{layout}>"
        if isinstance(value, float):
            return "fp32"
        if value % 16 == 0:
            divisible.append(place)
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    signature = tuple((parameter.name, kind(args[parameter.name], (i,))) for i, parameter in enumerate(kernel.params))
    return Launch(arch, case, kernel.__name__, signature, tuple(constants.items()), tuple(divisible), options)


def flat(name: str, kind: Any) -> dict[str, str]:
    """The kinds of an argument's fields, by names like "w_side.codes.pointer"."""
    if not isinstance(kind, tuple):
        return {name: kind}
    fields = zip(kind._fields, kind, strict=True)  # type: ignore[attr-defined]
    return {inner: value for field, own in fields for inner, value in flat(f"{name}.{field}", own).items()}


def compiled(launch: Launch) -> dict[str, Any]:
    """Compiles one launch; returns what the machine code says."""
    divisible = {place: [["tt.divisibility", 16]] for place in launch.divisible}
    kernel = KERNELS[launch.kernel]
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(kernel, dict(launch.signature), dict(launch.constants), divisible)
    built = triton.compile(source, target=TARGETS[launch.arch], options=dict(launch.options))
    if launch.arch != "gfx942":
        unpack(dict(enumerate(kind for _, kind in launch.signature)), built.metadata.tensordesc_meta)
    constants = {k: v for k, v in launch.named_constants().items() if isinstance(v, int | bool)}
    signature = {inner: value for name, kind in launch.signature for inner, value in flat(name, kind).items()}
    facts = {"arch": launch.arch, "case": launch.case, "kernel": launch.kernel, "shared": built.metadata.shared}
    facts |= {"signature": signature, "constants": constants, "options": dict(launch.options)}
    return facts | (read_amd(built.asm["amdgcn"]) if launch.arch == "gfx942" else read_nvidia(built.asm["cubin"]))


def unpack(signature: dict[int, Any], tensor_maps: Any) -> None:
    """Lets Triton's launcher take the arguments of a kernel apart; it raises where it does not find every tensor descriptor."""
    if hasattr(driver, "expand_signature"):
        driver.expand_signature(signature.values(), tensor_maps)
    else:  # Triton 3.6
        driver.make_launcher({}, signature, tensor_maps)


def read_nvidia(cubin: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage, code = (
            subprocess.run([NVIDIA_TOOLS / "cuobjdump", option, file], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    lines = machine_code.lines(code)
    matrix_loops = [loop for loop in machine_code.loops(lines) if any("GMMA" in line.opcode for line in loop)]
    return {
        "registers": registers,
        "stack": stack + local,
        "instructions": Counter(line.opcode for line in lines),
        # Of each loop with matrix instructions: these, and the waits for them by how many groups of them they leave in flight.
        "matrix_loops": [
            Counter(line.text if "DEPBAR" in line.opcode else line.opcode for line in loop if re.search("GMMA|GROUP.DEPBAR", line.opcode))
            for loop in matrix_loops
        ],
        "after_the_wait": [after_the_wait(loop) for loop in matrix_loops if any("IGMMA" in line.opcode for line in loop)],
        # The sum that rounds to an integer, by its constant 1.5 * 2**23: as a sum, and as part of a fused multiply-add.
        "rounding_sums": sum(line.text.startswith("FADD") and "12582912" in line.text for line in lines),
        "fused_rounding": sum(line.text.startswith("FFMA") and "12582912" in line.text for line in lines),
    }


def after_the_wait(loop: list[machine_code.Line]) -> tuple[int, int]:
    """Of a loop over K: the instructions from its wait for matrix instructions to the next of them, and the barriers among these."""
    found = machine_code.between(loop, "GROUP.DEPBAR", "IGMMA")
    return len(found), sum(line.opcode.startswith("BAR") for line in found)


def read_amd(code: str) -> dict[str, Any]:
    registers, spilled, private = (
        int(re.search(rf"\.{name}:\s+(\d+)", code)[1])  # type: ignore[index]
        for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    )
    return {
        "registers": registers,
        "stack": spilled + private,
        "instructions": Counter(re.findall(r"^\s+([a-z]+_[a-z0-9_]+)", code, re.MULTILINE)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", action="append", choices=TARGETS, help="only this architecture (repeatable)")
    parser.add_argument("--table", action="store_true", help="a table for people; otherwise one JSON object a line")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="only the cases that the suite compiles on every run")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")

    found = [launch for arch in arguments.arch or TARGETS for launch in launches(arch, QUICK if arguments.quick else None)]
    work = [launch for launch in found if arguments.case in launch.case]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for facts in pool.map(compiled, work):
            print(row(facts) if arguments.table else json.dumps(facts), flush=True)


def row(facts: dict[str, Any]) -> str:
    block = "x".join(str(v) for k, v in facts["constants"].items() if k.startswith(("BLOCK", "ROWS")) and k != "BLOCK_OWN")
    after = "".join(f"  {count} instructions, {barriers} barriers after its wait" for count, barriers in facts.get("after_the_wait", ()))
    matrix = ", ".join(sorted({name for name in facts["instructions"] if re.search("^(?!HFMA2).*MMA|mfma", name)}))
    warps = facts["options"]["num_warps"]
    stages = facts["options"].get("num_stages", facts["constants"].get("STAGES"))
    return (
        f"{facts['arch']:7} {facts['kernel']:21} {facts['case']:32} {block:15} {warps:2} warps {stages} stages "
        f"{facts['registers']:3} registers {facts['stack']:4} spilled {facts['shared']:6} B shared  {matrix}{after}"
    )


if __name__ == "__main__":
    main()
