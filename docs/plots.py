"""Curves of the result files as SVG files of their own: the charts of the reports with their style and legend inside."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from comparisons import COMPARISONS

from openwork.report.curves import standalone
from openwork.report.svg import Axis, Panel, Series, line_chart, scatter_chart


def curve(rows: Sequence[Mapping[str, Any]], method: str, moment: str) -> Series:
    """One method's mean and spread over the densities."""
    mine = sorted((r for r in rows if r["method"] == method and r[moment]), key=lambda r: float(r["density"]))
    return Series(
        method,
        [r["density"] for r in mine],
        [r[moment]["mean"] for r in mine],
        [r[moment]["std"] or 0.0 for r in mine],
    )


def plots(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SVG of one result; empty when it has no curves."""
    if name == "essential":
        return sweeps(found["rows"])
    if name not in COMPARISONS:
        return {}
    comparison = COMPARISONS[name]
    rows = sorted((r for r in found["rows"] if r["density"] < 1), key=lambda r: r.get("role") == "control")
    shared = [r for r in rows if r.get("structure") == "-"]
    groups = {"": rows}
    if comparison.split:
        kinds = dict.fromkeys(r["structure"] for r in rows if r["structure"] != "-")
        groups = {k: [r for r in rows if r["structure"] == k] + shared for k in kinds}
    dense = next((r["finetuned"] for r in found["rows"] if r["method"] == "dense"), None)
    made = {}
    for kind, mine in groups.items():
        for moment, told in comparison.curves.items():
            lines = [curve(mine, m, moment) for m in dict.fromkeys(r["method"] for r in mine)]
            panel = Panel([s for s in lines if s.x], Axis("accuracy", unit="%"))
            title = ", ".join(filter(None, [found["title"], kind, told]))
            mark = dense["mean"] if dense else None
            figure = scatter_chart(title, Axis("density", "log", "%"), panel, mark, joined=True)
            word = re.sub(r"\W+", "-", f"{name} {kind} {moment}".lower()).strip("-").replace("_", "-")
            drawn = standalone(figure)
            if drawn is None:
                raise SystemExit("a chart without a plot: nothing finite in the results")
            made[f"{word}.svg"] = drawn
    return made


def sweeps(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Scores over sparsities: accuracies of all fine-tuned curves together, perplexities of each language model."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        tuned = row["protocol"] == "fine-tuned"
        groups.setdefault("ViT, fine-tuned with the mask held" if tuned else f"{row['model']}, as pruned", []).append(
            row
        )
    made = {}
    for title, mine in groups.items():
        tuned = mine[0]["protocol"] == "fine-tuned"
        lines = [
            Series(
                f"{r['method']}, {r['model'].removeprefix('ViT, ')}" if tuned else r["method"],
                r["sparsity"],
                r["score"] if tuned else [math.exp(-p) for p in r["score"]],
            )
            for r in mine
        ]
        axis = Axis("accuracy", unit="%") if tuned else Axis("perplexity", "log")
        word = re.sub(r"\W+", "-", title.lower()).strip("-")
        drawn = standalone(line_chart(f"Essential sparsity: {title}", Axis("sparsity", unit="%"), Panel(lines, axis)))
        if drawn is None:
            raise SystemExit("a chart without a plot: nothing finite in the results")
        made[f"essential-{word}.svg"] = drawn
    return made
