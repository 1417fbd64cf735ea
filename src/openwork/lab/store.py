"""What finished cells leave behind: one JSON file each, and a database that can be rebuilt from them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openwork.errors import FileError
from openwork.lab.cells import Cell
from openwork.ship.atomic import write_file

DATABASE = "results.sqlite"
_COLUMNS = ("key", "kind", "setting", "method", "role", "structure", "density", "seed", "lr", "status", "error")
_STAGES = ("pruned", "recalibrated", "finetuned")
_TABLE = (
    "create table if not exists cells (key text primary key, kind text, setting text, method text, role text, "
    "structure text, density real, seed integer, lr real, status text, error text, pruned real, recalibrated real, "
    "finetuned real, targeted real, prunable real, total real, parameters integer, seconds real, record text)"
)


def write_record(folder: Path, cell: Cell, record: Mapping[str, Any]) -> None:
    """Write the JSON of one finished cell; it appears whole or not at all."""
    place = folder / "cells"
    place.mkdir(parents=True, exist_ok=True)
    write_file(place / f"{cell.file}.json", (json.dumps(record, indent=1) + "\n").encode())


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record of a folder by its key.

    Raises:
        FileError: a file that holds no record.
    """
    found = {}
    for file in sorted((folder / "cells").glob("*.json")):
        record = _read(file)
        found[str(record["key"])] = record
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "key" not in record or "status" not in record:
            raise FileError(f"{file}: holds no record of a cell; delete it and run again with --resume")
    except (OSError, ValueError) as problem:
        if isinstance(problem, FileError):
            raise
        raise FileError(f"{file}: cannot be read ({problem}); delete it and run again with --resume") from None
    return record


def read_record(folder: Path, cell: Cell) -> dict[str, Any]:
    """The record of one cell."""
    return _read(folder / "cells" / f"{cell.file}.json")


class Database:
    """The table ``cells`` of ``results.sqlite``, for questions in SQL. The JSON files are what counts.

    Raises:
        FileError: the database cannot be written.
    """

    def __init__(self, folder: Path):
        self.path = folder / DATABASE

    def rebuild(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the table anew; a damaged database is replaced."""
        with self._open(anew=True) as connection:
            connection.execute(_TABLE)
            for record in records.values():
                _insert(connection, record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one finished cell."""
        with self._open() as connection:
            connection.execute(_TABLE)
            _insert(connection, record)

    @contextlib.contextmanager
    def _open(self, anew: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            for file in (self.path, self.path.with_name(f"{DATABASE}-journal")) if anew else ():
                file.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
                yield connection
        except (sqlite3.Error, OSError) as problem:
            raise FileError(
                f"{self.path}: the database cannot be written ({problem}); the JSON files in cells/ are complete, "
                "--resume rebuilds it from them"
            ) from None


def _insert(connection: sqlite3.Connection, record: Mapping[str, Any]) -> None:
    metrics, counts = record.get("metrics") or {}, record.get("counts") or {}
    values = [record.get(c) for c in _COLUMNS]
    values += [(metrics.get(s) or {}).get("accuracy") for s in _STAGES]
    values += [counts.get(c) for c in ("targeted", "prunable", "total")]
    values += [record.get("parameters"), record.get("seconds"), json.dumps(record)]
    connection.execute(f"insert or replace into cells values ({', '.join('?' * len(values))})", values)
