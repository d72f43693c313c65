"""native.c in a process of its own: for processors that this machine has not, and with sanitizers.

`Driven` stands in for the library that `fast.cpu.native.Native` calls: it sends each call to tests/native_driver.c.
"""

import ctypes
import functools
import hashlib
import platform
import shutil
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from fast.cpu import build, engine
from fast.cpu.native import CALL, DTYPES, EXPERTS, INT8, Native

SOURCE = Path(__file__).with_name("native_driver.c")
SIZES = {**dict.fromkeys(DTYPES.values(), 2), 0: 4, INT8: 1}
#: With -O3 the compiler takes several times as long over them.
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class Driven:
    """The functions of the library with the instructions `name`, each call sent to a process, which is started by the first of them.

    start: gives the command, once what it runs has been compiled.
    """

    def __init__(self, name: str, start: Callable[[], list[str]]) -> None:
        self._name, self._start = name, start
        # Functions of their own, since Native declares their types on them.
        self.llm_int8_instructions = lambda: name.encode()
        self.llm_int8_prepare = lambda: 0  # the process does it
        self.llm_int8_call_size = lambda: CALL.size
        self.llm_int8_experts_size = lambda: EXPERTS.size
        for number, function in enumerate(("linear", "quantize", "outlier_columns", "matmul")):
            setattr(self, f"llm_int8_{function}", functools.partial(self._call, number))
        self.llm_int8_experts = functools.partial(self._call_of_experts)

    @functools.cached_property
    def _process(self) -> subprocess.Popen:
        process = subprocess.Popen(self._start(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        weakref.finalize(self, ended, process)
        assert process.stdout is not None
        name, size = struct.unpack("32sq", process.stdout.read(40))
        assert (name.rstrip(b"\0").decode(), size) == (self._name, CALL.size)
        return process

    def kill(self) -> None:
        """Ends the process, also one that does not end by itself."""
        self._process.kill()

    def _call_of_experts(self, packed: bytes) -> int:
        ends_at, experts = EXPERTS.unpack(packed)[-2:]
        return self._call(4, packed[: CALL.size], experts, ctypes.string_at(ends_at, 8 * experts))

    def _call(self, function: int, packed: bytes, experts: int = 1, ends: bytes = b"") -> int:
        fields = CALL.unpack(packed)
        addresses, sizes = fields[:13], sizes_of(fields, experts)
        call = CALL.pack(*[0] * 13, *fields[13:])
        message = struct.pack("15q", function, *sizes, len(ends)) + call + ends
        message += b"".join(ctypes.string_at(address, size) for address, size in zip(addresses[:7], sizes, strict=False) if size > 0)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        (result,) = struct.unpack("q", self._receive(8))
        for address, size in zip(addresses[7:12], sizes[7:12], strict=True):
            if size > 0:
                ctypes.memmove(address, self._receive(size), size)
        return result

    def _receive(self, size: int) -> bytes:
        assert self._process.stdout is not None
        received = self._process.stdout.read(size)
        if len(received) < size:
            self._fail()
        return received

    def _fail(self) -> None:
        assert self._process.stderr is not None
        raise AssertionError(f"the driver ended: {self._process.stderr.read().decode(errors='replace')[-4000:]}")


def ended(process: subprocess.Popen) -> None:
    """Ends a driver: it has no more calls to read."""
    process.communicate()


def sizes_of(fields: tuple, experts: int) -> list[int]:
    """Bytes of the array behind each address, -1 for none; what belongs to a weight is there for each of some experts."""
    m, k, n, x_stride, codes_stride, float_stride = fields[13:19]
    x_dtype, float_dtype, bias_dtype, per_row, per_weight_row = fields[20:25]

    def rows(count: int, stride: int, size: int) -> int:
        return size * ((count - 1) * stride + k) if count and k else 0

    slices, x_slices = experts * n if per_weight_row else 1, m if per_row else 1
    y = 4 if x_dtype == INT8 else SIZES[x_dtype]
    sizes = [rows(m, x_stride, SIZES[x_dtype]), rows(experts * n, codes_stride, 1), 4 * slices, 4 * slices, 4 * slices]
    sizes += [
        rows(n, float_stride, SIZES.get(float_dtype, 0)),
        experts * n * SIZES[bias_dtype],
        m * n * y,
        m * k,
        4 * x_slices,
        4 * x_slices,
        k,
        0,
    ]
    # An empty tensor has no address, but is there.
    return [size if address or (size == 0 and i in (0, 1, 7)) else -1 for i, (size, address) in enumerate(zip(sizes, fields, strict=False))]


def compiled(compiler: str, name: str, extra: tuple[str, ...]) -> Path:
    """The driver with a set of instructions, compiled once: kept where the library is.

    Raises:
        CalledProcessError: the compiler cannot.
    """
    flags = (*(flag for flag in build.FLAGS if flag not in ("-fPIC", "-shared")), *engine.INSTRUCTIONS[name].flags, *extra)
    parts = [repr((compiler, flags)).encode(), *(path.read_bytes() for path in (SOURCE, *build.sources()))]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
    made = build.cache_folder() / f"driver-{name}-{key}"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            private = Path(folder) / "driver"
            subprocess.run([compiler, *flags, str(SOURCE), "-o", str(private), "-lm"], check=True)
            private.replace(made)
    return made


def emulated() -> Native | None:
    """The engine with ARM's instructions, run by qemu; None where there is no compiler for ARM, or no qemu."""
    compiler, qemu = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not compiler or not qemu or platform.machine() == "aarch64":
        return None
    name = "neon_dotprod"
    return Native(Driven(name, lambda: [qemu, "-cpu", "max", str(compiled(compiler, name, ("-static",)))]))  # type: ignore[arg-type]


def sanitized(name: str) -> Native:
    """The engine with a set of instructions, compiled with sanitizers."""
    return Native(Driven(name, lambda: [str(compiled(build.find_compiler(), name, SANITIZERS))]))  # type: ignore[arg-type]
