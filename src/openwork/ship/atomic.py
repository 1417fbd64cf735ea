"""Folders that appear whole or not at all: write beside, flush to disk, exchange."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openwork.core.files import new_file as new_file
from openwork.core.files import sync_folder
from openwork.core.files import write_file as write_file
from openwork.errors import FileError

PART = ".part"


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    It is locked as long as this process works on it. What killed processes of this machine left of theirs for the same
    ``path`` goes first: the system has given up their locks. Where there are no such locks, nothing is removed.

    Raises:
        FileError: ``path`` exists and ``overwrite`` is False, or the disk refuses.
    """
    path = Path(path)
    refuse_place(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        work, lock = _locked_folder(path)
    except OSError as problem:
        raise FileError(f"{path}: could not be created ({problem.strerror or problem})") from problem
    try:
        yield work
        for file in work.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        work.chmod(0o755)
        _swap(work, path)
    except OSError as problem:
        raise FileError(
            f"{path}: could not be written ({problem.strerror or problem}); nothing was changed"
        ) from problem
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder(path: Path) -> tuple[Path, int | None]:
    """A new temporary folder for ``path``, and the open handle that holds its lock."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=PART, dir=path.parent))
        lock = _lock(work, wait=True)
        if work.is_dir():
            return work, lock
        if lock is not None:  # another process took the folder for left before it was locked
            os.close(lock)


def _remove_left(path: Path) -> None:
    """Remove temporary folders of ``path`` that no process of this machine holds."""
    pattern = re.compile(re.escape(_prefix(path)) + r"[a-z0-9_]+" + re.escape(PART))
    with suppress(OSError):
        for place in [p for p in path.parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir()]:
            lock = _lock(place, wait=False)
            if lock is not None:
                shutil.rmtree(place, ignore_errors=True)
                os.close(lock)


def _prefix(path: Path) -> str:
    """How names of temporary folders begin: some file systems keep locks from other machines, whose names differ."""
    return f".{path.name}.{zlib.crc32(socket.gethostname().encode()):08x}-"


def _lock(folder: Path, wait: bool) -> int | None:
    """The handle of a folder that is locked by it, until it is closed or its process ends; None without the lock."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def refuse_place(path: Path, overwrite: bool) -> None:
    """Refuse what ``new_folder`` would, before any work is done.

    Raises:
        FileError: something is there that must not be replaced, or the place cannot be written.
    """
    if path.exists() and not overwrite:
        raise FileError(f"{path}: exists already; choose another folder or overwrite it (overwrite=True, --overwrite)")
    if path.is_file():
        raise FileError(f"{path}: is a file, a result needs a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / "openwork.json").is_file():
        raise FileError(
            f"{path}: is not empty and holds no openwork.json, so it will not be overwritten; choose another folder"
        )
    there = next((p for p in path.absolute().parents if p.exists()), None)
    if there is not None and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise FileError(f"{path}: could not be created, {there} is not a folder that can be written")


def _swap(work: Path, path: Path) -> None:
    """Put ``work`` in the place of ``path``; in one step where the system can exchange two names."""
    if not path.exists():
        work.rename(path)
    elif not _exchanged(work, path):
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        try:
            work.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at once (Linux); False where that is not known, and nothing has happened."""
    with suppress(OSError, AttributeError):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        names = os.fsencode(one), os.fsencode(other)
        return ctypes.CDLL(None).renameat2(here, names[0], here, names[1], exchange) == 0
    return False
