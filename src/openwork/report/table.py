"""Plain-text and Markdown tables, and the report that ``Result.report()`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openwork.errors import OpenworkError
from openwork.report.numbers import MISSING, count, dims, finite, number, percent, printable, seconds, shorten, size

WIDTH = 100
_GAP, _NARROWEST = 2, 12
COUNTED = ("training_macs", "scoring_macs", "connected")
STAGES = {
    "dense": "dense, before pruning",
    "pruned": "after pruning",
    "recalibrated": "after recalibration",
    "compacted": "after compaction",
    "finetuned": "after fine-tuning",
    "dense_control": "dense, trained as long",
}


@dataclass(frozen=True)
class Column:
    """Heading and alignment; an ``elastic`` column gives way when the table is too wide."""

    label: str
    right: bool = False
    elastic: bool = False


def text_table(rows: Sequence[Sequence[str]], columns: Sequence[Column], width: int = WIDTH) -> str:
    """Aligned table with a rule under its headings, at most ``width`` wide as long as elastic columns can shrink.

    Examples:
        >>> print(text_table([["fc1", "12"], ["conv10", "1,200"]], [Column("name"), Column("kept", right=True)]))
        name     kept
        ------  -----
        fc1        12
        conv10  1,200
    """
    _check(rows, columns)
    rows = [[printable(v) for v in r] for r in rows]
    wide = [max([len(c.label), *(len(r[i]) for r in rows)]) for i, c in enumerate(columns)]
    over = sum(wide) + _GAP * (len(columns) - 1) - width
    for i in sorted((i for i, c in enumerate(columns) if c.elastic), key=lambda i: -wide[i]):
        least = max(_NARROWEST, len(columns[i].label))
        cut = max(0, min(over, wide[i] - least))
        wide[i], over = wide[i] - cut, over - cut
    lines = [_line([c.label for c in columns], columns, wide), _line(["-" * w for w in wide], columns, wide)]
    return "\n".join([*lines, *(_line(r, columns, wide) for r in rows)])


def markdown_table(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> str:
    """The same as a Markdown table; vertical bars inside cells are escaped."""
    _check(rows, columns)
    rule = ["---:" if c.right else ":---" for c in columns]
    cells = [[_bar(c.label) for c in columns], rule, *([_bar(v) for v in r] for r in rows)]
    return "\n".join(f"| {' | '.join(r)} |" for r in cells)


def report_text(data: Mapping[str, Any]) -> str:
    """The plain data of a result (``openwork.json``) as text of at most 100 columns."""
    tensors = list(data.get("tensors") or [])
    blocks = [
        _headline(data),
        _pruned(tensors),
        _wrap(nearly_empty(data)),
        _skipped(tensors),
        _metrics(data),
        _wrap(verdict(data)),
        _made_by(data),
    ]
    return "\n\n".join(b for b in blocks if b)


def verdict(data: Mapping[str, Any]) -> str:
    """What the masks give and what they do not give, in one paragraph."""
    density = data.get("density") or {}
    total, targeted, kept = (finite(density.get(k)) for k in ("total_numel", "targeted_numel", "kept"))
    if total is None or targeted is None or kept is None:
        return "The counts are missing, so nothing is claimed about zeros or bytes."
    cut = (data.get("manifest") or {}).get("compaction")
    if cut:
        pairs = (("parameters", cut["params"]), ("multiply-accumulates", cut["macs"]))
        shrunk = ", ".join(f"{count(before)} {word} become {count(after)}" for word, (before, after) in pairs)
        return (
            f"The pruned units were cut out: {shrunk}. Outputs of the small model and of the masked one differ by "
            f"at most {number(cut['max_error'])} ({cut['reference']})."
        )
    zeros = targeted - kept
    dense, packed = 4 * total, 4 * (total - zeros) + targeted / 8
    return (
        f"{count(zeros)} of {count(total)} parameters are zero. At 4 bytes a value, the dense tensors take "
        f"{size(dense)}; "
        f"the other values with one mask bit per targeted weight would take {size(packed)}. "
        "The model runs masked-dense: no speed-up is claimed, because zeros in a dense tensor are multiplied "
        "like any number."
    )


def nearly_empty(data: Mapping[str, Any]) -> str:
    """Tensors that lost everything, or all but 1 % where the whole keeps 1 % or more; nothing is said of none.

    An empty tensor cuts a network in two, whatever the accuracy of the other paths: layer collapse.
    """
    pruned = [t for t in data.get("tensors") or [] if not t.get("skipped") and t.get("units") and t.get("numel")]
    shares = {str(t.get("name", MISSING)): (finite(t.get("kept")) or 0) / t["numel"] for t in pruned}
    whole = finite((data.get("density") or {}).get("targeted")) or 0
    empty = [n for n, share in shares.items() if share == 0]
    thin = [n for n, share in shares.items() if 0 < share < 0.01 <= whole]
    told = [f"{what}: {', '.join(names)}." for what, names in (("Empty", empty), ("Less than 1 % kept", thin)) if names]
    return " ".join(["Layer collapse.", *told, "Give every layer a share (scope='layer') or a floor."]) if told else ""


def promised(data: Mapping[str, Any]) -> tuple[str, str, str]:
    """What was promised (a unit of cost, a share of the units, a density), how much was reached, and how much asked."""
    manifest, density = data.get("manifest") or {}, data.get("density") or {}
    groups = [g for g in data.get("groups") or [] if isinstance(g, Mapping)]
    units = sum(int(finite(g.get("units")) or 0) for g in groups)
    for key in ("target_met", "budget"):
        met = manifest.get(key)
        if isinstance(met, Mapping) and "unit" in met:
            share = met["unit"] != "latency_ms" and (finite(met.get("asked")) or 1) < 1
            told = (percent(met.get("share")), percent(met.get("asked")))
            amounts = (number(met.get("reached")), number(met.get("asked")))
            return str(met["unit"]), *(told if share else amounts)
    if units:
        kept = sum(int(finite(g.get("kept")) or 0) for g in groups)
        return "share of the units", percent(kept / units), percent(density.get("asked"))
    return "density", percent(density.get("targeted")), percent(density.get("asked"))


def densities(data: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, density, counts and meaning of the three denominators, and of what is connected where that is known."""
    density = data.get("density") or {}
    kept, targeted = finite(density.get("kept")), finite(density.get("targeted_numel"))
    rows, joined = [], finite((data.get("manifest") or {}).get("connected"))
    for name, what in (
        ("targeted", "weights of the tensors that were pruned"),
        ("prunable", "weights that a default selection would prune"),
        ("total", "parameters of the model"),
    ):
        numel = finite(density.get(f"{name}_numel"))
        left = None if numel is None or kept is None or targeted is None else numel - (targeted - kept)
        rows.append((name, percent(density.get(name)), f"{count(left)} of {count(numel)}", what))
    if joined is not None and targeted:
        path = "of them, on a path from an input to an output"
        rows.insert(1, ("effective", percent(joined / targeted), f"{count(joined)} of {count(targeted)}", path))
    return rows


def made_by(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The manifest, one name and one readable value a row."""
    manifest = data.get("manifest") or {}
    told = {"openwork": data.get("openwork"), **manifest}
    rows = []
    for name, value in told.items():
        if value is None or value == "":
            continue
        told_as = seconds if name == "seconds" else count if name in COUNTED else str
        text = told_as(value) if finite(value) is not None else str(value)
        rows.append((str(name).replace("_", " "), text))
    return rows


def stage_label(stage: str) -> str:
    """A stage of ``metrics`` in words."""
    return STAGES.get(stage, stage.replace("_", " "))


def stage_value(name: str, value: Any) -> str:
    """A metric as people read it: accuracies and calibration errors in percent, everything else with four digits."""
    return percent(value) if "accuracy" in name or name in ("ece", "top5") else number(value)


def metric_names(metrics: Mapping[str, Any]) -> list[str]:
    """Every metric that some stage has, in order of appearance."""
    return list(dict.fromkeys(k for stage in metrics.values() if isinstance(stage, Mapping) for k in stage))


def by_reason(tensors: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The skipped tensors, grouped by their reason, in order of appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in tensors:
        if row.get("skipped"):
            groups.setdefault(str(row["skipped"]), []).append(row)
    return groups


def _headline(data: Mapping[str, Any]) -> str:
    density = data.get("density") or {}
    what, reached, asked = promised(data)
    lines = [f"{data.get('method', 'no method')}: {what} {reached} reached, {asked} asked"]
    if density:
        rows = densities(data)
        name, share, counts = (max(len(r[i]) for r in rows) for i in range(3))
        lines += [f"  {r[0]:<{name}}  {r[1]:>{share}}  {r[2]:>{counts}}  {r[3]}" for r in rows]
    return "\n".join(shorten(printable(line), WIDTH) for line in lines)


def _pruned(tensors: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            str(t.get("name", MISSING)),
            dims(t.get("shape")),
            f"{count(t.get('units_kept'))} / {count(t.get('units'))}",
            f"{count(t.get('kept'))} / {count(t.get('numel'))}",
            percent(t.get("density")),
        ]
        for t in tensors
        if not t.get("skipped")
    ]
    if not rows:
        return ""
    columns = (
        Column("tensor", elastic=True),
        Column("shape", right=True),
        Column("units kept", right=True),
        Column("entries kept", right=True),
        Column("density", right=True),
    )
    return text_table(rows, columns)


def _skipped(tensors: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for reason, rows in by_reason(tensors).items():
        names = ", ".join(str(r.get("name", MISSING)) for r in rows[:3]) + (", ..." if len(rows) > 3 else "")
        entries = sum(int(finite(r.get("numel")) or 0) for r in rows)
        lines.append(f"  {reason}: {len(rows)} tensor{'s' * (len(rows) > 1)}, {entries:,} entries ({names})")
    return "\n".join(["skipped", *(shorten(printable(line), WIDTH) for line in lines)]) if lines else ""


def _metrics(data: Mapping[str, Any]) -> str:
    metrics = data.get("metrics") or {}
    names = metric_names(metrics)
    rows = [
        [stage_label(stage), *(stage_value(n, values.get(n)) for n in names)]
        for stage, values in metrics.items()
        if isinstance(values, Mapping)
    ]
    if not rows or not names:
        return ""
    return text_table(rows, [Column("stage", elastic=True), *(Column(n, right=True) for n in names)])


def _made_by(data: Mapping[str, Any]) -> str:
    return _wrap("made by: " + ", ".join(f"{k} {v}" for k, v in made_by(data))) if made_by(data) else ""


def _wrap(text: str) -> str:
    """Like ``textwrap.fill``, but a word that is too long is cut, never a line."""
    lines = [""]
    for word in text.split():
        word = shorten(printable(word), WIDTH)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _check(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
    for i, row in enumerate(rows):
        if len(row) != len(columns):
            raise OpenworkError(f"row {i}: a table of {len(columns)} columns needs as many cells, got {len(row)}")


def _line(cells: Sequence[str], columns: Sequence[Column], wide: Sequence[int]) -> str:
    fitted = (shorten(v, w) if c.elastic else v for v, c, w in zip(cells, columns, wide, strict=True))
    aligned = (v.rjust(w) if c.right else v.ljust(w) for v, c, w in zip(fitted, columns, wide, strict=True))
    return (" " * _GAP).join(aligned).rstrip()


def _bar(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
