"""Shows the pictures of the experiments on the site, drawn from their records, and the records themselves: experiments/results/."""

import re
from pathlib import Path

import edition
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from experiments import records
from experiments.pages import phone, style
from experiments.pages.report import DRAWN
from tutorials.translation import blocks

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "results"
PICTURE = re.compile(r"\(((?:\.\./)?)(results/[\w-]+)\.png\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds them under results/: the stored files, and each picture as SVG in two renderings (figures.py)."""
    for path in sorted(FOLDER.glob("*.*")):
        if path.suffix in (".png", ".json") and not path.name.startswith("."):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    translated = blocks.pictured()
    for name, draw in DRAWN.items():
        say = edition.of(config).drawing if name in translated else edition.ENGLISH.drawing
        record = records.read(name)
        for number, figure in enumerate(draw(record) if record else (), 1):
            drawn = f"results/{name}{'' if number == 1 else f'-{number}'}"
            files.append(File.generated(config, f"{drawn}.svg", content=say(style.svg(figure))))
            files.append(File.generated(config, f"{drawn}-narrow.svg", content=say(style.svg(phone.narrow(figure)))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the pages, which name the stored pictures, at those that are drawn here."""
    drawn = {file.src_uri for file in files}
    return PICTURE.sub(lambda match: f"({match[1]}{match[2]}.svg)" if f"{match[2]}.svg" in drawn else match[0], markdown)
