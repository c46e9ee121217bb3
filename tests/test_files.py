"""Files are written whole or not at all; links are followed, devices refused."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lazyllm_ext.files import other_than_file, replacing, write_text

# Ends while it writes, as if it were killed.
_KILLED = """
import os, signal, sys
from lazyllm_ext.files import replacing
with replacing(sys.argv[1]) as scratch:
    scratch.write_text("new, but not all of")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    return path


def test_replaces_what_is_there(path: Path) -> None:
    reader = path.open()
    write_text(path, "new: ü")
    assert path.read_bytes() == "new: ü".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert reader.read() == "old"  # who has opened it reads on
    assert os.listdir(path.parent) == ["file"]


def test_a_new_file_is_as_open_makes_it(tmp_path: Path) -> None:
    write_text(tmp_path / "new", "")
    (tmp_path / "plain").write_text("")
    modes = {name: (tmp_path / name).stat().st_mode for name in ("new", "plain")}
    assert modes["new"] == modes["plain"]


def test_an_error_leaves_the_old_file(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(path) as scratch:  # noqa: PT012
        scratch.write_text("new, but not all of")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]


def test_a_killed_process_leaves_the_old_file(path: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", _KILLED, path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_links_are_followed(path: Path, tmp_path: Path) -> None:
    link, dangling, loop = (tmp_path / name for name in ("link", "dangling", "loop"))
    link.symlink_to("file")
    dangling.symlink_to("none")
    loop.symlink_to("loop")
    write_text(link, "new")
    write_text(dangling, "made")
    assert link.is_symlink()
    assert dangling.is_symlink()
    assert (path.read_text(), (tmp_path / "none").read_text()) == ("new", "made")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write_text(loop, "new")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").symlink_to("/dev/full")
    kinds = {"pipe": "a pipe", "full": "a device", "/dev/full": "a device", ".": "a folder"}
    for name, kind in kinds.items():
        assert other_than_file(tmp_path / name) == kind
        with pytest.raises(OSError) as raised:
            write_text(tmp_path / name, "new")
        assert raised.value.strerror == f"expected a file, got {kind}"
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert (tmp_path / "full").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["full", "pipe"]


@pytest.mark.parametrize("name", ["none/file", "file/file"])
def test_no_such_folder(path: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"No such file or directory|Not a directory"):
        write_text(path.parent / name, "new")
