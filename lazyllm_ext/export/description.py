"""The JSON description that every export carries: what it was made from, and what it needs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from lazyllm_ext.json_input import checked, decode, read_object, shown

FORMAT_VERSION = 3
_OLDEST_FORMAT = 2  # as 3, without checksums.json
# The operator library's target, see docs/architecture.md.
OLDEST_TORCH = "2.10"

# Names of the files inside an export.
DESCRIPTION, SCHEDULE, TOKENIZER = "lazyllm.json", "schedule.json", "tokenizer.json"
COMPILED = "decode.pt2"
CHECKSUMS = "checksums.json"
KINDS = ("torchscript", "aoti")


@checked("description")
class Description:
    """What an export is.

    Attributes:
        kind: `torchscript` or `aoti`.
        format_version: of this description and of the program's methods.
        lazyllm_ext, torch, transformers: versions that made it.
        oldest_torch: oldest PyTorch that can load it.
        model_type, model_name: as the model's configuration says.
        model_sha256: of the weights, by name.
        dtype, device: of the weights, `float32` and `cpu` for example.
        vocab_size: token ids that the model knows.
        max_tokens: longest context, 0 for no limit.
        eos_token_ids: tokens that end an answer.
        num_layers, boundary_layers: layers of the model, and those in which tokens are dropped.
        vocabulary_sha256: of the tokenizer's vocabulary; None without a tokenizer.
    """

    kind: str
    lazyllm_ext: str
    torch: str
    transformers: str
    model_type: str
    model_name: str
    model_sha256: str
    dtype: str
    device: str
    vocab_size: int
    max_tokens: int
    eos_token_ids: list[int]
    num_layers: int
    boundary_layers: list[int]
    vocabulary_sha256: str | None
    format_version: int = FORMAT_VERSION
    oldest_torch: str = OLDEST_TORCH

    @property
    def lists_checksums(self) -> bool:
        """Whether the file has a list of its members' checksums."""
        return self.format_version > _OLDEST_FORMAT

    def to_json(self) -> str:
        """The description as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Description:
        """Read what `to_json` wrote.

        Raises:
            ValueError: something else, or what a later release wrote.
        """
        try:
            data: Any = decode(text, where)
            version = data["format_version"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{where}: {DESCRIPTION}: expected an export's description") from error
        if version not in (_OLDEST_FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"{where}: format_version: expected {_OLDEST_FORMAT} or {FORMAT_VERSION}, got "
                f"{version}; load it with the release of lazyllm-ext that made it, or export it "
                "again"
            )
        wrong = {field.name for field in fields(cls)}.symmetric_difference(data)
        if wrong:
            names = ", ".join(sorted(wrong))
            raise ValueError(f"{where}: {DESCRIPTION}: fields missing or unknown: {names}")
        description = read_object(cls, data, f"{where}: {DESCRIPTION}")
        if description.kind not in KINDS:
            expected, got = " or ".join(KINDS), shown(description.kind)
            raise ValueError(f"{where}: kind: expected {expected}, got {got}")
        return description


def weights_sha256(model: nn.Module) -> str:
    """A digest of all parameters: names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
