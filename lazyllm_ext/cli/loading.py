"""A model folder -> tokenizer and model, or one sentence that says what is wrong with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lazyllm_ext.json_input import shown

from .errors import CommandError, as_input_error


def find_folder(name: str, quiet: bool) -> Path:
    """The model's folder; `demo` is the demo model, which is brought first if need be.

    Raises:
        CommandError: no such folder, or no model of a supported kind in it.
    """
    if name == "demo":
        from lazyllm_ext.demo import DemoModelError, demo_model

        def say(line: str) -> None:
            if not quiet:
                print(line, file=sys.stderr)

        try:
            return demo_model(say)
        except DemoModelError as error:
            raise CommandError(str(error), status=1) from error
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise CommandError(f"model: no such folder: {name}")
    kind = _model_type(folder)
    from lazyllm_ext.hf import SUPPORTED

    if kind not in SUPPORTED:
        raise CommandError(
            f"model: expected a model of type {', '.join(SUPPORTED)}, got {kind!r} in {name}"
        )
    # Schedules, reports and requests go by the folder's name, which "." does not say.
    return folder.resolve() if folder.name in ("", "..") else folder


def _model_type(folder: Path) -> Any:
    """What config.json says, before anything that takes long."""
    config = folder / "config.json"
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CommandError(
            f"model: expected a transformers model, got a folder without config.json: {folder}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"model: {config} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CommandError(f"model: {config}: expected a JSON object, got {shown(data)}")
    return data.get("model_type")


def load(folder: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder, in inference mode.

    Raises:
        CommandError: files are missing or damaged, or hold other tensors than the model's.
    """
    from lazyllm_ext.hf import load_model, load_tokenizer

    quiet_transformers()
    with as_input_error(ValueError):
        tokenizer = load_tokenizer(folder, local_files_only=True)
        model = load_model(folder, local_files_only=True, dtype=dtype)
    return tokenizer, model.to(device)


def settle(model: Any, *, greedy: bool, quiet: bool = False) -> tuple[str, ...]:
    """What the model's own files ask of generations is made what the command can do.

    Args:
        greedy: see `lazyllm_ext.hf.settle_defaults`.
        quiet: do not say what has no effect.

    Returns:
        Strings that end an answer.

    Raises:
        CommandError: the files ask for something that would change the answer and is not supported.
    """
    from lazyllm_ext.hf import settle_defaults

    with as_input_error(ValueError):
        settled = settle_defaults(model, greedy=greedy)
    said = settled.sentence()
    if said and not quiet:
        print(f"lazyllm-ext: {said}", file=sys.stderr)
    return settled.stop_strings


def quiet_transformers() -> None:
    """Errors only, and no bars of transformers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pick_device(name: str) -> str:
    """The device to run on.

    Raises:
        CommandError: a device that is not there or that the operators were not built for.
    """
    import torch

    from .kernels import has_cuda_kernels

    if name == "auto":
        return "cuda" if torch.cuda.is_available() and has_cuda_kernels() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CommandError(f"--device: expected cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if not has_cuda_kernels():
            raise CommandError(
                "--device: expected cpu, since the operators were built without CUDA"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise CommandError(
                f"--device: got {name!r}, and PyTorch {torch.__version__} sees "
                f"{torch.cuda.device_count()} CUDA devices"
            )
    return name
