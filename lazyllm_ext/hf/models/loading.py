"""A model's folder -> its model and tokenizer; what is missing, foreign or damaged is named."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from lazyllm_ext.json_input import InputError, shown

_SAID = 240  # characters of a library's own message
_NAMED = 4  # tensors in a sentence; of more, how many there are
# Numbers of config.json without which there is no model, under the names that families have, and
# how large they may be before memory runs out on a damaged one.
_LAYERS, _ANY = 10_000, 2**31
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), _LAYERS),
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "n_embd"), _ANY),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "n_head"), _ANY),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), _ANY),
}
_FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
_OF_HUB = ("local_files_only", "revision", "token", "cache_dir", "subfolder")
_TOKENIZER_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    "chat_template.json",
)


def load_model(folder: str | os.PathLike[str], *, auto_class: Any = None, **arguments: Any) -> Any:
    """Load a transformers model, in inference mode, with all of its weights and no others.

    transformers' `from_pretrained` gives a tensor that its files lack random values, leaves out one
    that the model does not have, and says so in a warning. Here both are errors.

    Args:
        folder: of a transformers model, or its name on the hub.
        auto_class: transformers' class that finds the model's own; by default
            `AutoModelForCausalLM`. `AutoModelForImageTextToText` for one that sees images.
        arguments: of `from_pretrained`: `dtype`, `device_map`, ….

    Returns:
        The model.

    Raises:
        InputError: a file that is missing or damaged, or weights that are not those of the model
            that config.json describes, with the tensors' names; a ValueError.
    """
    if auto_class is None:
        auto_class = transformers.AutoModelForCausalLM
    wanted = {"trust_remote_code": False, **arguments}
    _check_config(folder, wanted)
    with _naming(folder, "generation_config.json"):
        if _read(folder, "generation_config.json"):
            transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    _check_index(folder)
    with _naming(folder, "weights", _broken_model):
        model, info = auto_class.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **wanted
        )
    _check_weights(model, info, folder)
    _check_dtypes(model, folder)
    return model.eval()


def load_tokenizer(folder: str | os.PathLike[str], **arguments: Any) -> Any:
    """The tokenizer of a transformers model; no code of its folder is run, and nobody is asked.

    Raises:
        InputError: a file that is missing or damaged, and what is wrong in it; a ValueError.
    """
    if (Path(folder) / "config.json").exists():  # it says of which class the tokenizer is
        _check_config(folder, arguments)
    for name in _TOKENIZER_FILES:
        with _naming(folder, name):
            _read(folder, name)
    with _naming(folder, "tokenizer", _broken_tokenizer):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, **arguments
        )
        tokenizer("a")  # some settings are only looked at when they are used
    return tokenizer


def as_chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Messages as the model's chat template writes them, up to where the answer begins.

    Raises:
        InputError: the template is broken, or refuses them.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program
        said = _short(" ".join(f"{type(error).__name__}: {error}".split()))
        line = getattr(error, "lineno", None)  # of bad syntax
        raise InputError("chat template", said + (f" (line {line})" if line else "")) from error
    return str(text)


def check_tokens(model: Any, ids: Iterable[int]) -> None:
    """Raises InputError for token ids that the model does not have, as of another's tokenizer."""
    count, largest = model.get_input_embeddings().num_embeddings, max(ids, default=0)
    if largest >= count:
        said = f"expected tokens below {count}, the model's vocabulary, got {largest}"
        raise InputError("prompt", f"{said}: the tokenizer is another model's")


def _check_config(folder: Any, arguments: dict[str, Any]) -> None:
    """Refuse a config.json of which no model can be made."""
    name = "config.json"
    with _naming(folder, name):
        raw = _read(folder, name)
        for part in (raw, raw.get("text_config")):
            _check_sizes(part if isinstance(part, dict) else {})
        hub = {key: value for key, value in arguments.items() if key in _OF_HUB}
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **hub)
        _check_sizes(config.get_text_config().to_dict())


def _check_index(folder: Any) -> None:
    """Refuse a list of the weights' files that lists none."""
    name = "model.safetensors.index.json"
    with _naming(folder, name):
        index = _read(folder, name)
        listed = index.get("weight_map")
        if index and not (isinstance(listed, dict) and listed):
            raise InputError("weight_map", f"expected files by tensors' names, got {shown(listed)}")


def _check_dtypes(model: Any, folder: Any) -> None:
    """Refuse whole numbers and the like for weights that are computed with as they are.

    transformers converts them, though without a quantization's scales they mean nothing.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    own = {name for name, weight in model.named_parameters() if weight.is_floating_point()}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        others = [name for name, kind in kinds.items() if name in own and kind not in _FLOATS]
        if others:
            said = f"expected {', '.join(_FLOATS)} without a quantization, got others for "
            raise InputError("", said + _listed(others), os.fspath(path))


def _check_sizes(config: dict[str, Any]) -> None:
    for name, most in _SIZES.items():
        size = config.get(name)
        if isinstance(size, list):  # one for each layer, in some families
            continue
        if size is not None and (type(size) is not int or not 1 <= size <= most):
            expected = f"expected a whole number from 1 to {most}"
            raise InputError(name, f"{expected}, got {shown(size)}")


def _read(folder: Any, name: str) -> dict[str, Any]:
    """A JSON file of a local folder; empty where there is none."""
    path = Path(folder) / name
    if not path.exists():
        return {}
    try:  # as transformers reads it, which drops a generation configuration that is broken
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("", f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError("", f"expected JSON, got other text ({error})") from error
    if not isinstance(data, dict):
        raise InputError("", f"expected a JSON object, got {shown(data)}")
    return data


@contextmanager
def _naming(folder: Any, what: str, find: Any = lambda folder: None) -> Iterator[None]:
    """Whatever a library raises in the block becomes an InputError of this file of the folder.

    Args:
        what: the file, or a word for several.
        find: looks for the file that is broken and what is wrong in it, once there is an error.
    """
    try:
        yield
    except Exception as error:  # each file's library has its own errors for damaged ones
        name, said = find(folder) or (what, _said(error))
        if name.endswith((".json", ".safetensors")):
            raise InputError("", said, os.path.join(os.fspath(folder), name)) from error
        raise InputError(name, said, os.fspath(folder)) from error


def _said(error: Exception) -> str:
    """An error of a library in one line, which says what kind of thing is named."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, InputError):
        return str(error)
    if "trust_remote_code" in str(error):
        return "auto_map: expected a class of transformers, got code of its own, which is not run"
    if isinstance(error, KeyError) and len(said.split()) == 1:
        said = f"it has no entry {said}"
    elif not isinstance(error, (OSError, ValueError)):
        said = f"{type(error).__name__}: {said}"
    return f"cannot be used: {_short(said)}"


def _short(said: str) -> str:
    return said if len(said) < _SAID else said[:_SAID] + "…"


def _broken_model(folder: Any) -> tuple[str, str] | None:
    """The first file of weights that cannot be opened, or config.json, and why."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except Exception as error:
            return path.name, f"expected a whole safetensors file, got: {error}"
    try:  # a model without memory
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:
        return "config.json", _said(error)
    return None


def _broken_tokenizer(folder: Any) -> tuple[str, str] | None:
    """What is wrong in tokenizer.json, if it is that."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    try:
        data = _read(folder, path.name)
        for entry in ("model", "added_tokens"):
            if path.exists() and entry not in data:
                return path.name, f"expected an entry {entry!r}, got none"
        if data:
            Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        return path.name, str(error)
    return None


def _check_weights(model: Any, info: dict[str, Any], folder: Any) -> None:
    """Raises InputError where the files' tensors are not the model's."""
    others = [
        f"{name} ({list(got)} instead of {list(expected)})"
        for name, got, expected in sorted(info.get("mismatched_keys") or ())
    ]
    missing = set(info.get("missing_keys") or ()) - {text.split(" ")[0] for text in others}
    faults = {
        "none for": missing,
        "other shapes for": others,
        "tensors that it does not have:": info.get("unexpected_keys") or (),
    }
    told = [f"{words} {_listed(names)}" for words, names in faults.items() if names]
    if told:
        kind = type(model).__name__
        said = f"expected those of the {kind} that config.json describes, got {'; '.join(told)}"
        raise InputError("weights", said, os.fspath(folder))


def _listed(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
