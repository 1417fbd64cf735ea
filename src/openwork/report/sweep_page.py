"""A sweep over sparsities: its table for the terminal, and one page with the curve and where it drops."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from openwork.report.curves import standalone
from openwork.report.numbers import MISSING, clean, count, finite, number, percent, printable, shorten
from openwork.report.svg import Axis, Panel, Series, line_chart
from openwork.report.theme import card, html_page, html_table, section

HEADS = ("sparsity", "perplexity", "times dense", "loss", "agrees", "emptiest matrix", "above 99 %")
LEFT = (5,)
CARDS = (
    ("tolerance", "Free", "the last level up to which every one loses no more than the tolerance"),
    ("chord", "Knee by the chord", "the largest height above the straight line between the ends"),
    ("segments", "Knee by two lines", "where the two straight lines that fit best meet"),
)


def sweep_table(data: Mapping[str, Any]) -> tuple[list[str], list[int], list[list[str]]]:
    """Heads, columns of numbers and rows of the levels; columns that nothing fills are left out."""
    dense = float(data["rows"][0]["loss"])
    cells = [
        [
            percent(row["sparsity"]),
            number(row["perplexity"]),
            number(math.exp(min(float(row["loss"]) - dense, 700.0))),
            _spread(row),
            percent(row["top1"]) if row["top1"] is not None else "",
            _emptiest(row["layers"]),
            count(len(row["empty"])) if row["empty"] else "",
        ]
        for row in data["rows"]
    ]
    kept = [i for i in range(len(HEADS)) if any(row[i] for row in cells)]
    right = [at for at, i in enumerate(kept) if i not in LEFT]
    return [HEADS[i] for i in kept], right, [[row[i] for i in kept] for row in cells]


def sweep_lines(data: Mapping[str, Any]) -> list[str]:
    """What the estimates say, a line each, and the caveats."""
    e = data["essential"]
    told = [f"{name:<18} {percent(e[key]):>9}  {words}" for key, name, words in CARDS]
    told[0] += f" ({number(e['allowed'])} nats per token)"
    told[2] += f"; {_sharpness(e)}"
    return told + [f"- {caveat}" for caveat in data["caveats"]]


def sweep_chart(data: Mapping[str, Any]) -> str:
    """Perplexity over sparsity (log scale), the height that is still free, and a vertical line at each estimate."""
    rows = [r for r in data["rows"] if finite(r["perplexity"]) is not None]
    points = [float(r["perplexity"]) for r in rows]
    low, high = min(points), max(points)
    bound = points[0] * math.exp(data["essential"]["allowed"])
    lines = [
        Series(str(data["method"]), [r["sparsity"] for r in rows], points),
        Series("still free", [0.0, rows[-1]["sparsity"]], [bound, bound]),
    ]
    marks: dict[float, list[str]] = {}
    for key, name, _ in CARDS:
        marks.setdefault(float(data["essential"][key]), []).append(name.lower())
    lines += [Series(f"{', '.join(names)}: {percent(at)}", [at, at], [low, high]) for at, names in marks.items()]
    title = f"Perplexity of {shorten(printable(str(data['model'])), 40)} by sparsity"
    return line_chart(title, Axis("sparsity", unit="%"), Panel(lines, Axis("perplexity", "log")))


def sweep_svg(data: Mapping[str, Any]) -> str:
    """The chart as a file of its own."""
    drawn = standalone(sweep_chart(data))
    assert drawn is not None  # a curve has finite scores
    return drawn


def sweep_html(data: Mapping[str, Any]) -> str:
    """The page of one sweep, from ``Sweep.to_dict()``."""
    e = data["essential"]
    notes = (f"within {number(e['allowed'])} nats per token of dense", "", _sharpness(e))
    cards = "".join(
        card(name, percent(e[key], 1), words, note) for (key, name, words), note in zip(CARDS, notes, strict=True)
    )
    caveats = "".join(f"<li>{clean(c)}</li>" for c in data["caveats"])
    shown, right, cells = sweep_table(data)
    table = html_table("Levels", shown, cells, right=right)
    names = list(data["rows"][-1]["layers"])
    heads = ["matrix", *(f"{100 * r['sparsity']:g} %" for r in data["rows"][1:])]
    layers = [[n, *(percent(r["layers"][n], 1) for r in data["rows"][1:])] for n in names]
    written = {k: v for k, v in data.items() if k not in ("rows", "caveats")}
    sections = [
        section("In short", "", f'<div class="cards">{cards}</div>'),
        section("The curve", "One-shot pruning at every level; nothing is trained behind it.", sweep_chart(data)),
        section("What this does not say", "", f"<ul>{caveats}</ul>"),
        section("Levels", "Losses in nats per token, with the sample standard deviation of the seeds.", table),
        section("Zeros of every matrix", f"Ranked: {data['ranked']}.",
                html_table("Zeros of every matrix", heads, layers, right=range(1, len(heads)))),
        section("To run it again", "", f"<details><summary>Settings</summary><pre>"
                f"{clean(json.dumps(written, indent=1))}</pre></details>"),
    ]  # fmt: skip
    under = f"{data['model']} · {count(data['targets'])} targets of {data['text']}, windows of {data['length']}"
    lede = f"{data['method']}, ranked over {data['ranked']}: {percent(e['tolerance'], 1)} of the weights are free."
    title = "Essential sparsity"
    return html_page(f"{title}: {data['model']}", title, under, lede, sections, "openwork")


def _spread(row: Mapping[str, Any]) -> str:
    around = "" if row["std"] is None or not row["sparsity"] else f" ± {row['std']:.4f}"
    return f"{row['loss']:.4f}{around}"


def _emptiest(layers: Mapping[str, float]) -> str:
    if not layers:
        return ""
    name = max(layers, key=lambda n: layers[n])
    return f"{shorten(name.removesuffix('.weight'), 36)} {percent(layers[name], 1)}"


def _sharpness(essential: Mapping[str, Any]) -> str:
    if not essential["knee"]:
        return "no knee: no steeper behind it"
    steep = finite(essential["sharpness"])
    return "flat before it" if steep is None else f"{number(steep, 3) if steep else MISSING} times as steep behind it"
