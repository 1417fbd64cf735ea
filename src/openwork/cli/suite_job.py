"""One run of a suite file as a job of its own, for several processes or an accelerator."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from openwork.cli.parse import options_of
from openwork.engine.budget import ALL
from openwork.errors import RecipeError
from openwork.lab import Job
from openwork.lab.suite import job_of, starts_trained
from openwork.lab.suite_file import load_suite

T = TypeVar("T")
_OF_THE_FILE = ("model", "data", "structure", "options", "recipe", "at", "include", "exclude", "min_units", *ALL)


def suite_job_of(args: argparse.Namespace, budget: Mapping[str, Any]) -> Job:
    """The job of one setting, method and density of ``--suite``.

    What the suite has only one of need not be named. ``budget`` (fields that were given) and the options on places,
    on the model and on the data change what the file says; its seeds, controls and tuning are not used.

    Raises:
        FileError: as for ``load_suite``.
        RecipeError: as for ``load_suite``; a choice that is missing, or an option that would not be heeded.
    """
    given = [p for p in _OF_THE_FILE if getattr(args, p) is not None and getattr(args, p) != []]
    if given:
        words = ", ".join(f"--{'set' if p == 'options' else p.replace('_', '-')}" for p in given)
        raise RecipeError(f"--suite names the model, the data and the methods; leave out {words}, or change the file")
    suite = replace(load_suite(Path(args.suite), [args.setting] if args.setting else []), tune_at=None)
    suite = suite.only([args.method] if args.method else [], [] if args.density is None else [args.density])
    setting = _only("setting", {s.name: s for s in suite.settings})
    contestant = _only("method", {m.name: m for m in suite.taking_part(setting)})
    density = _only("density", {f"{d:g}": d for d in suite.densities})
    job = job_of(setting, contestant, density, args.seed)
    trained = setting.checkpoint if starts_trained(setting, contestant, density) else None
    return replace(
        job,
        budget=replace(job.budget, **budget),
        model_options={**job.model_options, **options_of(args.model_option)},
        data_options={**job.data_options, **options_of(args.data_option)},
        compact=not args.no_compact,
        root=args.root or setting.root,
        checkpoint=args.checkpoint or trained,
    )


def _only(what: str, named: Mapping[str, T]) -> T:
    names: Sequence[str] = list(named)
    if len(names) != 1:
        raise RecipeError(
            f"--suite: --{what} must name one of {', '.join(map(repr, names)) or 'none'}, since prune runs one of them"
        )
    return named[names[0]]
