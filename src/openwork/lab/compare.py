"""Run a suite: every cell once, however often it is stopped; then one file of results and one page."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openwork.data import load_data
from openwork.errors import FileError
from openwork.lab.cells import Cell, cells_of, mask_file, weights_file
from openwork.lab.evaluate import cross_entropy, evaluate
from openwork.lab.executors import Executor, Local
from openwork.lab.facts import Facts, facts_of
from openwork.lab.merge import SUITE, fitting, take_in
from openwork.lab.pool import Pool, Watch
from openwork.lab.store import DATABASE, Database, read_records
from openwork.lab.suite import Suite
from openwork.lab.summary import results_of
from openwork.report.png import png as png_of
from openwork.report.png import resvg
from openwork.report.suite_files import suite_files
from openwork.report.suite_page import suite_html
from openwork.ship.atomic import write_file
from openwork.zoo import build_model
from openwork.zoo.registry import table_options

LOCK = ".lock"
OURS = {
    SUITE, LOCK, "cells", "dense", "masks", "work", "workers.log", "results.json", "report.html", "table.csv",
    "table.md", "plots", DATABASE,
}  # fmt: skip
START = 3.0  # seconds until a process has imported everything
PATIENCE = 10.0  # seconds for the processes of a killed run to notice


def compare(
    suite: Suite,
    out: Path,
    jobs: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    save_every: float = 20.0,
    watch: Watch | None = None,
    command: str = "",
    merge: Sequence[Path] = (),
    executor: Executor | None = None,
    png: bool = False,
) -> dict[str, Any]:
    """Run every cell that has no record yet, write the results and return them.

    ``results.json`` holds all of it, ``report.html`` is the page, ``table.csv``, ``table.md`` and ``plots/`` are for
    other programs.

    Args:
        suite: what to run.
        out: the folder; records lie in ``cells/``, dense weights in ``dense/``.
        jobs: processes of one thread each; None takes one for each core.
        resume: go on with what lies in the folder.
        overwrite: discard what lies in the folder.
        save_every: seconds between the checkpoints of a running cell.
        watch: called at the start and the end of cells, see ``pool.Watch``.
        command: how the user called it, for the report.
        executor: where the cells run, ``RayCluster`` for instance; None takes ``jobs`` processes of this machine.
        png: also leave every plot as PNG (extra ``png``).
        merge: folders of other comparisons of this suite whose finished cells are taken, see ``merge.take_in``.

    Raises:
        OpenworkError: a suite that cannot run, data that is missing, a folder in the way or in use.
    """
    executor = executor or Local(jobs)
    if png:
        resvg()
    facts = facts_of(suite)
    cells = cells_of(suite, facts)
    out, told = out.resolve(), _told(suite, facts)
    fitting(merge, told)  # refused before there is a folder
    with _locked(out, told, resume, overwrite) as lock:
        take_in(out, merge, told)
        records = _finished(out, cells)
        database = Database(out)
        database.rebuild(records)
        Pool(out, cells, records, database, executor, save_every, watch, lock).run()
        shutil.rmtree(out / "work", ignore_errors=True)
        results = results_of(suite, facts, [records[c.key] for c in cells], command)
        write_file(out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
        write_file(out / "report.html", suite_html(results).encode())
        shutil.rmtree(out / "plots", ignore_errors=True)
        for name, content in suite_files(results).items():
            (out / name).parent.mkdir(exist_ok=True)
            write_file(out / name, content.encode("utf-8", "replace"))
            if png and name.endswith(".svg"):
                write_file((out / name).with_suffix(".png"), png_of(content))
    return results


def plan(suite: Suite, jobs: int | None = None) -> dict[str, Any]:
    """The cells of a suite and an estimate of the time, from a few training steps of each setting.

    Raises:
        OpenworkError: a suite that cannot run, data that is missing.
    """
    processes = Local(jobs).size
    facts = facts_of(suite)
    cells = cells_of(suite, facts)
    pace = {s.name: _pace(suite, s.name) for s in suite.settings}
    steps = {c.key: steps_of(c, facts[c.setting]) for c in cells}
    seconds = sum(steps[c.key] * pace[c.setting][0] + pace[c.setting][1] for c in cells)
    return {
        "cells": [{"key": c.key, "kind": c.kind, "steps": steps[c.key]} for c in cells],
        "missing": [
            {"setting": s, "method": name, "density": d, "why": why}
            for s, f in facts.items()
            for (name, d), why in f.small.items()
            if isinstance(why, str) and "small" in suite.controls
        ],
        "seconds": round(START + seconds / processes, 1),
    }


def steps_of(cell: Cell, facts: Facts) -> int:
    """How many optimiser steps a cell takes, about."""
    whole = facts.dense_steps + facts.finetune_steps
    if cell.kind == "dense":
        return 0 if cell.job.checkpoint else facts.dense_steps
    if cell.start is not None or cell.job.checkpoint is not None:
        return facts.finetune_steps
    schedule = cell.job.build_recipe(whole).schedule
    if getattr(schedule, "rewind", "none") != "none":
        return facts.dense_steps * (1 + int(getattr(schedule, "rounds", 1)))
    return whole


def _pace(suite: Suite, name: str) -> tuple[float, float]:
    """Seconds of one training step, and of measuring a model three times, on one thread."""
    setting = next(s for s in suite.settings if s.name == name)
    data = load_data(setting.data, root=setting.root, **setting.data_options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options = {**table_options(setting.model, data.sizes), **setting.model_options}
        model = build_model(setting.model, data.input_shape, data.classes, **options)
        x, y = data.train.read(slice(0, setting.budget.batch_size))
        times = []
        for _ in range(4):
            began = time.perf_counter()
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        x, y = data.test.read(slice(0, min(1000, len(data.test))))
        evaluate(model, x, y)
        return min(times), 3 * (time.perf_counter() - began) * len(data.test) / len(x)
    finally:
        torch.set_num_threads(threads)


def _finished(out: Path, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The records of cells that need not run again; what is left of their checkpoints goes."""
    found, known = read_records(out), {c.key: c for c in cells}
    kept = {}
    for key, record in found.items():
        cell = known.get(key)
        if cell is None or (record["metrics"] and record["error"] is None and _lost(out, cell)):
            continue
        kept[key] = {
            **record,
            "method": cell.method,
            "structure": cell.structure,
        }  # older folders may name it otherwise
        shutil.rmtree(out / "work" / cell.file, ignore_errors=True)
    return kept


def _lost(out: Path, cell: Cell) -> bool:
    """Whether what others need of a finished cell is gone."""
    left = [weights_file(out, cell)] if cell.kind == "dense" else []
    left += [mask_file(out, cell)] if cell.keeps_mask else []
    return not all(file.is_file() for file in left)


@contextlib.contextmanager
def _locked(out: Path, told: Mapping[str, Any], resume: bool, overwrite: bool) -> Iterator[tuple[int, ...]]:
    """The folder, checked and held: two comparisons never write into one folder at the same time."""
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
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / LOCK).open("a")
    except OSError as problem:
        raise FileError(f"{out}: the folder cannot be used ({problem.strerror or problem})") from None
    with handle:
        held = _hold(handle.fileno(), out)
        if overwrite:
            for name in OURS - {LOCK}:
                place = out / name
                shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        write_file(out / SUITE, (json.dumps(told, indent=1) + "\n").encode())
        yield held


def _told(suite: Suite, facts: Mapping[str, Facts]) -> Any:
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


def rehearsal(suite: Suite) -> Suite:
    """The quick variant under a name that says so."""
    return replace(suite.quick(), name=f"{suite.name} (quick)")
