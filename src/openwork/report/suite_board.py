"""The leaderboard of a comparison: every row of every setting, with the runs and layers behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any
from urllib.parse import quote

from openwork.report.board import Cell, Row, board, heat
from openwork.report.curves import pareto
from openwork.report.numbers import clean, count, finite, number, percent, seconds, size

MOST_LAYERS = 24  # in one row; the record names them all
HEADS = ("method", "density", "accuracy", "spread", "against dense", "non-zero")
TOP5 = "top-5"
PLACE = ("setting", "structure", "role")
LAST = ("ECE", "learning rate", "collapsed", "failed", "time of a run")
EXTRA = (("macs", "MACs"), ("bytes", "bytes"), ("milliseconds", "ms"), ("training_macs", "training MACs"))


def suite_board(results: Mapping[str, Any]) -> str:
    """The table, best accuracy first; costs that no row has get no column."""
    runs: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in results["cells"]:
        if record["kind"] != "tune":
            runs.setdefault((record["setting"], record["method"], record["density"]), []).append(record)
    rows = [r for r in results["rows"] if r["finetuned"]]
    rows.sort(key=lambda r: -r["finetuned"]["mean"])
    costs = [(k, head) for k, head in EXTRA if any(r.get(k) is not None for r in rows)]
    front = {k: _fronts(rows, k) for k, _ in costs}
    top = any(r.get("top5") for r in rows)
    made = [_row(r, runs.get((r["setting"], r["method"], r["density"]), []), costs, front, top) for r in rows]
    heads = [*HEADS, *([TOP5] if top else []), *(head for _, head in costs), *PLACE, *LAST]
    choose = [heads.index(head) for head in PLACE]
    return board("Leaderboard", heads, made, choose) if made else ""


def _fronts(rows: Sequence[Mapping[str, Any]], cost: str) -> set[int]:
    """The rows that no other of their setting beats in accuracy and cost, by identity."""
    best: set[int] = set()
    for setting in dict.fromkeys(r["setting"] for r in rows):
        here = [r for r in rows if r["setting"] == setting and r.get(cost)]
        best |= {id(r) for r in pareto(here, cost)}
    return best


def _row(
    row: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    costs: Sequence[tuple[str, str]],
    front: Mapping[str, set[int]],
    top: bool,
) -> Row:
    found = row["finetuned"]
    drop = row["drop"]
    cells = [
        Cell(str(row["method"]), more=_behind(runs)),
        Cell(percent(row["density"]), row["density"]),
        Cell(percent(found["mean"]), found["mean"]),
        Cell(_spread(found, row["seeds"]), found["std"]),
        Cell("" if drop is None else f"{-100 * drop['mean']:+.2f}".replace("-", "−"), drop and -drop["mean"]),
        Cell(count(row["parameters"]), finite(row["parameters"])),
    ]
    if top:
        share = (row.get("top5") or {}).get("mean")
        cells.append(Cell("" if share is None else percent(share), share))
    for key, _ in costs:
        told = {"bytes": size, "milliseconds": number}.get(key, count)(row.get(key))
        cells.append(Cell(told + (" ◆" if id(row) in front[key] else ""), finite(row.get(key))))
    cells += [
        *(Cell(str(row[key])) for key in PLACE),
        Cell("" if row.get("ece") is None else percent(row["ece"]), finite(row.get("ece"))),
        Cell("" if row["lr"] is None else number(row["lr"]), finite(row["lr"])),
        Cell(str(row["collapsed"]), row["collapsed"]),
        Cell(str(row["failed"]), row["failed"]),
        Cell(seconds(row["seconds"]), row["seconds"]),
    ]
    return Row(cells, quiet=row["role"] == "control")


def _spread(found: Mapping[str, Any], seeds: int) -> str:
    if found["std"] is None:
        return "1 seed"
    return f"± {100 * found['std']:.2f}, {len(found['values'])} of {seeds} seeds"


def _behind(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs of a row with links to their records, and the kept share of each layer, mean over the runs."""
    if not runs:
        return ""
    items = "".join(f"<li>{_run(r)}</li>" for r in sorted(runs, key=lambda r: r["seed"]))
    return f"<ul>{items}</ul>{_layers(runs)}"


def _run(record: Mapping[str, Any]) -> str:
    found = ((record.get("metrics") or {}).get("finetuned") or {}).get("accuracy")
    told = [f"seed {record['seed']}", percent(found) if found is not None else str(record["status"])]
    if record.get("lr") is not None:
        told.append(f"lr {number(record['lr'])}")
    if record.get("ever_active") is not None:
        told.append(f"in-time over-parameterisation {percent(record['ever_active'])}")
    link = (
        f', <a href="cells/{quote(str(record["file"]), errors="replace")}.json">record</a>'
        if record.get("file")
        else ""
    )
    return clean(", ".join(told)) + link


def _layers(runs: Sequence[Mapping[str, Any]]) -> str:
    layers: dict[str, list[float]] = {}
    for record in runs:
        for layer in record.get("layers") or ():
            layers.setdefault(str(layer["name"]), []).append(layer["kept"] / max(1, layer["numel"]))
    if not layers or all(v == 1 for shares in layers.values() for v in shares):
        return ""
    shares = [(name, mean(values), percent(mean(values))) for name, values in layers.items()]
    rest = len(shares) - MOST_LAYERS
    more = f" and {rest} more layers, in the record" if rest > 0 else ""
    low, high = (min(shares, key=lambda s: s[1]), max(shares, key=lambda s: s[1]))
    text = f"layers keep {low[2]} ({low[0]}) to {high[2]} ({high[0]}){more}"
    return f"<ul><li>{clean(text)}</li></ul>{heat(shares[:MOST_LAYERS])}"
