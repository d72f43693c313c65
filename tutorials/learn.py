"""Copies the notebooks to where a reader works on them, and never over an answer.

    python -m tutorials.learn

`work/` at the root of the repository is ignored by git. A notebook that is already there stays as it is; delete it to start that
chapter again. `make learn` does this and opens the copies in JupyterLab.
"""

import shutil
from pathlib import Path

FOLDER = Path(__file__).parent
#: Beside tutorials/, so that the notebooks' links to ../docs lead to the same files.
WORK = FOLDER.parent / "work"


def copy(work: Path = WORK) -> tuple[list[str], list[str]]:
    """Copies the notebooks that are not there yet.

    Returns:
        The names of those that were copied, and of those that were kept.
    """
    work.mkdir(exist_ok=True)
    copied, kept = [], []
    for notebook in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
        target = work / notebook.name
        if target.exists():
            kept.append(notebook.name)
        else:
            shutil.copyfile(notebook, target)
            copied.append(notebook.name)
    return copied, kept


def main() -> None:
    """The command line."""
    copied, kept = copy()
    print(f"{WORK}: {len(copied)} notebooks copied, {len(kept)} kept with your answers. Delete one to start its chapter again.")


if __name__ == "__main__":
    main()
