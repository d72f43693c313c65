"""What the compiler made of two kernels of the chapters, as the theatre's page "Look inside" shows it.

python -m tutorials.inside          writes docs/theatre/inside.json

Triton compiles `quantize_rows` and `scaled_product` for sm_80, and the emulator runs one program of each and writes down every access.
Nothing in the record is drawn by hand: which thread holds which entry follows from addresses, and from products whose value says which
entry of the tile they are.
"""

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from . import chapter_kernels

OUT = Path(__file__).parents[1] / "docs" / "theatre" / "inside.json"
ARCH = "sm_80"
#: Entries of the row, and sides and blocks of the tile: K is four blocks long, of which two fit into shared memory.
ROW, TILE, BLOCK_K, K = 512, 64, 64, 256
#: Bytes that one asynchronous copy of a thread brings, and that one row of an 8 x 8 matrix of ldmatrix has.
CHUNK = 16
#: Lines of the kernel's file above its source.
ABOVE = 4


def kernel(name: str, folder: Path) -> Any:
    """A kernel of a chapter, compiled by Triton: it reads its source from a file."""
    path = folder / f"{name}.py"
    path.write_text("import triton\nimport triton.language as tl\n\n\n" + chapter_kernels.every()[name].text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def traced(function: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> list[Any]:
    """What the first program of a launch did, moment by moment."""
    from emulator.counters import PlainGlobalMemory
    from emulator.launch import gpu
    from emulator.tracing import TracingMachine

    with gpu(ARCH, programs=[0], allocators=(), make=TracingMachine, memory=PlainGlobalMemory) as device:
        function[grid](*arguments, **options)
    machine = device.launches[-1].machine
    assert isinstance(machine, TracingMachine)
    return machine.moments


def line_of(moment: Any, name: str) -> int | None:
    """The line in the kernel's source; None for code of Triton's library that the kernel calls."""
    inside = moment.file is not None and Path(moment.file).stem == name
    return moment.line - ABOVE if inside else None


# ---- One row ------------------------------------------------------------------------------------------------------------------


def row(folder: Path) -> dict[str, Any]:
    """`quantize_rows` on a row of 512 entries, with 128 threads."""
    import torch

    x = torch.randn(1, ROW, generator=torch.Generator().manual_seed(0))
    codes, scale = torch.zeros(1, ROW, dtype=torch.int8), torch.zeros(1)
    moments = traced(kernel("quantize_rows", folder), (1,), x, codes, scale, ROW, ROW, BLOCK_K=ROW, num_warps=4, enable_fp_fusion=False)
    places = {"x": x, "codes": codes, "scale": scale}
    steps = [_row_step(moment, places) for moment in moments]
    source = chapter_kernels.every()["quantize_rows"]
    return {"source": source.text.rstrip("\n").split("\n"), "chapter": source.chapter, "entries": ROW, "threads": 128, "steps": steps}


def _row_step(moment: Any, places: dict[str, Any]) -> dict[str, Any]:
    from emulator.machine import SHARED_BASE

    name, *modifiers = moment.opcode.split(".")
    step: dict[str, Any] = {"opcode": moment.opcode, "line": line_of(moment, "quantize_rows"), "threads": moment.threads.tolist()}
    if name == "shfl":
        return step | {"kind": "exchange", "distance": moment.operand}
    if "global" in modifiers:
        buffer, tensor = _held(places, moment.addresses["global"])
        first = (moment.addresses["global"] - tensor.data_ptr()) // tensor.element_size()
        kind = "load" if name == "ld" else "store"
        return step | {"kind": kind, "buffer": buffer, "first": first.tolist(), "count": moment.width // tensor.element_size()}
    words = (moment.addresses["shared"] - SHARED_BASE) // 4
    return step | {"kind": "publish" if name == "st" else "collect", "words": words.tolist()}


def _held(places: dict[str, Any], addresses: np.ndarray) -> tuple[str, Any]:
    """(name, tensor) of the buffer that the addresses lie in."""
    for name, tensor in places.items():
        if tensor.data_ptr() <= addresses[0] < tensor.data_ptr() + tensor.numel() * tensor.element_size():
            return name, tensor
    raise LookupError(f"no buffer has the address {addresses[0]}")


# ---- One tile -----------------------------------------------------------------------------------------------------------------


def tile(folder: Path) -> dict[str, Any]:
    """`scaled_product` on a tile of 64 x 64 with K = 256 in four blocks, and 128 threads.

    Row m of a is (m, 1, 0, ...), row n of b (64, n, 0, ...): each product is 64 m + n, which says where in the tile it belongs.
    """
    import torch

    a, b = torch.zeros(TILE, K, dtype=torch.int8), torch.zeros(TILE, K, dtype=torch.int8)
    a[:, 0], a[:, 1], b[:, 0], b[:, 1] = torch.arange(TILE), 1, TILE, torch.arange(TILE)
    y, ones = torch.zeros(TILE, TILE), torch.ones(TILE)
    sizes = TILE, TILE, K, K, K
    function = kernel("scaled_product", folder)
    moments = traced(function, (1, 1), a, b, y, ones, ones.clone(), *sizes, BLOCK=TILE, BLOCK_K=BLOCK_K, num_warps=4, num_stages=3)
    if not np.array_equal(y.numpy().ravel(), np.arange(TILE * TILE)):
        raise ValueError("the traced program computed something else")
    source = chapter_kernels.every()["scaled_product"]
    steps = list(_tile_steps(moments, {"a": a, "b": b}))
    return {
        "source": source.text.rstrip("\n").split("\n"),
        "chapter": source.chapter,
        "side": TILE,
        "chunks": 2 * 2 * TILE * BLOCK_K // CHUNK,
        "owners": _owners(moments),
        "steps": steps,
    }


def _owners(moments: list[Any]) -> list[int]:
    """Of each entry of the tile, row by row, the thread that holds its accumulator."""
    found = np.full(TILE * TILE, -1)
    for moment in moments:
        for register in moment.results:
            found[register.view(np.int32)] = moment.threads
    if (found < 0).any() or (np.bincount(found) != TILE * TILE // 128).any():
        raise ValueError("the accumulators do not cover the tile")
    return found.tolist()


def _tile_steps(moments: list[Any], places: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The moments, those of one kind that follow each other taken together."""
    held: dict[int, tuple[str, int, int]] = {}  # chunk of shared memory -> operand, row and chunk of K that it is going to hold
    pending: list[list[int]] = [[]]  # groups of copies on their way, the open one last
    for (kind, line), run in groupby(moments, lambda m: (_kind(m.opcode), line_of(m, "scaled_product"))):
        every = list(run)
        step: dict[str, Any] = {"kind": kind, "line": line, "opcode": every[0].opcode, "count": len(every)}
        if kind == "copy":
            step |= _copied(every, places, held)
            pending[-1] += step.get("chunks", [])
        elif kind == "commit":
            pending.append([])
        elif kind == "wait":
            arrived = pending[: len(pending) - 1 - every[0].operand]
            del pending[: len(arrived)]
            step["chunks"] = [chunk for group in arrived for chunk in group]
        elif kind == "read":
            step |= _read(every, held)
        elif kind in ("exchange", "store", "load"):
            step["bytes"] = sum(len(moment.threads) * moment.width for moment in every)
        yield step


def _kind(opcode: str) -> str:
    names = {"cp.async.commit": "commit", "cp.async.wait": "wait", "cp.async": "copy", "ldmatrix": "read", "mma": "multiply"}
    names |= {"ld.global": "load", "st.global": "store", "ld.shared": "exchange", "st.shared": "exchange"}
    return next(kind for beginning, kind in names.items() if opcode.startswith(beginning))


def _copied(moments: list[Any], places: dict[str, Any], held: dict[int, tuple[str, int, int]]) -> dict[str, Any]:
    """Where the chunks go, and what they are: (operand, row, chunk of K). Nothing where every thread is masked."""
    if not any(moment.fetched.any() for moment in moments):
        return {"bytes": 0}
    chunks, rows, columns = [], [], []
    name = ""
    for moment in moments:
        name, tensor = _held(places, moment.addresses["global"])
        to = _chunks(moment)
        source = moment.addresses["global"] - tensor.data_ptr()
        for chunk, offset in zip(to.tolist(), source.tolist(), strict=True):
            held[chunk] = name, offset // K, offset % K // CHUNK
        chunks += to.tolist()
        rows += (source // K).tolist()
        columns += (source % K // CHUNK).tolist()
    size = sum(int(moment.fetched.sum()) for moment in moments)
    return {"bytes": size, "operand": name, "chunks": chunks, "rows": rows, "columns": columns, "block": columns[0] * CHUNK // BLOCK_K}


def _chunks(moment: Any) -> np.ndarray:
    from emulator.machine import SHARED_BASE

    return (moment.addresses["shared"] - SHARED_BASE) // CHUNK


def _read(moments: list[Any], held: dict[int, tuple[str, int, int]]) -> dict[str, Any]:
    """Which chunks are read, and in how many wavefronts: as they lie, and as they would lie without a swizzle."""
    from emulator.counters import wavefronts

    swizzled = plain = 0
    chunks: list[int] = []
    for moment in moments:
        to = _chunks(moment)
        chunks += to.tolist()
        for warp in np.unique(moment.threads // 32):
            mine = moment.threads // 32 == warp
            lanes = moment.threads[mine] % 32
            swizzled += wavefronts(to[mine] * CHUNK, CHUNK, lanes)[0]
            unswizzled = [held[chunk][1] * BLOCK_K + held[chunk][2] * CHUNK % BLOCK_K for chunk in to[mine].tolist()]
            plain += wavefronts(np.array(unswizzled), CHUNK, lanes)[0]
    operand, _, column = held[chunks[0]]
    first = moments[0]
    return {
        "operand": operand,
        "block": column * CHUNK // BLOCK_K,
        "chunks": sorted(set(chunks)),
        "first": _chunks(first)[:8].tolist(),  # one matrix of the first warp: eight rows, in one wavefront
        "wavefronts": swizzled,
        "unswizzled": plain,
    }


def record() -> dict[str, Any]:
    """Both kernels. Triton's interpreter must be off: it replaces the compiler."""
    import triton

    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": folder}):
        # A cache of its own: another one may know the same source by other lines.
        parts = {"row": row(Path(folder)), "tile": tile(Path(folder))}
    return {"triton": triton.__version__, "arch": ARCH, "command": "python -m tutorials.inside", **parts}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.inside", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    arguments.out.write_text(json.dumps(record(), separators=(",", ":")) + "\n", encoding="utf-8")
    print("wrote", arguments.out)


if __name__ == "__main__":
    main()
