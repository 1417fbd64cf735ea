"""One run as one self-contained HTML page: no scripts, no network, every text escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from openwork.report.group_picture import drawn, group_picture
from openwork.report.mask_picture import mask_data_uri, mask_matrix
from openwork.report.numbers import clean, count, dims, finite, percent, shorten
from openwork.report.svg import Axis, Band, Bar, Panel, Series, bar_chart, line_chart
from openwork.report.table import (
    densities,
    made_by,
    metric_names,
    nearly_empty,
    promised,
    stage_label,
    stage_value,
    verdict,
)
from openwork.report.theme import card, grid, html_page, html_table, section

MOST_MASKS, MOST_BARS, MOST_EXTRAS = 12, 60, 6
DRAWN = {"step", "phase", "share", "density", "changed", "path"}


def report_html(data: Mapping[str, Any], masks: Mapping[str, Tensor] | None = None) -> str:
    """The page of one result.

    Args:
        data: the content of ``openwork.json``; every key may be missing.
        masks: parameter name -> bool mask, for the pictures.
    """
    method = str(data.get("method", "result"))
    manifest = data.get("manifest") or {}
    under = " · ".join(str(manifest[k]) for k in ("model", "data") if manifest.get(k))
    sections = [
        section("In short", "", _cards(data)),
        section("Accuracy", "On the test set; the masks stay fixed while fine-tuning.", _accuracy(data)),
        section(
            "Where the weights went", f"Kept share of every pruned tensor. {nearly_empty(data)}".strip(), _layers(data)
        ),
        section("Groups", "Units of one line go together: dots make them, rings read them.", _groups(data)),
        section("While it ran", "", _course(data)),
        section("The path", "SpODE moves soft masks while the weights stay frozen; a unit may come back.", _path(data)),
        section("Masks", _MASK_NOTE, _masks(masks or {})),
        section("Coverage", "Every parameter: pruned, or left out for a reason.", _coverage(data)),
        section("Recipe and manifest", "Enough to run it again.", _manifest(data)),
    ]
    return html_page(
        f"{method}: openwork", method, under, verdict(data), sections, f"openwork {data.get('openwork', '')}"
    )


def _cards(data: Mapping[str, Any]) -> str:
    density = data.get("density") or {}
    rows = {name: (share, counted) for name, share, counted, _ in densities(data)}
    kept, targeted, total = (finite(density.get(k)) for k in ("kept", "targeted_numel", "total_numel"))
    zeros = None if kept is None or targeted is None else targeted - kept
    cards = [
        card(
            "Density of the targeted weights",
            rows["targeted"][0],
            f"{rows['targeted'][1]} kept",
            _asked(data),
            f"{rows['effective'][0]} on a path" if "effective" in rows else "",
        ),
        card(
            "Density of all parameters",
            rows["total"][0],
            f"{rows['total'][1]} kept",
            f"{rows['prunable'][0]} of the prunable weights",
        ),
        card("Zeros", count(zeros), f"of {count(total)} parameters"),
    ]
    if density:
        return f'<div class="cards">{"".join(cards)}{_accuracy_card(data)}</div>'
    only = _accuracy_card(data)
    return f'<div class="cards">{only}</div>' if only else ""


def _asked(data: Mapping[str, Any]) -> str:
    what, reached, asked = promised(data)
    return f"asked {asked}" if what == "density" else f"{what}: {reached}, asked {asked}"


def _groups(data: Mapping[str, Any]) -> str:
    """The picture of the coupled groups, as an image so that its style stays its own."""
    try:
        groups = drawn(data.get("groups") or [])
        shapes = {str(t["name"]): [int(n) for n in t["shape"]] for t in data.get("tensors") or []}
    except (KeyError, TypeError, ValueError):
        return ""
    if not groups:
        return ""
    title = str((data.get("manifest") or {}).get("model") or data.get("method") or "groups")
    code = base64.b64encode(group_picture(title, shapes, groups).encode()).decode()
    return f'<img alt="Groups of {clean(title)}" style="max-width:100%" src="data:image/svg+xml;base64,{code}">'


def _accuracy_card(data: Mapping[str, Any]) -> str:
    """Where the pruned model ended; a dense control that was trained last is not the result."""
    told = {stage: finite(values.get("accuracy")) for stage, values in _stages(data).items()}
    found = {stage: value for stage, value in told.items() if value is not None}
    if not found:
        return ""
    pruned = [s for s in found if not s.startswith("dense")]
    last = "finetuned" if "finetuned" in found else (pruned or list(found))[-1]
    before = [f"{s} {percent(found[s])}" for s in ("dense", "pruned") if s in found and s != last]
    gap = ""
    if "dense" in found and last != "dense":
        gap = f"{100 * (found[last] - found['dense']):+.2f} points against dense"
    return card(f"Accuracy, {stage_label(last)}", percent(found[last]), ", ".join(before), gap.replace("-", "−"))


def _stages(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {s: v for s, v in (data.get("metrics") or {}).items() if isinstance(v, Mapping)}


def _accuracy(data: Mapping[str, Any]) -> str:
    stages = _stages(data)
    bars = [
        Bar(stage_label(stage), value, percent(value), _loss(found), 6 if stage.startswith("dense") else 0)
        for stage, found in stages.items()
        if (value := finite(found.get("accuracy"))) is not None
    ]
    names = metric_names(stages)
    if bars and set(names) <= {"accuracy", "loss", "ece", "top5"}:
        return bar_chart("Accuracy by stage", bars)
    rows = [[stage_label(stage), *(stage_value(n, found.get(n)) for n in names)] for stage, found in stages.items()]
    table = html_table("Metrics by stage", ["stage", *names], rows, right=range(1, len(names) + 1)) if names else ""
    return grid(bar_chart("Accuracy by stage", bars), table) if bars else table


def _loss(found: Mapping[str, Any]) -> str:
    words = (("top5", "top-5"), ("loss", "loss"), ("ece", "ECE"))
    told = [f"{word} {stage_value(name, found[name])}" for name, word in words if finite(found.get(name)) is not None]
    return ", ".join(told)


def _pruned(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [t for t in data.get("tensors") or [] if t.get("units")]


def _layers(data: Mapping[str, Any]) -> str:
    rows = _pruned(data)
    bars = [
        Bar(
            str(t.get("name", "")),
            t.get("density"),
            percent(t.get("density")),
            f"{count(t.get('kept'))} of {count(t.get('numel'))}",
        )
        for t in rows[:MOST_BARS]
    ]
    if not bars:
        return ""
    half = -(-len(bars) // 2) if len(bars) > 10 else len(bars)
    more = (
        f'<p class="note">and {len(rows) - MOST_BARS} more tensors in the table below</p>'
        if len(rows) > MOST_BARS
        else ""
    )
    charts = [bar_chart("Density of each tensor", bars[:half])]
    if bars[half:]:
        charts.append(bar_chart("Density of each tensor, continued", bars[half:]))
    return grid(*charts) + more


def _course(data: Mapping[str, Any]) -> str:
    figures = []
    curve = data.get("curve") or []
    stages = list(dict.fromkeys(str(c.get("stage")) for c in curve))
    for key, axis in (("loss", Axis("loss")), ("accuracy", Axis("accuracy", unit="%"))):
        lines = []
        for stage in stages:
            points = [c for c in curve if str(c.get("stage")) == stage and finite(c.get(key)) is not None]
            if points:
                lines.append(Series(stage, [c.get("step") for c in points], [c.get(key) for c in points]))
        if lines:
            figures.append(line_chart(f"Training {key}", Axis("step of the stage"), Panel(lines, axis)))
    log = data.get("log") or []
    if len(log) > 1:
        x, bands = Axis("optimiser step"), _bands(log)
        steps = [e.get("step") for e in log]
        extras = dict.fromkeys(k for e in log for k, v in e.items() if k not in DRAWN and finite(v) is not None)
        for title, key, axis in (
            ("Density at every mask update", "density", Axis("density", unit="%")),
            ("Units that changed", "changed", Axis("units")),
            *((_capital(k.replace("_", " ")), k, Axis("as logged")) for k in list(extras)[:MOST_EXTRAS]),
        ):
            panel = Panel([Series(key.replace("_", " "), steps, [e.get(key) for e in log])], axis)
            figures.append(line_chart(title, x, panel, bands=bands))
    return grid(*figures)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bands(log: Sequence[Mapping[str, Any]]) -> list[Band]:
    """A band for every run of equal phases, up to where the next begins; none when there is only one phase."""
    bands: list[Band] = []
    for entry in log:
        step, name = finite(entry.get("step")), str(entry.get("phase") or "no")
        if step is None:
            continue
        if bands:
            bands[-1] = Band(bands[-1].name, bands[-1].begin, step)
        if not bands or bands[-1].name != name:
            bands.append(Band(name, step, step))
    return bands if len({b.name for b in bands}) > 1 else []


def _path(data: Mapping[str, Any]) -> str:
    path = next((e["path"] for e in reversed(data.get("log") or []) if e.get("path")), None)
    if not path:
        return ""
    k = [p.get("k") for p in path]

    def series(name: str, key: str) -> Series:
        return Series(name, k, [p.get(key) for p in path])

    x = Axis("step of the path")
    return grid(
        line_chart("Energy (loss at the polarised mask)", x, Panel([series("energy", "energy")], Axis("loss"))),
        line_chart(
            "Density",
            x,
            Panel([series("scheduled", "density"), series("soft measure G", "G")], Axis("density", unit="%")),
        ),
        line_chart(
            "Units that came back and left",
            x,
            Panel([series("removed", "removed")], Axis("removed")),
            Panel([series("regrown", "regrown")], Axis("regrown")),
        ),
        line_chart("Negative mask entries", x, Panel([series("negative", "negative")], Axis("entries"))),
    )


_MASK_NOTE = (
    "Rows are outputs, columns inputs (kernel positions first). Coloured = kept. Where a pixel stands for several "
    "entries, its strength is the square root of their kept share."
)


def _masks(masks: Mapping[str, Tensor]) -> str:
    largest = sorted((n for n in masks if masks[n].numel()), key=lambda n: -masks[n].numel())
    pictures = []
    for name in largest[:MOST_MASKS]:
        mask = masks[name]
        text = f"{dims(list(mask.shape))}, kept {percent(float(mask.float().mean()))}"
        rows, columns = mask_matrix(mask).shape
        frame = f'class="ink" style="aspect-ratio:{min(max(columns / rows, 1.0), 3.0):.3f}"'
        image = f'<div {frame}><img alt="mask of {clean(name)}, {clean(text)}" src="{mask_data_uri(mask)}"></div>'
        caption = f'<figcaption title="{clean(name)}">{clean(shorten(name, 28))}</figcaption>'
        pictures.append(f'<figure class="mask">{caption}<p>{clean(text)}</p>{image}</figure>')
    hidden = len(largest) - len(pictures)
    more = f'<p class="note">{hidden} smaller masks are not drawn.</p>' if hidden else ""
    return f'<div class="masks">{"".join(pictures)}</div>{more}' if pictures else ""


def _coverage(data: Mapping[str, Any]) -> str:
    tensors = data.get("tensors") or []
    rows = [[str(t.get("name", "")), dims(t.get("shape")), count(t.get("numel")), *_kept(t), _fate(t)] for t in tensors]
    quiet = [i for i, t in enumerate(tensors) if not t.get("units")]
    heads = ["tensor", "shape", "entries", "units kept", "entries kept", "density", "what happened"]
    return html_table("Coverage of all parameters", heads, rows, right=range(2, 6), quiet=quiet) if rows else ""


def _kept(t: Mapping[str, Any]) -> list[str]:
    if not t.get("units"):
        return ["", count(t.get("numel")), percent(1.0)]
    return [
        f"{count(t.get('units_kept'))} of {count(t.get('units'))}",
        count(t.get("kept")),
        percent(t.get("density")),
    ]


def _fate(t: Mapping[str, Any]) -> str:
    return f"left dense: {t['skipped']}" if t.get("skipped") else "pruned"


def _manifest(data: Mapping[str, Any]) -> str:
    rows = [[k, v] for k, v in made_by(data)]
    table = html_table("Manifest", ["what", "value"], rows) if rows else ""
    if not data.get("recipe"):
        return table
    recipe = clean(json.dumps(data["recipe"], indent=2, default=str, ensure_ascii=False))
    return f"{table}<details><summary>Recipe</summary><pre>{recipe}</pre></details>"
