"""The command: see the package."""

import argparse
import subprocess
import sys
import textwrap

from tutorials.translation import blocks, gathering, parity, sentences


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.translation", description="What the Chinese edition lacks.")
    parser.add_argument("names", nargs="*", help="chapters and pages such as 05_decomposition or bounds.md; all if none is given")
    parser.add_argument("--skeleton", metavar="NAME", help="print the file of translations as it should be, English where it lacks")
    parser.add_argument("--strings", action="store_true", help="gather the short sentences into tutorials/zh/*.po")
    arguments = parser.parse_args()
    if arguments.skeleton:
        print(blocks.skeleton(_named(arguments.skeleton)), end="")
    elif arguments.strings:
        gathering.write()
    else:
        chosen = [_named(name) for name in arguments.names] or blocks.documents()
        sys.exit(1 if _list(chosen) + _strings() else 0)


def _named(name: str) -> blocks.Document:
    for document in blocks.documents():
        if name in (document.name, document.name.removesuffix(".md"), document.name[:2]):
            return document
    raise SystemExit(f"nothing is called {name}; there are {', '.join(document.name for document in blocks.documents())}")


def _list(documents: list[blocks.Document]) -> int:
    """Prints what is to be done, and returns how much."""
    count = 0
    for document in documents:
        for pair in blocks.read(document):
            found = parity.differences(pair) + parity.misnamed(pair, document.name) if pair.state == "translated" else []
            if pair.state == "translated" and not found:
                continue
            count += 1
            key = pair.old if pair.original is None else blocks.digest(pair.original)
            print(f"{document.name}, block {key}: {', '.join(found) or pair.state}")
            if pair.state == "outdated":
                print(textwrap.indent(_was(document, pair.old or "") or "(its old original is not in the history)", "  - "))
            if pair.state in ("outdated", "missing"):
                print(textwrap.indent(pair.original or "", "  + "))
    return count


def _was(document: blocks.Document, key: str) -> str | None:
    """The original that had this hash, from the history of its file."""
    path = document.original.relative_to(blocks.ROOT).as_posix()
    git = ["git", "-C", str(blocks.ROOT)]
    commits = subprocess.run([*git, "log", "--format=%H", "--", path], capture_output=True, text=True, check=False).stdout.split()
    for commit in commits:
        text = subprocess.run([*git, "show", f"{commit}:{path}"], capture_output=True, text=True, check=False).stdout
        for block in blocks.cells(text) if path.endswith(".py") else blocks.sections(text):
            if blocks.digest(block) == key:
                return block
    return None


def _strings() -> int:
    missing = [message for area in gathering.AREAS for message in gathering.missing(area)]
    for message in missing:
        print(f"no translation: {message}")
    return len(missing) + sum(map(len, sentences.faults().values()))


if __name__ == "__main__":
    main()
