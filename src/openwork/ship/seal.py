"""The index of a packed folder: signed by a checksum, and holding that of the weights beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwork.core.strict_json import dumps
from openwork.errors import FileError
from openwork.ship.packed import PackedFile, sum_of_index

SEAL, WEIGHTS = "sha256", "weights"


def sealed(data: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Plain data of an index, with the checksum of the weights and its own.

    That of the weights is the one of the packed file's header, which holds one of every tensor: no byte is read twice.
    """
    plain = json.loads(dumps({**data, WEIGHTS: PackedFile(weights).sha256}))
    return {**plain, SEAL: sum_of_index(plain)}


def demand_seal(place: Path, data: Mapping[str, Any]) -> None:
    """Refuse an index that is not the one that was written; those of older versions have no checksum.

    Raises:
        FileError: the checksum differs.
    """
    if SEAL in data and data[SEAL] != sum_of_index(data):
        raise FileError(f"{place}: the checksum of the index differs; it was changed or is corrupt, export again")


def demand_same(file: PackedFile, data: Mapping[str, Any], place: Path) -> None:
    """Refuse weights of another export.

    Raises:
        FileError: the packed file is not the one that the index was written for.
    """
    if WEIGHTS in data and data[WEIGHTS] != file.sha256:
        raise FileError(
            f"{file.path}: is not the file that {place.name} was written for, its checksum differs; put back the one "
            "of this export, or export again"
        )
