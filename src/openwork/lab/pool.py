"""A pool of workers with one thread each; one that dies loses nothing but its time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openwork.lab.cells import Cell, mask_file, weights_file
from openwork.lab.executors import Executor, Worker
from openwork.lab.search import LR, suggest
from openwork.lab.store import Database, read_record, write_record
from openwork.lab.worker import Task, blank

MOST_DEATHS = 3
Watch = Callable[[str, Mapping[str, Any]], None]
"""Called as (event, what): ``cells`` once, then ``start``, ``progress``, ``done``, ``died`` with the key of a cell."""


@dataclass
class _Slot:
    """One worker and the cell it works on."""

    process: Worker
    cell: Cell | None = None


@dataclass
class Pool:
    """Runs cells in their order, each as soon as all that it needs is there.

    ``records`` holds what is done already and grows with every finished cell.
    """

    folder: Path
    cells: Sequence[Cell]
    records: dict[str, dict[str, Any]]
    database: Database
    executor: Executor
    save_every: float
    watch: Watch | None = None
    keep_open: tuple[int, ...] = ()
    """File descriptors that every process holds open too: the lock of the folder lasts as long as any of them."""
    pending: list[Cell] = field(default_factory=list)
    _slots: list[_Slot] = field(default_factory=list)
    _events: queue.Queue[tuple[_Slot, dict[str, Any] | None]] = field(default_factory=queue.Queue)
    _deaths: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Until every cell has a record."""
        self.pending = [c for c in self.cells if c.key not in self.records]
        self._tell("cells", total=len(self.cells), done=len(self.cells) - len(self.pending))
        try:
            while self.pending or any(s.cell for s in self._slots):
                self._hand_out()
                if any(s.cell for s in self._slots):
                    self._listen()
        finally:
            for slot in self._slots:
                slot.process.kill()
            for slot in self._slots:
                slot.process.wait()

    def _hand_out(self) -> None:
        for cell in list(self.pending):
            if any(need not in self.records for need in cell.needs):
                continue
            task = self._task(cell)
            if isinstance(task, str):
                self.pending.remove(cell)
                record = {**blank(cell, None), "status": "failed", "error": task, "seconds": 0.0}
                write_record(self.folder, cell, record)
                self._finished(cell, record)
                continue
            slot = self._free()
            if slot is None:
                return
            self.pending.remove(cell)
            slot.cell = cell
            self._tell("start", key=cell.key, pid=slot.process.pid)
            slot.process.give(task)

    def _task(self, cell: Cell) -> Task | str:
        """What a worker needs to know, or why the cell cannot run."""
        weights = None
        if cell.start is not None:
            dense = next(c for c in self.cells if c.key == cell.start)
            weights = weights_file(self.folder, dense)
            if not weights.is_file():
                told = self.records[cell.start]
                return f"its dense training {told['status']}: {told.get('error')}"
        mask = None
        if cell.mask_of is not None:
            mask = mask_file(self.folder, next(c for c in self.cells if c.key == cell.mask_of))
            if not mask.is_file():
                told = self.records[cell.mask_of]
                return f"the run whose mask it takes {told['status']}: {told.get('error')}"
        lr, tried = cell.lr, [self.records[key] for key in cell.tuned]
        values: dict[str, float] = {}
        if cell.search is not None:
            values = suggest(cell.search, tried, f"{cell.setting} {cell.method} {cell.density}")
        elif cell.tuned:
            best = chosen(tried)
            if best is None:
                return f"every learning rate of the grid failed; the first: {tried[0].get('error')}"
            values = best.get("tried") or {LR: float(best["lr"])}
        if values:
            lr = values[LR]
        return Task(cell, self.folder, weights, lr, self.save_every, mask, values)

    def _free(self) -> _Slot | None:
        for slot in self._slots:
            if slot.cell is None:
                return slot
        if len(self._slots) >= self.executor.size:
            return None
        slot = _Slot(self._process())
        self._slots.append(slot)
        threading.Thread(target=self._read, args=(slot,), daemon=True).start()
        return slot

    def _process(self) -> Worker:
        return self.executor.start(self.folder, self.keep_open)

    def _read(self, slot: _Slot) -> None:
        for message in slot.process.messages():
            self._events.put((slot, message))
        self._events.put((slot, None))

    def _listen(self) -> None:
        slot, message = self._events.get()
        cell = slot.cell
        if message is None:
            self._buried(slot)
        elif "done" in message and cell is not None:
            slot.cell = None
            self._finished(cell, read_record(self.folder, cell))
        elif cell is not None:
            self._tell("progress", key=cell.key, **message)

    def _buried(self, slot: _Slot) -> None:
        """A process has ended; its cell starts again, or goes on from its checkpoint, in another."""
        code, cell = slot.process.wait(), slot.cell
        self._slots.remove(slot)
        if cell is None:
            return
        if (self.folder / "cells" / f"{cell.file}.json").is_file():
            self._finished(cell, read_record(self.folder, cell))
            return
        deaths = self._deaths[cell.key] = self._deaths.get(cell.key, 0) + 1
        self._tell("died", key=cell.key, code=code)
        if deaths < MOST_DEATHS:
            self.pending.insert(0, cell)
            return
        error = f"its process ended {deaths} times without a result, the last time with code {code}; see workers.log"
        record = {**blank(cell, None), "status": "failed", "error": error, "seconds": 0.0}
        write_record(self.folder, cell, record)
        self._finished(cell, record)

    def _finished(self, cell: Cell, record: dict[str, Any]) -> None:
        self.records[cell.key] = record
        self.database.add(record)
        self._tell("done", key=cell.key, status=record["status"], error=record.get("error"))

    def _tell(self, event: str, **what: Any) -> None:
        if self.watch is not None:
            self.watch(event, what)


def chosen(tried: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The record with the best accuracy on the validation split, then the lower loss, then the lower rate."""

    def worth(record: Mapping[str, Any]) -> tuple[float, float, float]:
        found = record["metrics"]["finetuned"]
        loss = found["loss"]
        return found["accuracy"], -float("inf") if loss is None else -loss, -record["lr"]

    finished = [r for r in tried if r["status"] != "failed"]
    return max(finished, key=worth) if finished else None
