"""The folder of a comparison: whether it may be written, who holds it, and which of its cells are finished."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openwork.errors import FileError
from openwork.lab.cells import Cell, mask_file, weights_file
from openwork.lab.facts import Facts
from openwork.lab.merge import SUITE
from openwork.lab.store import DATABASE, read_records
from openwork.lab.suite import Suite
from openwork.ship.atomic import write_file

LOCK = ".lock"
OURS = {
    SUITE, LOCK, "cells", "dense", "masks", "work", "workers.log", "results.json", "report.html", "table.csv",
    "table.md", "plots", DATABASE,
}  # fmt: skip
PATIENCE = 10.0  # seconds for the processes of a killed run to notice


def demand_free(out: Path, told: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Refuse a folder that may not be written; ``told`` is what its ``suite.json`` will hold.

    Raises:
        FileError: something else is there, a comparison that is neither continued nor discarded, or one of another
            suite or of other data.
    """
    if out.is_file():
        raise FileError(f"{out}: is a file, a comparison needs a folder")
    there = {p.name for p in out.iterdir() if not p.name.endswith(".part")} if out.is_dir() else set()
    if there and not (resume or overwrite):
        raise FileError(
            f"{out}: exists already; continue it with --resume, discard it with --overwrite, or choose another folder"
        )
    if there - OURS and not (out / SUITE).is_file():
        raise FileError(f"{out}: is not empty and holds no comparison; choose another folder")
    if resume and not overwrite and (out / SUITE).is_file() and _read_suite(out / SUITE) != told:
        raise FileError(
            f"{out}: was made from another suite or other data; resume with the same suite file, or start anew with "
            "--overwrite"
        )


@contextlib.contextmanager
def held(out: Path, told: Mapping[str, Any], resume: bool, overwrite: bool) -> Iterator[tuple[int, ...]]:
    """The folder, checked and held: two comparisons never write into one folder at the same time.

    Raises:
        FileError: see ``demand_free``; or the disk refuses, or another comparison runs in this folder.
    """
    demand_free(out, told, resume, overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / LOCK).open("a")
    except OSError as problem:
        raise FileError(f"{out}: the folder cannot be used ({problem.strerror or problem})") from None
    with handle:
        taken = _hold(handle.fileno(), out)
        if overwrite:
            for name in OURS - {LOCK}:
                place = out / name
                shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        write_file(out / SUITE, (json.dumps(told, indent=1) + "\n").encode())
        yield taken


def told_of(suite: Suite, facts: Mapping[str, Facts]) -> Any:
    """What ``suite.json`` says."""
    told = {"suite": suite.plain(), "data": {name: f.fingerprint for name, f in facts.items()}}
    return json.loads(json.dumps(told))


def _read_suite(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _hold(handle: int, out: Path) -> tuple[int, ...]:
    """Lock the open file; where the system has no such locks, nothing is held."""
    try:
        import fcntl
    except ImportError:
        return ()
    deadline = time.monotonic() + PATIENCE
    while not _taken(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if time.monotonic() > deadline:
            raise FileError(f"{out}: another comparison is running in this folder; wait for its end")
        time.sleep(0.1)
    return (handle,)


def _taken(lock: Callable[[int, int], None], handle: int, how: int) -> bool:
    try:
        lock(handle, how)
    except OSError:
        return False
    return True


def finished(out: Path, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The records of cells that need not run again."""
    found, known = read_records(out), {c.key: c for c in cells}
    kept = {}
    for key, record in found.items():
        cell = known.get(key)
        if cell is None or (record["metrics"] and record["error"] is None and _lost(out, cell)):
            continue
        kept[key] = {**record, "method": cell.method, "structure": cell.structure}  # older folders name it otherwise
    return kept


def _lost(out: Path, cell: Cell) -> bool:
    """Whether what others need of a finished cell is gone."""
    left = [weights_file(out, cell)] if cell.kind == "dense" else []
    left += [mask_file(out, cell)] if cell.keeps_mask else []
    return not all(file.is_file() for file in left)
