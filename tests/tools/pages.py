"""The Python of the how-to pages, and what they say that it prints.

python -m tests.tools.pages        writes into the pages what their code prints
"""

import contextlib
import io
import os
import re
import tempfile
import textwrap
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "howto"
PAGES = ("quantize_a_model", "mixture_of_experts", "bitsandbytes", "several_devices")

#: A block, maybe indented (in an admonition): indentation, language, content. One with a title shows a file and is not run here.
BLOCK = re.compile(r"^( *)```(python|text)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    """The text of docs/howto/PAGE.md."""
    return (FOLDER / f"{page}.md").read_text(encoding="utf-8")


def python_blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    return [textwrap.dedent(content) for _, kind, content in BLOCK.findall(read(page)) if kind == "python"]


def printed(page: str) -> str:
    """Runs the Python of a page in one namespace; returns the page with each block of text replaced by what the code before it printed."""
    scope: dict = {"__name__": "page"}
    output = ""

    def block(match: re.Match[str]) -> str:
        nonlocal output
        indent, kind, content = match.groups()
        if kind == "text":
            return f"{indent}```text\n{textwrap.indent(output, indent)}{indent}```"
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            exec(compile(textwrap.dedent(content), f"docs/howto/{page}.md", "exec"), scope)
        output = stdout.getvalue()
        return match.group()

    return BLOCK.sub(block, read(page))


if __name__ == "__main__":
    for name in PAGES:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            text = printed(name)
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")
        print("wrote", os.path.relpath(FOLDER / f"{name}.md"))
