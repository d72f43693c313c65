"""The result pages."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import perplexity, records, report
from experiments.command import InputError
from experiments.pages import claims
from experiments.pages import report as report_page

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def test_the_pages_are_what_the_records_give() -> None:
    report.main(["--check"])


def test_a_page_that_was_changed_by_hand_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "PAGES", tmp_path)
    with pytest.raises(InputError, match=r"results\.md"):
        report.main(["--check"])
    report.main([])
    report.main(["--check"])
    page = tmp_path / "results.md"
    page.write_text(page.read_text().replace("agrees", "agrees fully", 1))
    with pytest.raises(InputError, match=r"results\.md; run `make results`"):
        report.main(["--check"])


def test_without_a_record_a_page_says_by_which_command_it_is_made() -> None:
    made = "".join(report_page.pages(lambda name: None).values())
    for part in (*report_page.RESULTS, *report_page.SPEED):
        assert f"## {part.title}\n\nNot measured. `{part.command}`" in made
    assert "agrees" not in made
    assert made.count("| not measured |") >= len(claims.CLAIMS)


@pytest.mark.parametrize("part", [p for p in report_page.RESULTS if p.name.startswith("perplexity")], ids=lambda p: p.name)
def test_the_command_of_a_missing_record_is_one_that_its_module_accepts(part: report_page.Part) -> None:
    words = shlex.split(part.command)
    assert words[:3] == ["python", "-m", "experiments.perplexity"]
    options = perplexity.parse(words[3:])
    assert Path(options.out or f"{part.name}.json").stem == part.name


def test_every_picture_of_a_page_is_there_and_has_a_description() -> None:
    for text in report_page.pages().values():
        for description, picture in re.findall(r"!\[(.*?)\]\((.*?)\)", text, re.DOTALL):
            assert (records.RESULTS / Path(picture).name).is_file(), picture
            assert len(description) > 20, picture


def commands() -> set[str]:
    """The modules of experiments/ that are run as commands."""
    return {path.stem for path in (ROOT / "experiments").glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}


def test_no_module_of_the_experiments_imports_a_command() -> None:
    assert {"perplexity", "speed", "gpu_day", "report"} <= commands()
    found = set()
    for path in (ROOT / "experiments").rglob("*.py"):
        package = path.relative_to(ROOT).parent.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                origin = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
                targets = [[*origin, alias.name] for alias in node.names] if origin == ["experiments"] else [origin]
                found |= {(str(path.relative_to(ROOT)), target[1]) for target in targets if len(target) == 2}
    assert ("experiments/speed.py", "timing") in found
    assert {pair for pair in found if pair[1] in commands()} == set()


def test_the_pages_are_made_without_torch_and_without_pictures() -> None:
    program = "import sys, experiments.report\nexperiments.report.main(['--check'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "triton", "fast", "reference", "matplotlib"} & set(done.stdout.split()) == set()
