"""Where data may lie on this machine."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

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


def asset_file(what: str, file: str, root: Root) -> Path:
    """A data set of one file: ``root`` itself or the file in it, then ``OPENWORK_DATA``, then the asset folder.

    Raises:
        DataError: it is nowhere; the places are listed.
    """
    named = [place if place.is_file() else place / file for place in roots(root)]
    assets = assets_folder()
    places = [*named, *([assets / file] if assets else [])]
    for place in places:
        if place.is_file():
            return place
    raise not_found(
        what,
        places or ["no folder was named"],
        f"Pass the folder of {file} as root=, or set {ROOT_VARIABLE} or {ASSETS_VARIABLE}.",
    )


def arrays_of(path: Path, keys: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Arrays of an ``.npz`` file, read without pickle.

    Raises:
        DataError: no such archive, or not these arrays.
    """
    try:
        # An open file of our own: np.load leaves its own one open when the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return tuple(archive[key] for key in keys)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} must be an .npz file with {', '.join(keys)}: {error}") from error
