"""Where data may lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from openwork.errors import DataError

ROOT_VARIABLE = "OPENWORK_DATA"
ASSETS_VARIABLE = "OPENWORK_ASSETS"

Root = str | os.PathLike[str] | None


def roots(root: Root) -> list[Path]:
    """The folders a user named: the argument first, then the environment variable ``OPENWORK_DATA``.

    Raises:
        DataError: ``root`` does not exist.
    """
    if root is not None and not Path(root).expanduser().exists():
        raise DataError(f"root must be an existing folder, got {str(root)!r}")
    named = (root, os.environ.get(ROOT_VARIABLE))
    return [Path(place).expanduser() for place in named if place]


def assets_folder() -> Path | None:
    """The optional folder of real models and data: ``OPENWORK_ASSETS``, else the one beside a checkout."""
    named = os.environ.get(ASSETS_VARIABLE)
    checkout = Path(__file__).resolve().parents[3]
    folder = Path(named).expanduser() if named else checkout.parent / "shared" / "assets"
    return folder if folder.is_dir() else None


def not_found(what: str, places: Iterable[object], install: str) -> DataError:
    """The error for data that is nowhere: every place that was searched, and what would help."""
    searched = "; ".join(map(str, places))
    return DataError(f"{what} was not found. Searched: {searched}. {install}")
