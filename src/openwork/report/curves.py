"""The pictures of a comparison: accuracy over density and over costs, and what stands in place of a refused one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import unescape
from typing import Any

from openwork.report.numbers import clean, percent
from openwork.report.svg import Axis, Panel, Series, scatter_chart
from openwork.report.theme import CSS

Row = Mapping[str, Any]
AT_A_TIME = 14  # series in one chart: more cannot be told apart
MOST_PARTS = 4  # charts of one kind: of more methods the leaderboard tells
MOMENTS = (("finetuned", "after fine-tuning"), ("recalibrated", "recalibrated"), ("pruned", "pruned"))
COSTS = (
    ("macs", "multiply-accumulates with non-zero weights"),
    ("bytes", "bytes of non-zero values and mask"),
    ("milliseconds", "milliseconds, processor time of one thread"),
    ("training_macs", "multiply-accumulates of training"),
)
FRONT = "not dominated"
UNKNOWN: Row = {"structure": None, "what": "what controls it has (made by an older openwork)", "densities": []}


def gaps_of(results: Mapping[str, Any], setting: str, structure: str | None = None) -> list[str]:
    """The controls that curves of a setting lack, in words; those of one structure when it is given."""
    known = results.get("missing_controls")
    told = [UNKNOWN] if known is None else [g for g in known if g["setting"] == setting]
    mine = [g for g in told if structure is None or g["structure"] in (None, structure)]
    words = []
    for gap in mine:
        at = f" at {', '.join(percent(d) for d in gap['densities'])}" if gap["densities"] else ""
        named = f" (`{gap['control']}` in controls)" if "control" in gap else ""
        words.append(f"{gap['what']}{named}{at}")
    return list(dict.fromkeys(words))


def density_charts(results: Mapping[str, Any], setting: str, rows: Sequence[Row]) -> list[str]:
    """Charts of accuracy over density, for each structure and moment; controls and methods share the dense line.

    A structure without its controls gets a note in the place of its charts, which names them.
    """
    dense = dense_level(rows)
    charts = []
    curves = [r for r in rows if r["method"] != "dense" and not (r["density"] == 1.0 and r["structure"] == "-")]
    shared = [r for r in curves if r["structure"] == "-"]
    for structure in dict.fromkeys(r["structure"] for r in curves if r["structure"] != "-"):
        gaps = gaps_of(results, setting, structure)
        if gaps:
            charts.append(refused(f"{structure}, accuracy and density", gaps))
            continue
        here = [r for r in curves if r["structure"] == structure]
        for moment, told in MOMENTS:
            mine = [*here, *shared] if moment == "finetuned" else here
            mine.sort(key=lambda r: r["role"] == "control")  # the methods share the first chart
            lines = [s for m in dict.fromkeys(r["method"] for r in mine) if (s := _series(m, moment, mine)).x]
            for begin in range(0, min(len(lines), MOST_PARTS * AT_A_TIME), AT_A_TIME):
                part = f", {begin // AT_A_TIME + 1}" if len(lines) > AT_A_TIME else ""
                panel = Panel(lines[begin : begin + AT_A_TIME], Axis("accuracy", unit="%"))
                title = f"{structure}, {told}{part}"
                charts.append(scatter_chart(title, Axis("density asked", "log", "%"), panel, dense, joined=True))
    return charts


def cost_charts(results: Mapping[str, Any], setting: str, rows: Sequence[Row]) -> list[str]:
    """Charts of accuracy over each cost that was counted or measured, with the rows that no other beats in both."""
    if not any(r.get(cost) is not None for r in rows for cost, _ in COSTS):
        return []
    gaps = gaps_of(results, setting)
    if gaps:
        return [refused("Accuracy and cost", gaps)]
    charts = []
    for cost, told in COSTS:
        points = [r for r in rows if r.get(cost) and r["finetuned"]]
        if not points:
            continue
        front = pareto(points, cost)
        lines = [_cost_series(m, cost, points) for m in dict.fromkeys(r["method"] for r in points)]
        best = Series(FRONT, [r[cost] for r in front], [r["finetuned"]["mean"] for r in front])
        for begin in range(0, min(len(lines), MOST_PARTS * AT_A_TIME), AT_A_TIME - 1):
            part = f", {begin // (AT_A_TIME - 1) + 1}" if len(lines) > AT_A_TIME - 1 else ""
            panel = Panel([best, *lines[begin : begin + AT_A_TIME - 1]], Axis("accuracy", unit="%"))
            x = Axis(told.split(",")[0], "log")
            charts.append(scatter_chart(told + part, x, panel, dense_level(rows), joined=FRONT))
    return charts


def pareto(rows: Sequence[Row], cost: str) -> list[Row]:
    """The rows that no other beats: none is as accurate and cheaper, or as cheap and more accurate; cheapest first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda r: (r[cost], -r["finetuned"]["mean"])):
        if not found or row["finetuned"]["mean"] > found[-1]["finetuned"]["mean"]:
            found.append(row)
    return found


def refused(title: str, gaps: Sequence[str]) -> str:
    """What stands where a chart would: the controls that it lacks."""
    items = "".join(f"<li>{clean(g)}</li>" for g in gaps)
    return (
        f'<figure class="chart"><figcaption>{clean(title)}: not drawn</figcaption><p class="empty">A curve means '
        f"little without its controls. Missing here:</p><ul>{items}</ul></figure>"
    )


def dense_level(rows: Sequence[Row]) -> float | None:
    """The mean accuracy of the dense network."""
    return next((float(r["finetuned"]["mean"]) for r in rows if r["method"] == "dense" and r["finetuned"]), None)


def _series(method: str, moment: str, rows: Sequence[Row]) -> Series:
    mine = [r for r in rows if r["method"] == method and r[moment]]
    return Series(
        method,
        [r["density"] for r in mine],
        [r[moment]["mean"] for r in mine],
        [r[moment]["std"] or 0.0 for r in mine],
    )


def _cost_series(method: str, cost: str, rows: Sequence[Row]) -> Series:
    mine = [r for r in rows if r["method"] == method]
    found = [r["finetuned"] for r in mine]
    return Series(method, [r[cost] for r in mine], [f["mean"] for f in found], [f["std"] or 0.0 for f in found])


WIDTH, COLUMNS, LINE = 760, 3, 22
LETTERS = 88  # of a title that fits beside each other


def standalone(figure: str) -> str | None:
    """A chart of the pages (HTML) as one SVG document with its style and legend; None for a figure without a plot."""
    title = re.search(r"<figcaption>(.*?)</figcaption>", figure)
    plot = re.search(r'<svg [^>]*class="plot"[^>]*height="(\d+)">(.*?)</svg>(?:<ul|</figure>)', figure, re.S)
    if title is None or plot is None:
        return None
    keys = re.findall(r"<li><svg[^>]*>(.*?)</svg>(.*?)</li>", figure)
    top, tall = 40, int(plot[1])
    rows = -(-len(keys) // COLUMNS)
    legend = "".join(
        f'<g transform="translate({20 + (i % COLUMNS) * (WIDTH - 20) // COLUMNS},'
        f'{top + tall + 14 + i // COLUMNS * LINE})">'
        f'{mark}<text class="label" x="24" y="10">{name}</text></g>'
        for i, (mark, name) in enumerate(keys)
    )
    height = top + tall + 14 + rows * LINE + 8
    tight = f' textLength="{WIDTH - 40}" lengthAdjust="spacingAndGlyphs"' if len(unescape(title[1])) > LETTERS else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui,sans-serif">'
        f'<style>{CSS}</style><rect width="100%" height="100%" fill="var(--card)"/>'
        f'<text class="name" x="20" y="24" font-weight="600"{tight}>{title[1]}</text>'
        f'<svg class="plot" x="10" y="{top}" width="{WIDTH - 20}" height="{tall}">{plot[2]}</svg>{legend}</svg>\n'
    )
