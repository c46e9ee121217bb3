"""Checksums of what is in an export: a list of them in the file, and their comparison."""

from __future__ import annotations

import json
import os
import zipfile
from typing import IO

from lazyllm_ext.json_input import decode

from .description import CHECKSUMS, DESCRIPTION

_PART = 1 << 20  # bytes that are read at once


def add_checksums(export: str | os.PathLike[str] | IO[bytes]) -> None:
    """Put the CRC-32 of each member, by name, into an export, as one more member."""
    with zipfile.ZipFile(export, "a") as archive:
        sums = {member.filename: member.CRC for member in archive.infolist()}
        own = next(name for name in sums if name.endswith(f"/extra/{DESCRIPTION}"))
        # Of no date, as torch's own members.
        entry = zipfile.ZipInfo(own.removesuffix(DESCRIPTION) + CHECKSUMS)
        archive.writestr(entry, json.dumps(sums))


def check_members(archive: zipfile.ZipFile, listed: bool) -> None:
    """Read all members, and compare them with their checksums in the archive and in its list.

    Args:
        listed: whether there must be a list; the files of format version 2 have none, but the
            checksums that every zip archive has. torch compares neither.

    Raises:
        ValueError: which member is another one than was written.
        BadZipFile, …: as zipfile raises them where the archive itself is damaged.
    """
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members):
        raise ValueError("expected each member once, got some twice")
    for member in members:
        try:
            with archive.open(member) as opened:
                while opened.read(_PART):
                    pass
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{member.filename}: expected what its checksum says, got a damaged one"
            ) from error
    lists = [member for member in members if member.filename.endswith(f"/extra/{CHECKSUMS}")]
    if not lists and not listed:
        return
    if len(lists) != 1:
        raise ValueError(f"{CHECKSUMS}: expected one, got {len(lists)}")
    sums = decode(archive.read(lists[0]), CHECKSUMS)
    if not isinstance(sums, dict):
        raise ValueError(f"{CHECKSUMS}: expected a JSON object, got {type(sums).__name__}")
    odd = sums.keys() ^ (names - {lists[0].filename})
    if odd:
        raise ValueError(
            f"{CHECKSUMS}: expected one of each member, got too few or too many: "
            f"{', '.join(sorted(odd))}"
        )
    for member in members:
        if member is not lists[0] and sums[member.filename] != member.CRC:
            raise ValueError(
                f"{member.filename}: expected checksum {sums[member.filename]}, got {member.CRC}"
            )
