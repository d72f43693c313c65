"""What "Look inside" shows, against formulae that know nothing of the record: fragments of the matrix unit, banks, the order of copies."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from emulator.counters import wavefronts
from emulator.matrix import Fragments

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "theatre" / "inside.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "docs" / "theatre" / "inside.json").read_text(encoding="utf-8"))
ROW, TILE = RECORD["row"], RECORD["tile"]


def steps(part, kind):
    return [step for step in part["steps"] if step["kind"] == kind]


def test_each_entry_of_the_row_is_loaded_by_one_thread_and_stored_by_it():
    load, store = steps(ROW, "load")[0], steps(ROW, "store")[0]
    assert len(steps(ROW, "load")) == 1
    entries = [(first + n, thread) for first, thread in zip(load["first"], load["threads"], strict=True) for n in range(load["count"])]
    assert [entry for entry, _ in sorted(entries)] == list(range(ROW["entries"]))
    assert (store["buffer"], store["first"], store["threads"]) == ("codes", load["first"], load["threads"])


def test_the_maximum_of_the_row_reaches_every_thread():
    """The exchanges of the record, done on sets: of which threads each knows the maximum."""
    known, shared = [{thread} for thread in range(ROW["threads"])], {}
    for step in ROW["steps"]:
        if step["kind"] == "exchange":
            known = [mine | known[thread ^ step["distance"]] for thread, mine in enumerate(known)]
        elif step["kind"] == "publish":
            shared |= {word: known[thread] for word, thread in zip(step["words"], step["threads"], strict=True)}
        elif step["kind"] == "collect":
            for word, thread in zip(step["words"], step["threads"], strict=True):
                known[thread] = shared[word]
    assert all(mine == set(range(ROW["threads"])) for mine in known)


def test_the_exchanges_are_as_many_as_the_page_says():
    kinds = [step["kind"] for step in ROW["steps"]]
    words = {"five": 5, "two": 2}
    first, second = re.search(r"(\w+) exchanges within each warp, one round through shared memory, (\w+) exchanges more", PAGE).groups()
    before, after = kinds[: kinds.index("publish")], kinds[kinds.index("publish") :]
    assert (before.count("exchange"), after.count("exchange")) == (words[first], words[second])


def test_the_accumulators_lie_as_the_manual_lays_them():
    """PTX ISA, Matrix Fragments for mma.m16n8k32: within each 16 x 8 piece of a warp, by the tables of the emulator."""
    owners = np.array(TILE["owners"]).reshape(TILE["side"], TILE["side"])
    layout = Fragments(4, 32)
    lanes = np.full((16, 8), -1)
    lanes[layout.c_row, layout.c_column] = np.arange(32)[:, None]
    for m in range(0, TILE["side"], 16):
        for n in range(0, TILE["side"], 8):
            piece = owners[m : m + 16, n : n + 8]
            assert len(np.unique(piece // 32)) == 1
            np.testing.assert_array_equal(piece % 32, lanes)
    held = np.bincount(owners.ravel())
    assert set(held.tolist()) == {int(re.search(r"Each thread holds (\d+) of the 4096", PAGE)[1])}


def test_every_code_of_the_tile_is_copied_once_and_has_arrived_before_it_is_read():
    copied, arrived = [], set()
    for step in TILE["steps"]:
        if step["kind"] == "copy" and step["bytes"]:
            copied += [(step["operand"], row, column) for row, column in zip(step["rows"], step["columns"], strict=True)]
            arrived -= set(step["chunks"])
        elif step["kind"] == "wait":
            arrived |= set(step["chunks"])
        elif step["kind"] == "read":
            assert set(step["chunks"]) <= arrived
    k = 256 // 16
    assert sorted(copied) == [(operand, row, column) for operand in "ab" for row in range(TILE["side"]) for column in range(k)]


def test_the_next_block_is_on_its_way_while_one_is_multiplied():
    """Of the four blocks: all but the last are multiplied while a later one has set out and not arrived."""
    sets_out, arrives, multiplied = {}, {}, {}
    for n, step in enumerate(TILE["steps"]):
        if step["kind"] == "copy" and step["bytes"]:
            sets_out.setdefault(step["block"], n)
        elif step["kind"] == "read":
            block = step["block"]
            arrives.setdefault(block, max(m for m in range(n) if TILE["steps"][m]["kind"] == "wait"))
        elif step["kind"] == "multiply":
            multiplied[block] = n
    assert sorted(sets_out) == sorted(multiplied) == [0, 1, 2, 3]
    for block in range(3):
        assert sets_out[block + 1] < multiplied[block] < arrives[block + 1]


@pytest.mark.parametrize("operand", ["a", "b"])
def test_the_swizzle_brings_eight_rows_in_one_wavefront(operand):
    for step in steps(TILE, "read"):
        if step["operand"] != operand:
            continue
        first = np.array(step["first"])
        assert len(set((first % 8).tolist())) == 8  # eight columns of 16 bytes: all banks
        assert wavefronts(first * 16, 16, np.arange(8)) == (1, 1)
        assert wavefronts(np.arange(8) * 64, 16, np.arange(8)) == (4, 1)  # the same rows one after the other, 64 bytes each
        assert step["unswizzled"] == 4 * step["wavefronts"]


def test_a_line_of_the_record_is_the_line_of_the_source():
    beginnings = {"copy": ("left = tl.load", "right = tl.load"), "multiply": ("acc = tl.dot",), "store": ("tl.store",)}
    for step in TILE["steps"]:
        if step["kind"] in beginnings:
            assert TILE["source"][step["line"] - 1].strip().startswith(beginnings[step["kind"]])


def test_the_sources_are_those_of_the_chapters():
    from tutorials import chapter_kernels

    for name, part in (("quantize_rows", ROW), ("scaled_product", TILE)):
        source = chapter_kernels.every()[name]
        assert (part["source"], part["chapter"]) == (source.text.rstrip("\n").split("\n"), source.chapter)


def test_the_record_is_what_the_command_makes_of_the_kernels_today(tmp_path):
    triton = pytest.importorskip("triton")
    if triton.__version__ != RECORD["triton"]:
        pytest.skip(f"recorded with Triton {RECORD['triton']}")
    import os
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tutorials.inside", "--out", str(tmp_path / "inside.json")]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads((tmp_path / "inside.json").read_text(encoding="utf-8")) == RECORD
