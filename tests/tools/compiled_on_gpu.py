"""The compiled kernels on a GPU and in the emulator, on the same inputs: whatever differs is a finding about one of the two.

    python -m tests.tools.compiled_on_gpu                          all cases of this GPU's architecture
    python -m tests.tools.compiled_on_gpu --case decode --out day/compiled-cuda.json --resume
    python -m tests.tools.compiled_on_gpu --rehearse               without a GPU: the second side is the emulator once more, another seed

Each case of tests/compiled_cases.py runs in the emulator, where every launch is noted with the bytes that its tensors had before and have
after it. The same launch is then made on the GPU from the bytes before, and the bytes after it are compared. Integers must be equal. Of
floats the record says how many differ and by how many units in the last place: the matrix unit may cut off sums that the emulator rounds.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch

from experiments import command, machine, records
from experiments.command import InputError
from experiments.journal import Journal

#: The architecture that a rehearsal compiles for, and the beginnings of the names of its cases.
REHEARSED, REHEARSED_CASES = "sm_90", ("quantize, one scale, absmax", "decode, one row, absmax")
INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


class Noted(NamedTuple):
    """One launch. before, after: the bytes of each storage by its address."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    before: dict[int, torch.Tensor]
    after: dict[int, torch.Tensor]


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all tensors in an argument: itself, of a record or tuple, or under a tensor descriptor."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, tuple):
        names = getattr(value, "_fields", range(len(value)))
        for field, inner in zip(names, value, strict=True):
            yield from tensors(inner, f"{name}.{field}")
    elif hasattr(value, "base") and isinstance(value.base, torch.Tensor):
        yield name, value.base


def storages(values: Sequence[Any]) -> dict[int, torch.Tensor]:
    """The bytes of each storage that the arguments' tensors lie in, copied, by its address."""
    found = {}
    for value in values:
        for _, tensor in tensors(value):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = torch.tensor([], dtype=torch.uint8).set_(storage).clone()
    return found


def moved(value: Any, held: dict[int, torch.Tensor]) -> Any:
    """The same argument, its tensors in other storages."""
    if isinstance(value, torch.Tensor):
        to = held[value.untyped_storage().data_ptr()]
        made = torch.empty(0, dtype=value.dtype, device=to.device)
        return made.set_(to.untyped_storage(), value.storage_offset(), value.size(), value.stride())
    if isinstance(value, tuple):
        inner = [moved(one, held) for one in value]
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    if hasattr(value, "base") and isinstance(value.base, torch.Tensor):
        return type(value)(moved(value.base, held), value.shape, value.strides, value.block_shape)
    return value


def noted(arch: str, call: Callable[[], None]) -> list[Noted]:
    """The launches of a case, run in the emulator and checked there against the reference."""
    from triton.runtime.jit import JITFunction

    import emulator
    import fast
    from tests.comparison import poisoned

    found: list[Noted] = []
    original = JITFunction.run

    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        values = (*arguments, *options.values())
        before = storages(values)
        result = original(self, *arguments, **options)
        found.append(Noted(self, arguments, options, before, storages(values)))
        return result

    with emulator.gpu(arch), fast.backend("triton"), poisoned(), mock.patch.object(JITFunction, "run", run):
        call()
    return found


def difference(expected: torch.Tensor, got: torch.Tensor) -> tuple[int, int]:
    """(entries that differ, by how many units in the last place at most); of integers the units are steps."""
    if expected.dtype in INTEGERS:
        as_integer = INTEGERS[expected.dtype]
        lowest = torch.iinfo(as_integer).min
        # Floats in the order of integers: the negative ones count down.
        wide = [x.contiguous().view(as_integer).long() for x in (expected, got)]
        ordered = [torch.where(x < 0, lowest - x, x) for x in wide]
        apart = (ordered[0] - ordered[1]).abs()
        apart[expected.isnan() & got.isnan()] = 0
    else:
        apart = (expected.long() - got.long()).abs()
    return int((apart != 0).sum()), int(apart.max()) if apart.numel() else 0


def compared(name: str, launches: list[Noted], elsewhere: Callable[[], Any], device: str) -> dict[str, Any]:
    """Makes the launches on the other side; the row of the record."""
    row: dict[str, Any] = {"case": name, "kernels": [n.function.__name__ for n in launches], "entries": 0, "differences": {}, "wrong": {}}
    for number, launch in enumerate(launches):
        held = {place: data.to(device) for place, data in launch.before.items()}
        arguments = tuple(moved(value, held) for value in launch.arguments)
        options = {key: moved(value, held) for key, value in launch.options.items()}
        with elsewhere():
            launch.function.run(*arguments, **options)
            if device == "cuda":
                torch.cuda.synchronize()
        after = {place: data.cpu() for place, data in held.items()}
        given = dict(zip(launch.function.arg_names, launch.arguments, strict=False)) | launch.options
        for argument, value in given.items():
            for field, tensor in tensors(value, argument):
                expected, got = (moved(tensor, side) for side in (launch.after, after))
                row["entries"] += expected.numel()
                count, most = difference(expected, got)
                if count:
                    kind, unit = ("differences", " units in the last place") if tensor.is_floating_point() else ("wrong", "")
                    where = f"launch {number}, {launch.function.__name__}, {field}"
                    row[kind][where] = f"{count} of {expected.numel()} entries, by up to {most}{unit}"
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.compiled_on_gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--resume", action="store_true", help="go on with the record that is there")
    parser.add_argument("--rehearse", action="store_true", help="a few cases against the emulator itself, another seed")
    parser.add_argument("--out", metavar="FILE.json", help="the record (default experiments/results/compiled-cuda.json)")
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # which a rehearsal of the whole day sets, and which would replace the compiler
    import emulator
    from fast.kernels import configurations

    if not options.rehearse and not torch.cuda.is_available():
        raise InputError("PyTorch finds no CUDA GPU here; --rehearse compares the emulator with itself")
    arch = REHEARSED if options.rehearse else configurations.architecture(torch.device("cuda", torch.cuda.current_device()))
    os.environ["EMULATE"] = arch
    from tests import compiled_cases

    if arch not in compiled_cases.ARCHITECTURES:
        raise InputError(f"there are cases for {', '.join(compiled_cases.ARCHITECTURES)}, this is {arch}")
    cases = {name: call for name, call in compiled_cases.cases(arch).items() if options.case in name}
    if options.rehearse:
        cases = {name: call for name, call in cases.items() if name.startswith(REHEARSED_CASES)}
    if not cases:
        raise InputError(f"--case {options.case}: no case has that in its name")
    path, heading = records.output_path(options.out, "compiled-cuda"), machine.heading("compiled", {"arch": arch})
    journal = Journal(path, heading, lambda row: row["case"], options.resume, same=("arch",), alive=machine.alive)
    journal.pending(list(cases))
    device = "cpu" if options.rehearse else "cuda"
    elsewhere: Callable[[], Any] = (lambda: emulator.gpu(arch, seed=1)) if options.rehearse else nullcontext
    for name, call in cases.items():
        journal.measure(name, lambda name=name, call=call: compared(name, noted(arch, call), elsewhere, device))  # type: ignore[misc]
    for row in journal.record["rows"]:
        for what, text in (row["differences"] | row["wrong"]).items():
            print(f"{row['case']}, {what}: {text}")
    print(f"{len(journal.record['rows'])} cases compared; wrote {path}")
    raise SystemExit(journal.status)


if __name__ == "__main__":
    command.run_command(main)
