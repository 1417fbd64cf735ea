"""Run a suite of methods, densities and seeds with its controls; one table, one page, resumable."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from openwork.cli.output import console, say, write_json
from openwork.cli.parse import refuse_pace
from openwork.errors import RecipeError
from openwork.lab.compare import compare, rehearsal
from openwork.lab.executors import Executor, Local
from openwork.lab.planning import plan
from openwork.lab.ray_cluster import RayCluster
from openwork.lab.suite_file import load_suite
from openwork.report.numbers import count, seconds
from openwork.report.suite_page import HEADS, SANITY, SANITY_HEADS, cells_of_row, rows_of, sanity_rows


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("suite", help="a suite file (YAML)")
    add("--setting", action="append", default=[], metavar="NAME", help="only this setting of the suite (repeatable)")
    add("--method", action="append", default=[], metavar="NAME", help="only this method of the suite (repeatable)")
    add("--density", action="append", default=[], type=float, metavar="D", help="only this density (repeatable)")
    add("--seed", action="append", default=[], type=int, metavar="N", help="only this seed (repeatable)")
    add("--out", metavar="DIR", help="folder of the comparison (default: the name of the suite, -comparison)")
    add("--jobs", type=int, metavar="N", help="processes of one thread each (default: one for each core)")
    add("--executor", choices=("local", "ray"), default="local", help="processes of this machine, or actors of Ray")
    add("--ray-address", metavar="HOST:PORT", help="a running Ray cluster (default: one on this machine, for this run)")
    add("--resume", action="store_true", help="go on with a stopped comparison; nothing is lost or run twice")
    add(
        "--merge", action="append", default=[], metavar="DIR",
        help="take the finished cells of another comparison of this suite, say from another machine (repeatable)",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier comparison")
    add("--save-every", type=float, default=20.0, metavar="SECONDS", help="time between checkpoints of a running cell")
    add(
        "--dry-run",
        action="store_true",
        help="check everything, list the cells that are left and an estimate, run none",
    )
    add("--sanity", action="store_true", help="also train every mask shuffled, and every mask on weights drawn anew")
    add("--png", action="store_true", help="also leave every plot as PNG (extra: png)")
    add("--quick", action="store_true", help="a rehearsal: one seed, two densities, one epoch at most")
    add("--quiet", action="store_true", help="print the last line only")


def run(args: argparse.Namespace) -> int:
    """Run it; returns 0 when every cell has a result, 1 when cells failed."""
    if args.resume and args.overwrite:
        raise RecipeError("--resume keeps what is there and --overwrite discards it: choose one of the two")
    if args.ray_address and args.executor != "ray":
        raise RecipeError("--ray-address names a cluster for --executor ray; give both or none")
    refuse_pace(args.save_every)
    out = console(args.json)
    suite = load_suite(Path(args.suite), args.setting).only(args.method, args.density, args.seed)
    suite = rehearsal(suite) if args.quick else suite
    suite = replace(suite, sanity=True) if args.sanity else suite
    folder, merge = Path(args.out or f"{Path(args.suite).stem}-comparison"), [Path(d) for d in args.merge]
    if args.dry_run:
        return _dry_run(out, plan(suite, args.jobs, folder, args.resume, args.overwrite, merge), args)
    command = f"openwork compare {shlex.quote(Path(args.suite).name)}{' --quick' if args.quick else ''}"
    command += " --sanity" if args.sanity else ""
    for option in ("setting", "method", "density", "seed"):
        command += "".join(f" --{option} {shlex.quote(str(value))}" for value in getattr(args, option))
    executor: Executor
    executor = RayCluster(args.jobs, args.ray_address) if args.executor == "ray" else Local(args.jobs)
    try:
        with _Progress(out, args.quiet) as progress:
            results = compare(
                suite, folder, None, args.resume, args.overwrite, args.save_every, progress.watch, command,
                merge, executor, args.png,
            )  # fmt: skip
    finally:
        executor.close()
    if not args.quiet:
        for setting in results["settings"]:
            _print_table(out, results, setting["name"])
    for rule in results["rules"]:
        if not rule["met"] and not args.quiet:
            say(out, f"incomplete: {rule['rule']}{': ' + rule['detail'] if rule['detail'] else ''}")
    failed = sum(r["failed"] for r in results["rows"])
    told = [f"{count(len(results['cells']))} cells", f"{sum(r['collapsed'] for r in results['rows'])} collapsed"]
    label = "complete" if results["complete"] else "INCOMPLETE as a comparison, see the rules in the report"
    say(out, f"{', '.join(told)}, {failed} failed; {label}; {folder / 'report.html'}, {folder / 'results.json'}")
    write_json(args.json, results)
    return 1 if failed else 0


def _dry_run(out: Console, found: dict[str, Any], args: argparse.Namespace) -> int:
    if not args.quiet:
        for cell in found["cells"]:
            say(out, f"  {cell['kind']:<6} {cell['key']}  ({count(cell['steps'])} steps)")
        for gap in found["missing"]:
            say(out, f"  none   {gap['setting']} | {gap['method']} | {gap['density']:g}  ({gap['why']})")
    jobs = args.jobs or os.cpu_count() or 1
    done = f" ({count(found['done'])} more are done already)" if found["done"] else ""
    say(
        out,
        f"dry run: {count(len(found['cells']))} cells{done}, about {seconds(found['seconds'])} of training with {jobs} "
        "processes; nothing was trained or written",
    )
    write_json(args.json, found)
    return 0


def _print_table(out: Console, results: Mapping[str, Any], setting: str) -> None:
    table = Table(title=setting, box=None, pad_edge=False, title_justify="left")
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="right" if i else "left", no_wrap=i > 0)
    for row in rows_of(results, setting):
        if not row["method"].endswith(SANITY):
            table.add_row(*cells_of_row(row), style="dim" if row["role"] == "control" else None)
    out.print(table, markup=False)
    checks = sanity_rows(results, setting)
    if checks:
        table = Table(title=f"{setting}, sanity checks", box=None, pad_edge=False, title_justify="left")
        for i, head in enumerate(SANITY_HEADS):
            table.add_column(head, justify="right" if 2 < i < 7 else "left", no_wrap=i > 0)
        for check in checks:
            table.add_row(*check, style=None if check[-1] == "better" else "dim")
        out.print(table, markup=False)


class _Progress:
    """One bar over all cells on a terminal; lines about trouble everywhere."""

    def __init__(self, out: Console, quiet: bool):
        hidden = quiet or not out.is_terminal or "CI" in os.environ
        columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._out, self._quiet = out, quiet
        self._bar = Progress(
            *columns, TextColumn("{task.description}", markup=False), console=out, disable=hidden, transient=True
        )
        self._task: Any = None

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def watch(self, event: str, what: Mapping[str, Any]) -> None:
        """One event of the pool."""
        if event == "cells":
            self._task = self._bar.add_task("", total=what["total"], completed=what["done"])
            if what["done"] and not self._quiet:
                say(self._out, f"{what['done']} of {what['total']} cells are done already")
        elif event == "done":
            self._bar.advance(self._task)
            if what["status"] != "done" and not self._quiet:
                say(self._out, f"  {what['status']}: {what['key']}{': ' + what['error'] if what['error'] else ''}")
        elif event == "died" and not self._quiet:
            say(self._out, f"  a process ended (code {what['code']}); {what['key']} starts again")
        elif event == "progress":
            step = f"{what['stage']} {what['step']}/{what['steps']}"
            self._bar.update(self._task, description=f"{what['key']}, {step}")
