"""A comparison as files for other programs: CSV, Markdown and one SVG for each chart."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from openwork.report.curves import cost_charts, density_charts, standalone
from openwork.report.suite_page import SANITY, SANITY_HEADS, compare_table, rows_of, sanity_rows
from openwork.report.table import Column, markdown_table

PLAIN = ("setting", "method", "role", "structure", "density", "seeds", "collapsed", "failed", "lr", "parameters")
MEASURED = ("macs", "bytes", "milliseconds", "training_macs", "ece", "seconds")
MOMENTS = ("pruned", "recalibrated", "finetuned", "drop")


def suite_files(results: Mapping[str, Any]) -> dict[str, str]:
    """``table.csv``, ``table.md`` and ``plots/*.svg``: file name -> content.

    Accuracies in the CSV are shares with their sample standard deviation; empty cells are unknown. A chart that is
    refused for want of a control has no file.
    """
    made = {"table.csv": _csv(results), "table.md": _markdown(results)}
    for setting in results["settings"]:
        name = str(setting["name"])
        rows = [r for r in rows_of(results, name) if not r["method"].endswith(SANITY)]
        for figure in (*density_charts(results, name, rows), *cost_charts(results, name, rows)):
            drawn, title = standalone(figure), re.search(r"<figcaption>(.*?)</figcaption>", figure)
            if drawn is not None and title is not None:
                word = re.sub(r"[^a-z0-9]+", "-", f"{name} {title[1]}".lower()).strip("-")[:100]
                made[f"plots/{word}.svg"] = drawn
    return made


def _csv(results: Mapping[str, Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    moments = [*MOMENTS, *(["top5"] if any(row.get("top5") for row in results["rows"]) else [])]
    spreads = [f"{m}_{part}" for m in moments for part in ("mean", "std")]
    writer.writerow([*PLAIN, *MEASURED, *spreads, "density_targeted", "density_effective", "density_total", "missing"])
    for row in results["rows"]:
        reached = row["reached"] or {}
        told = [row[k] for k in PLAIN] + [row.get(k) for k in MEASURED]
        told += [(row.get(m) or {}).get(part) for m in moments for part in ("mean", "std")]
        told += [*(reached.get(k) for k in ("targeted", "effective", "total")), row["missing"]]
        writer.writerow(["" if v is None else _text(v) for v in told])
    return out.getvalue()


def _text(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _markdown(results: Mapping[str, Any]) -> str:
    parts = []
    for setting in results["settings"]:
        name = str(setting["name"])
        parts.append(f"## {name}\n\n{compare_table(results, name)}")
        checks = sanity_rows(results, name)
        if checks:
            columns = [Column(h, right=2 < i < 7) for i, h in enumerate(SANITY_HEADS)]
            parts.append(f"### Sanity checks\n\n{markdown_table(checks, columns)}")
    broken = [f"* {r['rule']}{': ' + r['detail'] if r['detail'] else ''}" for r in results["rules"] if not r["met"]]
    head = f"# {results['suite']['name']}\n\n"
    head += "Incomplete:\n\n" + "\n".join(broken) if broken else "Every rule of an honest comparison is met."
    return "\n\n".join([head, *parts]) + "\n"
