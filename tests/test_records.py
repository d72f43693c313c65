"""Records and tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import records
from experiments.pages import tables

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def test_a_record_holds_plain_numbers_and_nothing_that_json_lacks() -> None:
    given = {"a": np.float32(1 / 3), "b": np.array([1.0, np.nan, np.inf]), 3: (np.int64(7), True, None, "text")}
    assert records.plain(given) == {"a": 0.333333, "b": [1.0, None, None], "3": [7, True, None, "text"]}
    assert records.plain(records.plain(given)) == records.plain(given)


def test_a_record_reads_back_as_it_was_given_with_each_list_of_numbers_on_a_line(tmp_path: Path) -> None:
    given = {"numbers": [1, 2.5, None, -1e-9], "text": "[1,  2]\n[ 3 ]", "lists": [[1, 2], [], ["a  b", 1]], "map": {"x": [True]}}
    path, *pictures = records.write(tmp_path / "r.json", given)
    assert json.loads(path.read_text()) == given
    assert pictures == []
    assert ' "numbers": [ 1, 2.5, null, -1e-09 ],' in path.read_text().splitlines()


def test_a_table_aligns_its_columns() -> None:
    assert tables.table(["a", "b"], [["long", "1"], ["x", "22"]]).splitlines() == ["a      b", "----  --", "long   1", "x     22"]
