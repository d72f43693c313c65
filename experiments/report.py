"""The results pages of the site, docs/results.md and docs/speed.md, from the JSON records alone.

python -m experiments.report                writes the pages (`make results`)
python -m experiments.report --check        fails if a page is not what its records give
python -m experiments.report --pictures     draws the pictures of the records anew, too
"""

import sys
from collections.abc import Sequence

from . import command, records
from .command import InputError
from .pages.report import PICTURES, pages


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command.Parser(prog="python -m experiments.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a page is not what its records give")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures of the records anew")
    options = parser.parse_args(arguments)
    made = pages()
    if options.check:
        stale = [path for path, text in made.items() if not path.is_file() or path.read_text() != text]
        if stale:
            raise InputError(f"not what the records give: {', '.join(map(str, stale))}; run `make results`")
        return
    for name, draw in PICTURES.items() if options.pictures else ():
        record = records.read(name)
        if record is not None:
            records.write(records.RESULTS / f"{name}.json", record, draw(record))
    for path, text in made.items():
        path.write_text(text)
        print("wrote", path, file=sys.stderr)


if __name__ == "__main__":
    command.run_command(main)
