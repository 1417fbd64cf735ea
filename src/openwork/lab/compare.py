"""Run a suite: every cell once, however often it is stopped; then one file of results and one page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openwork.lab.cells import cells_of
from openwork.lab.executors import Executor, Local
from openwork.lab.facts import facts_of
from openwork.lab.merge import fitting, take_in
from openwork.lab.place import finished, held, told_of
from openwork.lab.pool import Pool, Watch
from openwork.lab.store import Database
from openwork.lab.suite import Suite
from openwork.lab.summary import results_of
from openwork.report.png import png as png_of
from openwork.report.png import resvg
from openwork.report.suite_files import suite_files
from openwork.report.suite_page import suite_html
from openwork.ship.atomic import write_file


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
    out, told = out.resolve(), told_of(suite, facts)
    fitting(merge, told)  # refused before there is a folder
    with held(out, told, resume, overwrite) as lock:
        take_in(out, merge, told)
        records = finished(out, cells)
        for cell in cells:
            if cell.key in records:  # what is left of their checkpoints
                shutil.rmtree(out / "work" / cell.file, ignore_errors=True)
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


def rehearsal(suite: Suite) -> Suite:
    """The quick variant under a name that says so."""
    return replace(suite.quick(), name=f"{suite.name} (quick)")
