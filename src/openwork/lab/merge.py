"""Take the finished cells of other comparisons of the same suite: how several machines share one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openwork.errors import FileError
from openwork.lab.store import read_records
from openwork.ship.atomic import write_file

SUITE = "suite.json"
PARTS = ("densities", "seeds")
"""Of these another comparison may hold fewer: no cell depends on the others."""


def take_in(out: Path, others: Sequence[Path], told: Mapping[str, Any]) -> int:
    """Copy the cells, dense weights and masks that ``out`` lacks; how many cells came.

    The others may hold fewer settings, densities or seeds, for instance one machine each, and fewer methods where the
    new ones prune structures that were there; everything else about the suite and the data of their settings must be
    equal. Nothing is copied before all of them are found to fit.

    Args:
        out: the folder of the comparison.
        others: folders of comparisons, finished or not.
        told: what ``suite.json`` of ``out`` holds.

    Raises:
        FileError: a folder without a comparison, of another suite, or of other data; two different records of a cell.
    """
    known = {p.name for p in (out / "cells").glob("*.json")} if (out / "cells").is_dir() else set()
    fresh = {name: file for name, file in fitting(others, told).items() if name not in known}
    for name, file in fresh.items():
        for kind in ("dense", "masks"):
            left = file.parent.parent / kind / f"{name.removesuffix('.json')}.safetensors"
            if left.is_file():
                _copy(left, out / kind / left.name)
        _copy(file, out / "cells" / name)
    return len(fresh)


def fitting(others: Sequence[Path], told: Mapping[str, Any]) -> dict[str, Path]:
    """The records of all cells of these folders by name; see ``take_in``, which copies them.

    Raises:
        FileError: see ``take_in``.
    """
    coming: dict[str, Path] = {}
    for other in others:
        _refuse_foreign(other, told)
        read_records(other)  # refuses damaged ones
        for file in sorted((other / "cells").glob("*.json")):
            twice = coming.get(file.name)
            if twice is not None and _told(twice) != _told(file):
                raise FileError(f"{file}: differs from {twice}, of the same cell; merge only one of the two folders")
            coming[file.name] = file
    return coming


def _refuse_foreign(other: Path, told: Mapping[str, Any]) -> None:
    try:
        theirs = json.loads((other / SUITE).read_text(encoding="utf-8"))
        suite, data = theirs["suite"], theirs["data"]
        settings = {s["name"]: s for s in suite["settings"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise FileError(f"{other}: holds no comparison to merge; give the folder of an openwork compare") from None
    ours = {s["name"]: s for s in told["suite"]["settings"]}
    rest = [k for k in told["suite"] if k not in ("settings", "methods", *PARTS) and suite.get(k) != told["suite"][k]]
    rest += [] if _same_or_fewer(suite.get("methods"), told["suite"]["methods"], settings) else ["methods"]
    rest += [k for k in PARTS if not isinstance(suite.get(k), list) or not set(suite[k]) <= set(told["suite"][k])]
    lost = [f"setting {n!r}" for n, s in settings.items() if ours.get(n) != s]
    moved = [f"the data of {n!r}" for n in settings if n in ours and data.get(n) != told["data"].get(n)]
    if rest + lost + moved:
        raise FileError(
            f"{other}: was made from another suite or other data ({', '.join(rest + lost + moved)}); merge comparisons "
            "of one suite file"
        )


def _same_or_fewer(theirs: Any, ours: Sequence[Mapping[str, Any]], settings: Iterable[str]) -> bool:
    """Whether all methods of theirs are ours, and the controls, named after the order of structures, are the same."""
    if not isinstance(theirs, list) or any(m not in ours for m in theirs):
        return False

    def structures(methods: Sequence[Mapping[str, Any]], setting: str) -> list[Any]:
        mine = [m for m in methods if not m["settings"] or setting in m["settings"]]
        return list(dict.fromkeys(json.dumps([m["structure"], m["where"]], sort_keys=True) for m in mine))

    return all(structures(theirs, name) == structures(ours, name) for name in settings)


def _told(file: Path) -> Any:
    """A record without what depends on the machine and the moment."""
    record = json.loads(file.read_text(encoding="utf-8"))
    return {k: record.get(k) for k in ("key", "status", "metrics", "counts", "lr")}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, source.read_bytes())
