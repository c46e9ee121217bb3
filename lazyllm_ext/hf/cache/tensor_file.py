"""Named tensors in a safetensors file, with checksums, read into memory of their own.

safetensors' own reader maps a file: tensors change when the file does, and a process that reads
where a shorter file ends is killed. So what is read here is copied, and checked while it is.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from lazyllm_ext.files import replacing
from lazyllm_ext.json_input import InputError, checked, decode, read_object, wrong

_CHECKSUMS = "checksums"  # the field of the metadata that holds them
_METADATA = "__metadata__"  # what the format calls the metadata, here and among the checksums
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_PART = 1 << 20  # bytes: what has been read is still in the processor's cache when it is checked
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


@checked()
class _Described:
    """What the header says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


@dataclass(frozen=True)
class _Extent:
    """A tensor's, checked; `begin` and `end` in bytes after the header."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    begin: int
    end: int


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write contiguous tensors and texts to a safetensors file, whole or not at all.

    Its metadata gets one more field, `checksums`: the CRC-32 of each tensor with its name, dtype
    and shape, and of the other metadata.

    Raises:
        OSError: the file cannot be written.
        SafetensorError: nor can it be written by safetensors.
    """
    own = {name: tensor.cpu() for name, tensor in tensors.items()}
    sums = {name: _checksum(name, tensor) for name, tensor in own.items()}
    sums[_METADATA] = _checksum_of_texts(metadata)
    with replacing(path) as scratch:
        save_file(own, scratch, {**metadata, _CHECKSUMS: json.dumps(sums)})


class TensorFile:
    """A safetensors file that is open for reading; `read` gives its tensors.

    Attributes:
        metadata: its texts, without checksums.

    Raises:
        ValueError: another or a damaged file.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        header, self._begin, data_size = _read_header(file)
        texts = _texts(header.pop(_METADATA, {}))
        self._sums = _read_checksums(texts.pop(_CHECKSUMS, None))
        self.metadata = texts
        self._places = _places(header, data_size)

    @property
    def has_checksums(self) -> bool:
        """Whether damage shows that leaves the file a readable one."""
        return self._sums is not None

    def read(self, device: torch.device) -> dict[str, Tensor]:
        """All tensors by name, where there are checksums after they have been checked.

        Raises:
            ValueError: one is not what was written, or the file has become shorter meanwhile.
        """
        sums = self._sums
        if sums is not None:
            _compare(_METADATA, _checksum_of_texts(self.metadata), sums)
            unknown = sums.keys() ^ {_METADATA, *(place.name for place in self._places)}
            if unknown:
                raise ValueError(
                    f"{_CHECKSUMS}: expected one of each tensor, got too few or too many: "
                    f"{', '.join(sorted(unknown))}"
                )
        self._file.seek(self._begin)
        tensors = {}
        for place in self._places:  # in the order of the file
            tensor, got = _read_tensor(self._file, place)
            if sums is not None:
                _compare(place.name, got, sums)
            if place.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
                raise ValueError(f"{place.name}: expected bytes of 0 and 1, got others")
            tensors[place.name] = tensor.to(device)
        return tensors


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int, int]:
    """The header, the place of the first byte after it, and the number of bytes from there on."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    longest = min(size - 8, _LONGEST_HEADER)
    if length > longest:
        raise ValueError(f"header: expected at most {longest} bytes, got {length}")
    header = decode(file.read(length), "header")
    if not isinstance(header, dict):
        raise wrong("header", "a JSON object", header)
    return header, 8 + length, size - 8 - length


def _texts(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise wrong(_METADATA, "a JSON object of texts", metadata)
    return metadata


def _read_checksums(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    sums = decode(text, _CHECKSUMS)
    if not isinstance(sums, dict):
        raise wrong(_CHECKSUMS, "a JSON object", sums)
    return sums


def _places(header: Mapping[str, Any], data_size: int) -> list[_Extent]:
    """Where the tensors are, in the order of the file, which they fill."""
    places = []
    for name, data in header.items():
        entry = read_object(_Described, data, name)
        if entry.dtype not in _DTYPES:
            raise wrong("dtype", f"one of {', '.join(_DTYPES)}", entry.dtype, name)
        if min(entry.shape, default=0) < 0:
            raise wrong("shape", "sizes of 0 or more", entry.shape, name)
        if len(entry.data_offsets) != 2:
            raise wrong("data_offsets", "where it begins and ends", entry.data_offsets, name)
        places.append(_Extent(name, _DTYPES[entry.dtype], entry.shape, *entry.data_offsets))
    places.sort(key=lambda place: (place.begin, place.end))
    filled = 0
    for place in places:
        end = filled + math.prod(place.shape) * place.dtype.itemsize
        if (place.begin, place.end) != (filled, end):
            raise InputError(
                "data_offsets",
                f"expected [{filled}, {end}], for {place.dtype} of shape {place.shape} after the "
                f"tensors before it, got [{place.begin}, {place.end}]",
                place.name,
            )
        filled = end
    if filled != data_size:
        raise ValueError(f"expected {filled} bytes of tensors, got {data_size}")
    return places


def _read_tensor(file: BinaryIO, place: _Extent) -> tuple[Tensor, int]:
    """A tensor in memory of its own, and its checksum."""
    tensor = torch.empty(place.shape, dtype=place.dtype)
    view, got = _bytes_of(tensor), _checksum_of_kind(place.name, place.dtype, place.shape)
    for begin in range(0, len(view), _PART):
        part = view[begin : begin + _PART]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise ValueError(f"{place.name}: expected {len(view)} bytes, got fewer")
        got = zlib.crc32(part, got)
    return tensor, got


def _checksum(name: str, tensor: Tensor) -> int:
    kind = _checksum_of_kind(name, tensor.dtype, list(tensor.shape))
    return zlib.crc32(_bytes_of(tensor), kind)


def _checksum_of_kind(name: str, dtype: torch.dtype, shape: list[int]) -> int:
    return zlib.crc32(f"{name} {dtype} {shape}".encode())


def _checksum_of_texts(texts: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(texts, sort_keys=True).encode())


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, which they are."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def _compare(name: str, got: int, expected: Mapping[str, Any]) -> None:
    if expected.get(name) != got:
        raise ValueError(f"{name}: expected checksum {expected.get(name)}, got {got}")
