"""Files that appear whole or not at all: write beside, flush to disk, rename."""

from __future__ import annotations

import os
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
        sync_folder(path.parent)
    except OSError as problem:
        raise FileError(
            f"{path}: could not be written ({problem.strerror or problem}); nothing was changed"
        ) from problem
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
