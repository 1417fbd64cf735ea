"""Files and folders appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openwork.errors import FileError
from openwork.ship import atomic
from openwork.ship.atomic import new_folder, write_file


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_replaced_whole(tmp_path):
    write_file(tmp_path / "a", b"one")
    write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_file(tmp_path / "a", b"one")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FileError, match="could not be written .No space left on device.; nothing was changed"):
        write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failing_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "r", overwrite=False) as work:
        (work / "x").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    with new_folder(tmp_path / "r", overwrite=False) as work:
        (work / "openwork.json").write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FileError, match="r: could not be written"), new_folder(tmp_path / "r", overwrite=True) as work:
        (work / "openwork.json").write_text("new")
    assert (tmp_path / "r" / "openwork.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    with new_folder(tmp_path / "r", overwrite=False) as work:
        (work / "openwork.json").write_text("old")
    rename = Path.rename

    def refuse(self, target):
        if self.suffix == ".part":
            full_disk()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)  # a system that cannot exchange two names
    with pytest.raises(FileError, match="No space left"), new_folder(tmp_path / "r", overwrite=True) as work:
        (work / "openwork.json").write_text("new")
    assert (tmp_path / "r" / "openwork.json").read_text() == "old"


DIES = """
import os, signal, sys
from pathlib import Path
from openwork.ship.atomic import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as work:
    (work / "half").write_text("x")
    print(work.name, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(tmp_path):
    path = tmp_path / "r"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", DIES, str(path)], **pipes) as other:
        left = tmp_path / other.stdout.readline().strip()
        with new_folder(path, overwrite=False) as work:
            (work / "openwork.json").write_text("mine")
        assert (left / "half").is_file()
        other.stdin.close()
        assert other.wait() == -signal.SIGKILL
    kept = ["r2", f"{left.name[1:]}x", left.name.replace("-", "-A"), left.name.replace(".r.", ".r.0")]
    for name in kept:  # of somebody else, or of another machine
        (tmp_path / name).mkdir()
    with new_folder(path, overwrite=True) as work:
        assert not left.exists()
        (work / "openwork.json").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "r"])


def test_a_folder_that_is_taken_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, seen = atomic._lock, []

    def late(folder, wait):
        seen.append(folder)
        if len(seen) == 1:
            folder.rmdir()
        return lock(folder, wait)

    monkeypatch.setattr(atomic, "_lock", late)
    with new_folder(tmp_path / "r", overwrite=False) as work:
        (work / "x").write_text("x")
    assert len(seen) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_what_is_in_the_way_is_refused(tmp_path):
    (tmp_path / "r").mkdir()
    with (
        pytest.raises(FileError, match="r: exists already; choose another folder or overwrite it"),
        new_folder(tmp_path / "r", False),
    ):
        pass
    (tmp_path / "r" / "thesis.tex").write_text("precious")
    with (
        pytest.raises(FileError, match="holds no openwork.json, so it will not be overwritten"),
        new_folder(tmp_path / "r", True),
    ):
        pass
    assert (tmp_path / "r" / "thesis.tex").read_text() == "precious"
    (tmp_path / "f").write_text("x")
    with pytest.raises(FileError, match="f: is a file, a result needs a folder"), new_folder(tmp_path / "f", True):
        pass


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(FileError, match="could not be created"), new_folder(tmp_path / "f" / "r", False):
        pass
