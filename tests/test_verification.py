"""The verification page says what its record says, and the record what pytest reported."""

import base64
import copy
from xml.etree import ElementTree

import pytest

from experiments import records, verification
from experiments.command import InputError
from experiments.pages import verification as verification_page

STATISTICS = """tests/test_a.py::test_generated:

  - during generate phase (0.61 seconds):
    - Typical runtimes: ~ 2-19 ms, of which ~ 0-14 ms in data generation
    - 50 passing, 0 failing, and 3 invalid test cases
  - Highest target score: 0.25  (label='product')
"""

REPORT = f"""<testsuites><testsuite>
<properties>
<property name="hypothesis-statistics-tests/test_a.py::test_generated" value="{base64.b64encode(STATISTICS.encode()).decode()}"/>
</properties>
<testcase classname="tests.test_a" name="test_generated" time="1.5"/>
<testcase classname="tests.test_a" name="test_law[1]" time="0.25"><properties>
<property name="ratio: product" value="0.5"/><property name="ratio: round trip" value="0.75"/></properties></testcase>
<testcase classname="tests.test_a" name="test_law[2]" time="0.25"><properties>
<property name="bit patterns" value="65536"/></properties></testcase>
<testcase classname="tests.test_a" name="test_left_out" time="0"><skipped/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_counted_by_laws_tests_and_cases():
    assert verification.counted(ElementTree.fromstring(REPORT)) == {
        "laws": 2,
        "tests": 3,
        "cases": 52,
        "seconds": 2.0,
        "ratios": {"product": 0.5, "round trip": 0.75},
        "bit_patterns": 65536,
    }


def test_a_file_that_fails_is_not_recorded(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    monkeypatch.setattr(verification, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"tests/test_wrong.py did not pass, so nothing is recorded(.|\n)*assert 1 == 2"):
        verification.run_tests("test_wrong.py")


def test_a_file_that_fails_takes_no_other_with_it(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    (tmp_path / "tests" / "test_right.py").write_text("def test_right():\n    pass\n")
    monkeypatch.setattr(verification, "ROOT", tmp_path)
    rows, failures = verification.run_files(["test_wrong.py", "test_right.py"], 2)
    assert {name: row["tests"] for name, row in rows.items()} == {"test_right.py": 1}
    assert len(failures) == 1
    assert failures[0].startswith("tests/test_wrong.py did not pass")


def test_a_file_that_passes_is_counted(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_right.py").write_text(
        "import hypothesis, hypothesis.strategies as st\n"
        "@hypothesis.settings(max_examples=7, database=None)\n"
        "@hypothesis.given(st.floats(0, 1))\n"
        "def test_right(x):\n"
        "    hypothesis.target(x / 2, label='half')\n"
        "def test_ratio(record_property):\n"
        "    record_property('ratio: other', 0.125)\n"
    )
    monkeypatch.setattr(verification, "ROOT", tmp_path)
    row = verification.run_tests("test_right.py")
    assert {name: row[name] for name in ("laws", "tests", "cases")} == {"laws": 2, "tests": 2, "cases": 8}
    assert row["ratios"].keys() == {"half", "other"}
    assert 0 <= row["ratios"]["half"] <= 0.5


def test_the_page_is_what_its_record_says():
    verification.check(records.read("verification"))


def test_a_page_that_says_something_else_is_stale():
    record = copy.deepcopy(records.read("verification"))
    assert record is not None
    next(iter(record["files"].values()))["cases"] += 1
    with pytest.raises(InputError, match="not what experiments/results says"):
        verification.check(record)
    with pytest.raises(InputError, match="there is no record"):
        verification.check(None)


def test_no_ratio_on_record_passes_its_bound():
    record = records.read("verification")
    assert record is not None
    ratios = verification_page.merged_ratios(record["files"])
    assert {"round trip", "product", "LLM.int8()"} <= ratios.keys()
    assert max(ratios.values()) <= 1


def test_without_a_gpu_on_record_the_page_claims_none():
    row = {"gpu": None}
    assert verification_page.gpu_text({"test_a.py": row}).startswith("nothing: ")
    assert verification_page.gpu_text({"test_a.py": row, "test_b.py": {"gpu": "H100"}}) == "`test_b.py` on H100"


def test_the_line_on_mutants_counts_what_their_record_counts():
    record = {"made": 1200, "possible": 3000, "killed": 1150, "equivalent": 30, "survived": 20, "score": 0.9829, "date": "2026-11-24"}
    assert verification_page.mutants_text(record) == (
        "1,200 of 3,000 made: 1,150 killed, 30 equivalent, 20 survived, a score of 98.3% (2026-11-24)"
    )
    assert verification_page.mutants_text(None) == "no record: run `make mutants`"


def test_measured_errors_stay_below_their_bounds_and_the_worst_input_comes_close():
    errors = verification.measure_errors()
    for row in errors["by_k"]:
        assert row["normal"] <= row["bound"]
        assert row["worst"] <= row["bound"]
    assert errors["by_k"][-1]["worst"] > 0.99 * errors["by_k"][-1]["bound"]
    for row in errors["by_size"]:
        assert row["vectorwise"] <= row["vectorwise_bound"]
        assert row["llm_int8"] <= row["llm_int8_bound"]


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match=r"--only takes files of tests/, compiled or picture, got test_nothing.py"):
        verification.main(["--only", "test_nothing.py"])


@pytest.mark.parametrize(
    ("instruction", "unit"),
    [
        ("IGMMA.64x128x32.S8.S8", "IGMMA"), ("HGMMA.64x256x16.F32", "HGMMA"), ("IMMA.16832.S8.S8.SAT", "IMMA"), ("HMMA.16816.F32", "HMMA"),
        ("UTCHMMA", "UTCHMMA"), ("v_mfma_i32_32x32x16_i8", "mfma"), ("FFMA", None), ("IMAD.WIDE", None), ("v_fma_f32", None),
    ],
)  # fmt: skip
def test_matrix_instructions_are_told_by_their_family(instruction, unit):
    assert verification.matrix_unit(instruction) == unit
