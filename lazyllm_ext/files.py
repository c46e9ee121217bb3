"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def other_than_file(path: str | os.PathLike[str]) -> str | None:
    """What stands at `path`, or where its links lead, that is no file: "a device", "a folder".

    None for a file, and where nothing is.

    Raises:
        OSError: that cannot be found out.
    """
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except FileNotFoundError:
        return None


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, of the same name, whose file takes the place of `path` at the end.

    Until the block ends without an error, and if the process is killed, `path` stays as it was.
    Then the new file is on the disk before it is in place. Links are followed, and the new file has
    the permissions of the one that it replaces.

    Raises:
        OSError: there is something else than a file, or the system does not allow it.
    """
    kind = other_than_file(path)
    if kind is not None:
        raise OSError(errno.EINVAL, f"expected a file, got {kind}", os.fspath(path))
    target = Path(os.path.realpath(path))
    # A folder, so that the file has its own name, which formats repeat inside.
    with tempfile.TemporaryDirectory(prefix=".lazyllm-", dir=target.parent) as folder:
        scratch = Path(folder) / target.name
        yield scratch
        _to_disk(scratch)
        if target.exists():
            scratch.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(scratch, target)
    _to_disk(target.parent)  # which name stands for which file


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of UTF-8 text, whole or not at all.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _to_disk(path: Path) -> None:
    """Have the system write what it holds of a file or folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
