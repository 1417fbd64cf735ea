"""One run as one self-contained HTML page: no scripts, no network, every text escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from openwork.report.mask_picture import mask_data_uri
from openwork.report.numbers import clean, count, dims, percent, seconds
from openwork.report.svg import Axis, Band, Bar, Panel, Series, bar_chart, line_chart
from openwork.report.table import densities, made_by, stage_label, verdict
from openwork.report.theme import card, grid, html_page, html_table, section

MOST_MASKS, MOST_BARS = 12, 60


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
        section("Where the weights went", "Kept share of every pruned tensor.", _layers(data)),
        section("While it ran", "", _course(data)),
        section("The path", "SpODE moves soft masks while the weights stay frozen; a unit may come back.", _path(data)),
        section(
            "Masks", "Rows are outputs, columns inputs (kernel positions first). Coloured = kept.", _masks(masks or {})
        ),
        section("Coverage", "Every parameter: pruned, or left out for a reason.", _coverage(data)),
        section("Recipe and manifest", "Enough to run it again.", _manifest(data)),
    ]
    return html_page(
        f"{method}: openwork", method, under, verdict(data), sections, f"openwork {data.get('openwork', '')}"
    )


def _cards(data: Mapping[str, Any]) -> str:
    cards = [card(name, share, counted, note) for name, share, counted, note in densities(data)]
    metrics = data.get("metrics") or {}
    if metrics:
        last = next(reversed(list(metrics)))
        accuracy = metrics[last].get("accuracy")
        first = (metrics.get("dense") or {}).get("accuracy")
        cards.append(
            card(
                f"Accuracy, {stage_label(last)}",
                percent(accuracy),
                f"dense {percent(first)}" if first is not None else "",
            )
        )
    took = (data.get("manifest") or {}).get("seconds")
    if took is not None:
        cards.append(card("Time", seconds(took)))
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _accuracy(data: Mapping[str, Any]) -> str:
    metrics = data.get("metrics") or {}
    bars = [
        Bar(stage_label(stage), found["accuracy"], percent(found["accuracy"]), _loss(found))
        for stage, found in metrics.items()
        if found.get("accuracy") is not None
    ]
    return bar_chart("Accuracy by stage", bars) if bars else ""


def _loss(found: Mapping[str, Any]) -> str:
    return f"loss {found['loss']:.3f}" if isinstance(found.get("loss"), float) else ""


def _pruned(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [t for t in data.get("tensors") or [] if t.get("units")]


def _layers(data: Mapping[str, Any]) -> str:
    rows = _pruned(data)
    bars = [
        Bar(t["name"], t["density"], percent(t["density"]), f"{count(t['kept'])} of {count(t['numel'])}")
        for t in rows[:MOST_BARS]
    ]
    more = (
        f"<p class='note'>and {len(rows) - MOST_BARS} more tensors in the table below</p>"
        if len(rows) > MOST_BARS
        else ""
    )
    return bar_chart("Density of each tensor", bars) + more if bars else ""


def _course(data: Mapping[str, Any]) -> str:
    figures = []
    curve = data.get("curve") or []
    stages = list(dict.fromkeys(str(c.get("stage")) for c in curve))
    lines = []
    for stage in stages:
        points = [c for c in curve if str(c.get("stage")) == stage]
        lines.append(Series(stage, [c.get("step") for c in points], [c.get("loss") for c in points]))
    if lines:
        figures.append(line_chart("Training loss", Axis("step of the stage"), Panel(lines, Axis("loss"))))
    log = data.get("log") or []
    if len(log) > 1:
        steps, shares = [e.get("step") for e in log], [e.get("density") for e in log]
        chart = Panel([Series("density", steps, shares)], Axis("density", unit="%"))
        figures.append(line_chart("Density at every mask update", Axis("optimiser step"), chart, bands=_bands(log)))
        changed = [e.get("changed") for e in log]
        figures.append(
            line_chart(
                "Units that changed", Axis("optimiser step"), Panel([Series("changed", steps, changed)], Axis("units"))
            )
        )
    return grid(*figures)


def _bands(log: Sequence[Mapping[str, Any]]) -> list[Band]:
    bands: list[Band] = []
    for entry in log:
        step, name = float(entry.get("step") or 0), str(entry.get("phase", ""))
        if bands and bands[-1].name == name:
            bands[-1] = Band(name, bands[-1].begin, step)
        else:
            if bands:
                bands[-1] = Band(bands[-1].name, bands[-1].begin, step)
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


def _masks(masks: Mapping[str, Tensor]) -> str:
    largest = sorted(masks, key=lambda n: -masks[n].numel())
    pictures = []
    for name in largest[:MOST_MASKS]:
        mask = masks[name]
        text = f"{dims(list(mask.shape))}, kept {percent(float(mask.float().mean()))}"
        image = f'<div class="ink"><img alt="mask of {clean(name)}" src="{mask_data_uri(mask)}"></div>'
        pictures.append(
            f'<figure class="mask"><figcaption>{clean(name)}</figcaption><p>{clean(text)}</p>{image}</figure>'
        )
    more = (
        f'<p class="note">{len(masks) - MOST_MASKS} smaller masks are not drawn.</p>' if len(masks) > MOST_MASKS else ""
    )
    return f'<div class="masks">{"".join(pictures)}</div>{more}' if pictures else ""


def _coverage(data: Mapping[str, Any]) -> str:
    tensors = data.get("tensors") or []
    rows = [[t["name"], dims(t["shape"]), count(t["numel"]), *_kept(t), t.get("skipped") or "pruned"] for t in tensors]
    quiet = [i for i, t in enumerate(tensors) if not t.get("units")]
    heads = ["tensor", "shape", "entries", "units kept", "entries kept", "density", "what happened"]
    return html_table("Coverage of all parameters", heads, rows, right=range(2, 6), quiet=quiet) if rows else ""


def _kept(t: Mapping[str, Any]) -> list[str]:
    if not t.get("units"):
        return ["", count(t["numel"]), percent(1.0)]
    return [f"{count(t['units_kept'])} of {count(t['units'])}", count(t["kept"]), percent(t["density"])]


def _manifest(data: Mapping[str, Any]) -> str:
    rows = [[k, v] for k, v in made_by(data)]
    table = html_table("Manifest", ["what", "value"], rows) if rows else ""
    if not data.get("recipe"):
        return table
    recipe = clean(json.dumps(data["recipe"], indent=2))
    return f"{table}<details><summary>Recipe</summary><pre>{recipe}</pre></details>"
