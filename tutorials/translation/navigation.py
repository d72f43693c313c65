"""The titles of the navigation, from mkdocs.yml."""

import re

from tutorials.translation.blocks import ROOT


def titles() -> list[str]:
    """The titles that mkdocs.yml gives, in order."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2].partition("\n\n")[0]
    return re.findall(r"^ *- ([^:\n*]+):", nav, re.MULTILINE)
