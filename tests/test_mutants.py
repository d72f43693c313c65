"""The mutation tester's own parts (tests/tools/mutations.py, mutants.py): which mutants it makes, and how exceptions name them."""

import re
import sys

import pytest

from tests.tools import mutants, mutations

SOURCE = '''
LIMIT = 2**4

class Box:
    def inside(self, x):
        """A docstring with 5."""
        if x < 3 and x > 1:
            self.count(x, deep=True)
            return -x + 1
        return 1
'''
RENAMED = """
LIMIT = 2 ** 4

class Box:
    def inside(self, value):
        if (value < 3   # a comment
                and value > 1):
            self.count(
                value, deep=True)
            return -value + 1
        return 1
"""
KEYS = {
    ("LIMIT", "constant: 2 to 2 + 1"), ("LIMIT", "constant: 2 to 2 - 1"), ("LIMIT", "constant: 4 to 4 + 1"),
    ("LIMIT", "constant: 4 to 4 - 1"), ("LIMIT", "operator: ** to *"),
    ("Box.inside", "condition: negated"), ("Box.inside", "and/or: and to or"),
    ("Box.inside", "comparison: < to <="), ("Box.inside", "comparison: < to >"),
    ("Box.inside", "comparison: > to >="), ("Box.inside", "comparison: > to <"),
    ("Box.inside", "constant: 3 to 3 + 1"), ("Box.inside", "constant: 3 to 3 - 1"),
    *(("Box.inside", f"constant: 1 to 1 {sign} 1 ({n} of 3)") for sign in "+-" for n in (1, 2, 3)),
    ("Box.inside", "constant: True to False"), ("Box.inside", "statement left out: call"),
    ("Box.inside", "unary operator: - left out"), ("Box.inside", "operator: + to -"),
}  # fmt: skip


def keys(source):
    return mutations.keys(mutations.mutants("a.py", source), source)


def test_a_mutant_is_named_by_file_function_and_mutation():
    assert {key[1:] for key in keys(SOURCE).values()} == KEYS
    assert {key[0] for key in keys(SOURCE).values()} == {"a.py"}


def test_a_name_is_one_mutant_s():
    for file in mutants.files():
        named = keys((mutants.ROOT / file).read_text(encoding="utf-8"))
        assert len(set(named.values())) == len(named), file


def test_no_name_depends_on_what_variables_are_called_or_on_the_layout():
    ours, theirs = keys(SOURCE), keys(RENAMED)
    assert list(ours.values()) == list(theirs.values())


def test_one_more_of_a_kind_in_a_function_voids_the_names_of_its_kind_alone():
    longer = SOURCE.replace("return 1\n", "return 1 + 1\n")
    gone = {key[2] for key in set(keys(SOURCE).values()) - set(keys(longer).values())}
    assert gone == {*(f"constant: 1 to 1 {sign} 1 ({n} of 3)" for sign in "+-" for n in (1, 2, 3)), "operator: + to -"}


def test_every_exception_is_a_mutant_s():
    known = mutations.equivalents(mutants.EQUIVALENT)
    named = [
        key
        for file in mutants.files()
        for source in [(mutants.ROOT / file).read_text(encoding="utf-8")]
        for key in mutations.keys(mutations.mutants(file, source), source).values()
    ]
    assert len(known) > 100
    assert mutations.unmatched(known, named) == []


@pytest.mark.parametrize("wrong", [{}, {"file": "reference/vector.py"}, {"function": "add"}, {"mutation": "constant: 1 to 2"}], ids=str)
def test_the_command_fails_on_an_exception_that_matches_nothing(wrong, tmp_path, monkeypatch):
    entry = {"file": "reference/vectorwise.py", "function": "accumulate", "mutation": "*"} | wrong
    exceptions = tmp_path / "equivalent.toml"
    exceptions.write_text(
        "[[mutant]]\nfile = '{file}'\nfunction = '{function}'\nmutations = ['{mutation}']\nreason = 'why'\n".format(**entry),
        encoding="utf-8",
    )
    monkeypatch.setattr(mutants, "EQUIVALENT", exceptions)
    monkeypatch.setattr(sys, "argv", ["mutants", "--list", "--sample", "1"])
    if wrong:
        with pytest.raises(SystemExit, match=re.escape(" | ".join(entry.values()))):
            mutants.main()
    else:
        assert mutants.main() == 0


def test_the_tests_of_every_file_are_there():
    named = {name for names, _, _ in mutants.TESTS.values() for name in names}
    assert [name for name in named if not (mutants.ROOT / "tests" / f"test_{name}.py").exists()] == []
    assert all(mutants.tests_of(file)[0] for file in mutants.files())
