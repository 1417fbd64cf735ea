"""The groups of a network as a picture: one row per tensor, one line per group through the rows that it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openwork.report.numbers import clean, shorten

ROW, LANE, BOX, TOP, LEFT = 22, 20, 44, 58, 16
NAME = 300
MOST_ROWS = 600
KINDS = {
    "channels": "channels",
    "heads": "heads",
    "hidden": "hidden width",
    "experts": "experts",
    "vocabulary": "vocabulary",
    "layers": "blocks",
}
COLOURS = ("#2667cf", "#d2620e", "#0b8a7b", "#8650cf", "#c23170", "#797c12", "#56616f", "#9c4f2a")
STYLE = """svg{background:#fff;font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
text{fill:#171b21}.soft{fill:#5a6472}.small{font-size:11px}.in{fill:#fff;font-size:11px;text-anchor:middle}
.num{font-size:11px;text-anchor:middle;font-weight:600}.stays{fill:#edf0f3}.size{font-size:11px;text-anchor:middle}
h1{font-size:16px}.title{font-size:15px;font-weight:650}.lane{stroke-width:2.5;stroke-linecap:round}.row{fill:#f6f7f8}"""


@dataclass(frozen=True)
class Place:
    """One dimension of one tensor in a group; ``reads`` where it is summed over."""

    tensor: str
    dim: int
    reads: bool


@dataclass(frozen=True)
class Drawn:
    """One group: its name, kind, units, and places."""

    name: str
    kind: str
    units: int
    places: tuple[Place, ...]


def group_picture(title: str, shapes: Mapping[str, Sequence[int]], groups: Sequence[Drawn]) -> str:
    """The whole SVG document.

    Filled dots are where units are made, rings where they are read. Dimensions without colour stay as they are.

    Args:
        title: the model.
        shapes: tensor -> its shape, in the order of the rows; at most 600 rows are drawn.
        groups: what goes together.

    Examples:
        >>> places = (Place("a.weight", 0, False), Place("b.weight", 1, True))
        >>> text = group_picture("two layers", {"a.weight": (8, 4), "b.weight": (2, 8)},
        ...     [Drawn("a.weight", "channels", 8, places)])
        >>> text.startswith("<svg"), text.count("<circle")
        (True, 3)
    """
    rows = dict(list(shapes.items())[:MOST_ROWS])
    at = {name: i for i, name in enumerate(rows)}
    lanes, n_lanes = _lanes(groups, at)
    dims = max((len(s) for s in rows.values()), default=1)
    boxes = LEFT + NAME
    first = boxes + dims * BOX + 24
    wide = max(first + n_lanes * LANE + 30, 620)
    legend = TOP + len(rows) * ROW + 30
    tall = legend + (len(groups) + 1) * 20 + 24
    parts = [f'<text class="title" x="{LEFT}" y="26">{clean(title)}</text>']
    parts.append(
        f'<text class="soft small" x="{LEFT}" y="44">{len(rows)} tensors, {len(groups)} groups; a filled dot makes the '
        "units, a ring reads them; grey dimensions stay</text>"
    )
    owner = {(p.tensor, p.dim): i for i, g in enumerate(groups) for p in g.places}
    for name, i in at.items():
        parts += _row(name, rows[name], i, owner, boxes, wide)
    for i, group in enumerate(groups):
        parts += _line(i, group, at, first + lanes[i] * LANE)
    parts += _legend(groups, legend, len(shapes) - len(rows))
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}">\n'
        f"<style>{STYLE}</style>\n{inside}\n</svg>\n"
    )


def _lanes(groups: Sequence[Drawn], at: Mapping[str, int]) -> tuple[list[int], int]:
    """Every group gets the leftmost lane that is free from its first to its last row."""
    busy: list[int] = []
    found = []
    for group in groups:
        here = [at[p.tensor] for p in group.places if p.tensor in at] or [0]
        lane = next((k for k, until in enumerate(busy) if until < min(here)), len(busy))
        busy[lane : lane + 1] = [max(here)]
        found.append(lane)
    return found, len(busy)


def _row(
    name: str, shape: Sequence[int], i: int, owner: Mapping[tuple[str, int], int], boxes: int, wide: int
) -> list[str]:
    y = TOP + i * ROW
    made = [f'<rect class="row" x="0" y="{y}" width="{wide}" height="{ROW}"/>'] if i % 2 else []
    made.append(f'<text x="{LEFT}" y="{y + 15}"><title>{clean(name)}</title>{clean(shorten(name, 44))}</text>')
    for dim, size in enumerate(shape):
        x = boxes + dim * BOX
        group = owner.get((name, dim))
        paint = 'class="stays"' if group is None else f'fill="{COLOURS[group % len(COLOURS)]}"'
        made.append(f'<rect {paint} x="{x}" y="{y + 3}" width="{BOX - 4}" height="{ROW - 6}" rx="4"/>')
        word = "size" if group is None else "in"
        made.append(f'<text class="{word}" x="{x + BOX / 2 - 2:g}" y="{y + 15}">{size}</text>')
    return made


def _line(i: int, group: Drawn, at: Mapping[str, int], x: int) -> list[str]:
    colour = COLOURS[i % len(COLOURS)]
    rows: dict[int, list[bool]] = {}
    for place in group.places:
        if place.tensor in at:
            rows.setdefault(at[place.tensor], []).append(place.reads)
    if not rows:
        return []
    middle = {row: TOP + row * ROW + ROW / 2 for row in rows}
    low, high = min(middle.values()), max(middle.values())
    made = [f'<line class="lane" stroke="{colour}" x1="{x}" x2="{x}" y1="{low:g}" y2="{high:g}"/>']
    for row, reads in sorted(rows.items()):
        fill = "#fff" if all(reads) else colour
        dot = f'cx="{x}" cy="{middle[row]:g}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2.5"'
        made.append(f"<circle {dot}><title>{clean(group.name)}: {group.units} {group.kind}</title></circle>")
    made.append(f'<text class="num" style="fill:{colour}" x="{x}" y="{low - 8:g}">{i + 1}</text>')
    return made


def _legend(groups: Sequence[Drawn], y: int, left_out: int) -> list[str]:
    made = []
    for i, group in enumerate(groups):
        here = y + i * 20
        made.append(f'<circle cx="{LEFT + 5}" cy="{here - 4}" r="5" fill="{COLOURS[i % len(COLOURS)]}"/>')
        what = f"{group.units:,} {KINDS.get(group.kind, group.kind)}, {len(group.places)} places"
        made.append(
            f'<text x="{LEFT + 18}" y="{here}"><tspan font-weight="600">{i + 1}</tspan>  {clean(group.name)}  '
            f'<tspan class="soft">{clean(what)}</tspan></text>'
        )
    if left_out:
        made.append(f'<text class="soft" x="{LEFT}" y="{y + len(groups) * 20}">{left_out} more tensors</text>')
    return made


def drawn(rows: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """Groups from plain data: ``name``, ``kind``, ``units`` and ``at`` (tensor, dimension, whether it reads)."""
    return [
        Drawn(r["name"], r["kind"], r["units"], tuple(Place(str(t), int(d), bool(c)) for t, d, c in r["at"]))
        for r in rows
    ]
