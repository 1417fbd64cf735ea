"""Files and folders that appear whole or not at all: write beside, flush to disk, rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openwork.errors import FileError


def write_file(path: Path, content: bytes) -> None:
    """Replace a file atomically.

    Raises:
        FileError: the disk is full, the folder is read-only, ...; the old file is then untouched.
    """
    with new_file(path) as part:
        part.write_bytes(content)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The place of a temporary file that replaces ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        FileError: the disk is full, the folder is read-only, ...; the old file is then untouched.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as problem:
        raise FileError(
            f"{path}: could not be written ({problem.strerror or problem}); nothing was changed"
        ) from problem
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        FileError: ``path`` exists and ``overwrite`` is False, or the disk refuses.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileError(f"{path}: exists already; choose another folder or overwrite it (overwrite=True, --overwrite)")
    if path.is_file():
        raise FileError(f"{path}: is a file, a result needs a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / "openwork.json").is_file():
        raise FileError(
            f"{path}: is not empty and holds no openwork.json, so it will not be overwritten; choose another folder"
        )
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


def _swap(work: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        work.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
