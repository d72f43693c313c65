"""Small PTX programs by hand, for the tests of the emulator: what a few warps leave in memory, or the fault that they are stopped with."""

import numpy as np
import pytest

from emulator import Fault
from emulator.global_memory import Buffer, GlobalMemory
from emulator.machine import Machine
from emulator.memory import smallest_access
from emulator.parse import parse
from emulator.tensor_map import TensorMap

THREADS = 64
#: Where the given words and the results lie.
GIVEN, RESULT = 4096, 65536

#: %r1 is the thread's number, %r2 its given word, %rd4 and %rd5 where its given word and its result lie; %r5 its word of shared memory, %r7
#: that of the same lane of the other warp.
HEAD = """.version 8.7
.target {target}
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1,
	.param .u64 k_param_2
)
.reqntid {threads}
{{
	.reg .pred 	%p<99>;
	.reg .b16 	%rs<99>;
	.reg .b32 	%r<320>;
	.reg .b64 	%rd<99>;
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b64 	%rd2, [k_param_1];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	ld.global.b32 	%r2, [%rd4];
	shl.b32 	%r3, %r1, 2;
	mov.b32 	%r4, global_smem;
	add.s32 	%r5, %r4, %r3;
	xor.b32 	%r6, %r3, 128;
	add.s32 	%r7, %r4, %r6;
"""
STORE = "st.global.b32 [%rd5], %r9;"


def machine(
    body: str, given: np.ndarray, result: np.ndarray, threads: int = THREADS, seed: int = 0, shared: int = 4096,
    tensor_map: TensorMap | None = None, target: str = "sm_90a",
) -> Machine:  # fmt: skip
    """A program ready to run, with `given` at GIVEN and an unwritten `result` at RESULT; bodies may contain braces."""
    kernel = parse(HEAD.format(threads=threads, target=target) + body + "\nret;\n}\n")
    buffers = [
        Buffer(GIVEN, given.reshape(-1).view(np.uint8), np.ones(given.nbytes, bool)),
        Buffer(RESULT, result.reshape(-1).view(np.uint8), np.zeros(result.nbytes, bool)),
    ]
    memory = GlobalMemory(buffers, smallest_access(kernel, "global"))
    parameters = np.array([GIVEN, RESULT, 0], np.uint64).tobytes()
    return Machine(kernel, parameters, shared, memory, seed, {16: tensor_map} if tensor_map else None)


def run(
    body: str, given: np.ndarray | None = None, programs: int = 1, threads: int = THREADS, result: np.ndarray | None = None, **options
) -> np.ndarray:
    """What the threads leave in `result`, one word each by default; a thread's given word is its number by default."""
    given = np.arange(threads, dtype=np.uint32) if given is None else given.copy()
    result = np.zeros(threads, np.uint32) if result is None else result
    made = machine(body, given, result, threads, **options)
    made.run((programs, 1, 1))
    made.memory.copy_back()
    return result


def fault(body: str, **options) -> Fault:
    """The fault that the program is stopped with."""
    with pytest.raises(Fault) as raised:
        run(body, **options)
    return raised.value
