"""Several methods side by side: as text, and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openwork.report.numbers import number, percent, seconds
from openwork.report.svg import Axis, Panel, Series, interval_chart, scatter_chart
from openwork.report.table import Column, text_table
from openwork.report.theme import html_page, html_table, section

HEADS = ("method", "structure", "density", "reached", "seeds", "before", "after", "time")
SPREAD = "mean ± sample standard deviation over seeds"


def compare_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for the terminal."""
    columns = [Column(h, right=i > 1, elastic=i < 2) for i, h in enumerate(HEADS)]
    return text_table([_cells(r) for r in rows], columns, 110) + f"\naccuracies: {SPREAD}"


def compare_html(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """A page with a chart per structure and the table; bars are one sample standard deviation."""
    dense = next((r["after_mean"] for r in rows if r["method"] == "dense"), None)
    charts = []
    pruned = [r for r in rows if r["method"] != "dense"]
    for structure in dict.fromkeys(str(r["structure"]) for r in pruned):
        here = [r for r in pruned if str(r["structure"]) == structure]
        if len({r["density"] for r in here}) > 1:
            lines = [_series(name, here) for name in dict.fromkeys(r["method"] for r in here)]
            charts.append(
                scatter_chart(structure, Axis("density", "log", "%"), Panel(lines, Axis("accuracy", unit="%")), dense)
            )
        else:
            points = [(str(r["method"]), r["after_mean"], r.get("after_std")) for r in here]
            charts.append(interval_chart(structure, Axis("accuracy after training", unit="%"), points, dense))
    note = (
        f"Equal budgets; {SPREAD}. The dashed line is the dense network."
        if dense is not None
        else f"Equal budgets; {SPREAD}."
    )
    table = html_table("Comparison", HEADS, [_cells(r) for r in rows], right=range(2, 8))
    sections = [section("Accuracy", note, f'<div class="grid">{"".join(charts)}</div>'), section("All rows", "", table)]
    lede = "Masked weights are dense tensors with zeros: this page compares accuracy at equal density, not speed."
    return html_page(title, title, "", lede, sections, "openwork")


def _series(name: str, rows: Sequence[Mapping[str, Any]]) -> Series:
    mine = [r for r in rows if r["method"] == name]
    return Series(
        name, [r["density"] for r in mine], [r["after_mean"] for r in mine], [r.get("after_std") or 0.0 for r in mine]
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    took = row.get("seconds_mean")
    return [
        str(row["method"]),
        str(row["structure"]),
        number(row["density"]),
        number(row["reached"]),
        str(row["seeds"]),
        _spread(row.get("before_mean"), row.get("before_std")),
        _spread(row.get("after_mean"), row.get("after_std")),
        seconds(took) if took is not None else "",
    ]


def _spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return f"{100 * mean:.1f} ± {100 * std:.1f} %" if std is not None else percent(mean, 1)
