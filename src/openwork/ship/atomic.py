"""Folders that appear whole or not at all: write beside, flush to disk, exchange."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openwork.core.files import new_file as new_file
from openwork.core.files import sync_folder
from openwork.core.files import write_file as write_file
from openwork.errors import FileError


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        FileError: ``path`` exists and ``overwrite`` is False, or the disk refuses.
    """
    path = Path(path)
    refuse_place(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
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
