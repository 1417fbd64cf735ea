"""The leaderboard of the committed results: every method on every data set it was measured on, and who is really ahead.

Rows of one bench had one budget. A row's place among those of its bench, structure and density is one more than the
number of rows that beat it by more than the noise of paired seeds, so rows that no seeds tell apart share a place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import stdev
from typing import Any

from comparisons import COMPARISONS

from openwork.lab.sanity import verdict
from openwork.report.board import Cell, Row, board
from openwork.report.numbers import count, percent
from openwork.report.theme import card, html_page, section

Found = Mapping[str, Any]
SOURCES = {
    **{name: (of.data, of.network) for name, of in COMPARISONS.items() if of.ranked},
    "growth_fashion": ("fashion-mnist", "ResNet-8, width 8"),
}
"""Result name -> data set and network."""
CONTROLS = ("dense", "small dense", "random (layer)", "random (global)", "random (erk)", "random, ", "random (ERK)")
HEADS = (
    "method",
    "place",
    "accuracy",
    "spread",
    "seeds",
    "against dense",
    "density",
    "data",
    "network",
    "structure",
    "role",
    "bench",
)
LEDE = (
    "Accuracies after all training, from the results that are committed with the benchmarks. Rows of one bench had one "
    "budget, so places are given within a bench, a structure and a density. A place is one more than the number of rows that "
    "are better beyond the noise of paired seeds (95 %, one-sided): rows of equal place are not told apart by their seeds. "
    "With three seeds that takes a large difference, and one seed tells nothing apart."
)


@dataclass(frozen=True)
class Entry:
    """One method at one density in one bench; accuracies are shares."""

    method: str
    data: str
    network: str
    structure: str
    density: float
    role: str
    mean: float
    std: float | None
    values: tuple[float, ...]
    dense: float | None
    bench: str
    place: int = 0
    rivals: int = 0


def entries(found: Mapping[str, Found]) -> list[Entry]:
    """Every row of the known results, with its place."""
    rows = [e for name in SOURCES if name in found for e in _rows(name, found[name])]
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for row in rows:
        groups.setdefault((row.bench, row.structure, row.density), []).append(row)
    return [replace(e, place=_place(e, group), rivals=len(group)) for group in groups.values() for e in group]


def _rows(name: str, found: Found) -> Iterator[Entry]:
    data, network = SOURCES[name]
    dense = found.get("dense") or next(
        (r.get("finetuned") or r["accuracy"] for r in found["rows"] if r["method"] == "dense" and _here(name, r)), None
    )
    for row in found["rows"]:
        told = row.get("finetuned") or row.get("accuracy")
        if told is None or not _here(name, row):
            continue
        role = row.get("role") or ("control" if row["method"].startswith(CONTROLS) else "method")
        yield Entry(
            row["method"], data, network, row.get("structure", "element"), row["density"], role, told["mean"], told["std"],
            tuple(told["values"]), dense["mean"] if dense else None, name,
        )  # fmt: skip


def _here(name: str, row: Found) -> bool:
    """The rows of one network, where a bench has several."""
    return name != "growth_fashion" or row.get("setting") in ("dense", "width 8")


def _place(entry: Entry, group: Sequence[Entry]) -> int:
    return 1 + sum(_ahead(other, entry) for other in group)


def _ahead(one: Entry, other: Entry) -> bool:
    """Better beyond the noise; seeds are paired where both rows have as many."""
    if one is other or len(one.values) != len(other.values) or one.mean <= other.mean:
        return False
    gains = [a - b for a, b in zip(one.values, other.values, strict=True)]
    return verdict(one.mean - other.mean, stdev(gains) if len(gains) > 1 else None, len(gains)) == "better"


def counts(rows: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Data set -> how many methods, and the fewest and most seeds of a row."""
    told = {}
    for data in dict.fromkeys(e.data for e in rows):
        mine = [e for e in rows if e.data == data and e.role == "method"]
        seeds = [len(e.values) for e in mine]
        told[data] = {"methods": len({e.method for e in mine}), "rows": len(mine), "seeds": [min(seeds), max(seeds)]}
    return told


def pages(found: Mapping[str, Found]) -> dict[str, str]:
    """File name -> content: the page and the same as JSON."""
    rows = entries(found)
    told = dict(sorted(counts(rows).items(), key=lambda item: -item[1]["methods"]))
    order = list(told)
    rows.sort(key=lambda e: (order.index(e.data), e.bench, e.structure, -e.density, e.place, -e.mean))
    cards = "".join(
        card(data, f"{c['methods']} methods", f"{count(c['rows'])} rows", f"{_seeds(c['seeds'])} a row")
        for data, c in told.items()
    )
    table = board(
        "Leaderboard",
        HEADS,
        [_row(e) for e in rows],
        [HEADS.index(h) for h in ("data", "density", "structure", "role", "bench")],
    )
    note = "Press a heading to sort, type to filter. Controls are set back. The bench names the result file and its budget."
    sections = [section("Data sets", "", f'<div class="cards">{cards}</div>'), section("Rows", note, table)]
    under = f"{len({e.method for e in rows if e.role == 'method'})} methods on {len(told)} data sets"
    page = html_page(
        "Leaderboard of openwork", "Leaderboard", under, LEDE, sections, "Generated from bench/results.", script=True
    )
    plain = {"data": told, "rows": [asdict(e) for e in rows]}
    return {"leaderboard.html": page, "leaderboard.json": json.dumps(plain, indent=1) + "\n"}


def _seeds(ends: Sequence[int]) -> str:
    low, high = ends
    one = "1 seed" if high == 1 else f"{high} seeds"
    return one if low == high else f"{low} to {one}"


def _row(e: Entry) -> Row:
    gap = None if e.dense is None else e.mean - e.dense
    return Row(
        [
            Cell(e.method),
            Cell(f"{e.place} of {e.rivals}", e.place) if len(e.values) > 1 else Cell("one seed"),
            Cell(percent(e.mean), e.mean),
            Cell("" if e.std is None else f"± {100 * e.std:.2f}", e.std),
            Cell(str(len(e.values)), len(e.values)),
            Cell("" if gap is None else f"{100 * gap:+.2f}".replace("-", "−"), gap),
            Cell(percent(e.density), e.density),
            Cell(e.data),
            Cell(e.network),
            Cell(e.structure),
            Cell(e.role),
            Cell(e.bench),
        ],
        quiet=e.role == "control",
    )
