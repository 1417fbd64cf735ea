"""What a comparison would run, and about how long it would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from openwork.data import load_data
from openwork.data.sources import TensorSource
from openwork.lab.accumulation import add_gradients, micro_size
from openwork.lab.cells import Cell, cells_of
from openwork.lab.evaluate import cross_entropy, evaluate_source
from openwork.lab.executors import Local
from openwork.lab.facts import Facts, facts_of
from openwork.lab.merge import fitting
from openwork.lab.place import demand_free, finished, told_of
from openwork.lab.precision import computing_in
from openwork.lab.suite import Suite
from openwork.zoo import build_model
from openwork.zoo.registry import table_options

START = 3.0  # seconds until a process has imported everything


def plan(
    suite: Suite,
    jobs: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    merge: Sequence[Path] = (),
) -> dict[str, Any]:
    """The cells that ``compare`` would run and an estimate of the time, from a few training steps of each setting.

    Args:
        suite: what to run.
        jobs: processes of one thread each; None takes one for each core.
        out: the folder; None leaves it out of the account.
        resume: as for ``compare``; cells that are finished there are counted, not listed.
        overwrite: as for ``compare``.
        merge: as for ``compare``; their finished cells are counted, not listed.

    Returns:
        ``cells`` (each with ``key``, ``kind``, ``steps``), ``done`` (how many need not run), ``missing`` (cells that
        cannot be, with the reason) and ``seconds``.

    Raises:
        OpenworkError: a suite that cannot run, data that is missing, a folder in the way, one that cannot be merged.
    """
    processes = Local(jobs).size
    facts = facts_of(suite)
    cells, told = cells_of(suite, facts), told_of(suite, facts)
    fitting(merge, told)
    if out is not None:
        demand_free(out, told, resume, overwrite)
    done = {key for folder in merge for key in finished(folder, cells)}
    if out is not None and resume and not overwrite:
        done |= set(finished(out, cells))
    left = [c for c in cells if c.key not in done]
    pace = {s.name: _pace(suite, s.name) for s in suite.settings}
    steps = {c.key: steps_of(c, facts[c.setting]) for c in left}
    seconds = sum(steps[c.key] * pace[c.setting][0] + pace[c.setting][1] for c in left)
    return {
        "cells": [{"key": c.key, "kind": c.kind, "steps": steps[c.key]} for c in left],
        "done": len(cells) - len(left),
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
        forward, times = computing_in(setting.budget.precision, model), []
        size = micro_size(setting.budget.batch_size, setting.budget.accumulate)
        for _ in range(4):
            began = time.perf_counter()
            model.zero_grad()
            add_gradients(model, lambda a, b: cross_entropy(forward(a), b), lambda: 0.0, (x, y), len(y), size)
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        x, y = data.test.read(slice(0, min(1000, len(data.test))))
        evaluate_source(model, TensorSource(x, y), None, setting.budget.precision)
        return min(times), 3 * (time.perf_counter() - began) * len(data.test) / len(x)
    finally:
        torch.set_num_threads(threads)
