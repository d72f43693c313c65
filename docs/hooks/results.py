"""Shows the pictures of the experiments on the site, and their records, from where they lie: experiments/results/."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds them under results/."""
    for path in sorted(FOLDER.glob("*.*")):
        if path.suffix in (".png", ".json") and not path.name.startswith("."):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files
