"""A comparison as one HTML page, as Markdown, and as rows for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openwork.report.numbers import MISSING, count, number, percent, seconds
from openwork.report.svg import Axis, Panel, Series, scatter_chart
from openwork.report.table import Column, markdown_table
from openwork.report.theme import card, html_page, html_table, section

HEADS = ("method", "density", "after pruning", "recalibrated", "fine-tuned", "drop", "collapsed", "failed")
SPREAD = "mean ± sample standard deviation over seeds"
AT_A_TIME = 14  # series in one chart: more cannot be told apart


def suite_html(results: Mapping[str, Any]) -> str:
    """The page: rules, curves, tables, learning rates, densities, errors, manifest."""
    name = str(results["suite"]["name"])
    broken = [r for r in results["rules"] if not r["met"]]
    lede = (
        f"Incomplete: {len(broken)} of {len(results['rules'])} rules of an honest comparison are not met. Read every "
        "figure below with that in mind."
        if broken
        else "Every rule of an honest comparison below is met. Masked weights are dense tensors with zeros: this page "
        "compares accuracy at equal density, not speed."
    )
    sections = [section("Rules", "What a comparison must hold before a curve means something.", _rules(results))]
    for setting in results["settings"]:
        sections += _setting(results, setting)
    sections += [
        section("Errors", "Failed cells are counted in the tables and left out of the means.", _errors(results)),
        section("Manifest", "Enough to run it again.", _manifest(results)),
    ]
    label = f"{name} (incomplete)" if broken else name
    under = " · ".join(
        [
            _some(results["settings"], "setting"),
            _some(results["suite"]["methods"], "method"),
            _some(results["suite"]["densities"], "density", "densities"),
            _some(results["suite"]["seeds"], "seed"),
        ]
    )
    return html_page(
        f"{label}: comparison", label, under, lede, sections, f"openwork {results['manifest']['openwork']}"
    )


def compare_table(results: Mapping[str, Any], setting: str | None = None) -> str:
    """Markdown: one row for each method and density of one setting (the first unless named).

    Accuracies are mean ± sample standard deviation over seeds, in percent.
    """
    name = setting or results["settings"][0]["name"]
    columns = [Column(h, right=i > 0) for i, h in enumerate(HEADS)]
    return markdown_table([cells_of_row(r) for r in rows_of(results, name)], columns)


def rows_of(results: Mapping[str, Any], setting: str) -> list[Mapping[str, Any]]:
    """The rows of one setting: dense ones first, then by density, controls before methods."""
    rows = [r for r in results["rows"] if r["setting"] == setting]
    return sorted(rows, key=lambda r: (r["structure"] != "-" or r["density"] != 1.0, -r["density"], _rank(r)))


def cells_of_row(row: Mapping[str, Any]) -> list[str]:
    """What the tables say about a row, in the order of ``HEADS``."""
    if row["missing"]:
        return [str(row["method"]), percent(row["density"]), "", "", f"none: {row['missing']}", "", "", ""]
    return [
        str(row["method"]),
        percent(row["density"]),
        *(_spread(row[m]) for m in ("pruned", "recalibrated", "finetuned")),
        _points(row["drop"]),
        f"{row['collapsed']} of {row['seeds']}" if row["collapsed"] else "0",
        f"{row['failed']} of {row['seeds']}" if row["failed"] else "0",
    ]


def _some(things: Sequence[Any], one: str, more: str = "") -> str:
    return f"1 {one}" if len(things) == 1 else f"{len(things)} {more or one + 's'}"


def _rank(row: Mapping[str, Any]) -> int:
    return 0 if row["role"] == "control" else 1


def _rules(results: Mapping[str, Any]) -> str:
    rows = [["met" if r["met"] else "NOT MET", r["rule"], r["detail"]] for r in results["rules"]]
    return html_table(
        "Rules", ["", "rule", "detail"], rows, quiet=[i for i, r in enumerate(results["rules"]) if r["met"]]
    )


def _setting(results: Mapping[str, Any], setting: Mapping[str, Any]) -> list[str]:
    name = setting["name"]
    rows = rows_of(results, name)
    what = (
        f"{setting['model']} on {setting['data']}: {count(setting['parameters'])} parameters, chance "
        f"{percent(setting['chance'])}, {count(setting['steps'][0])} dense and {count(setting['steps'][1])} "
        f"fine-tuning steps. Bars are one sample standard deviation; the dashed line is the dense network."
    )
    table = html_table(
        f"Accuracy, {name}", HEADS, [cells_of_row(r) for r in rows], right=range(1, 8), quiet=_set_back(rows)
    )
    heads = ["method", "asked", "targeted", "prunable", "all parameters", "non-zero", "learning rate", "time of a run"]
    detail = html_table(
        f"Densities, {name}", heads, [_detail(r) for r in rows], right=range(1, 8), quiet=_set_back(rows)
    )
    return [
        section(name, what, f'<div class="cards">{_cards(rows)}</div>'),
        section("Accuracy and density", "", f'<div class="grid">{"".join(_charts(rows))}</div>'),
        section("Three moments", f"{SPREAD}; the drop is against the dense network of the same seed.", table),
        section(
            "Density and learning rate",
            "Kept share of the pruned tensors, of all prunable weights and of all parameters. A star marks a learning "
            "rate at the edge of its grid.",
            detail,
        ),
    ]


def _set_back(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [i for i, r in enumerate(rows) if r["role"] == "control"]


def _cards(rows: Sequence[Mapping[str, Any]]) -> str:
    dense = [r for r in rows if r["density"] == 1.0 and r["structure"] == "-" and r["finetuned"]]
    cards = [card(r["method"], percent(r["finetuned"]["mean"]), _spread(r["finetuned"])) for r in dense]
    runs = sum(r["seeds"] for r in rows)
    collapsed, failed = (sum(r[k] for r in rows) for k in ("collapsed", "failed"))
    cards.append(card("Runs", count(runs), f"{collapsed} collapsed, {failed} failed"))
    return "".join(cards)


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A chart for each structure and moment; controls and methods of one chart share its dense line."""
    dense = next((r["finetuned"]["mean"] for r in rows if r["method"] == "dense" and r["finetuned"]), None)
    charts = []
    curves = [r for r in rows if r["method"] != "dense" and not (r["density"] == 1.0 and r["structure"] == "-")]
    shared = [r for r in curves if r["structure"] == "-"]
    for structure in dict.fromkeys(r["structure"] for r in curves if r["structure"] != "-"):
        here = [r for r in curves if r["structure"] == structure]
        for moment, told in (
            ("finetuned", "after fine-tuning"),
            ("recalibrated", "recalibrated"),
            ("pruned", "pruned"),
        ):
            mine = [*here, *shared] if moment == "finetuned" else here
            mine.sort(key=lambda r: r["role"] == "control")  # the methods share the first chart
            lines = [s for m in dict.fromkeys(r["method"] for r in mine) if (s := _series(m, moment, mine)).x]
            for begin in range(0, len(lines), AT_A_TIME):
                part = f", {begin // AT_A_TIME + 1}" if len(lines) > AT_A_TIME else ""
                panel = Panel(lines[begin : begin + AT_A_TIME], Axis("accuracy", unit="%"))
                title = f"{structure}, {told}{part}"
                charts.append(scatter_chart(title, Axis("density asked", "log", "%"), panel, dense, joined=True))
    return charts


def _series(method: str, moment: str, rows: Sequence[Mapping[str, Any]]) -> Series:
    mine = [r for r in rows if r["method"] == method and r[moment]]
    return Series(
        method,
        [r["density"] for r in mine],
        [r[moment]["mean"] for r in mine],
        [r[moment]["std"] or 0.0 for r in mine],
    )


def _detail(row: Mapping[str, Any]) -> list[str]:
    reached = row["reached"] or {}
    lr = MISSING if row["lr"] is None else number(row["lr"]) + (" *" if row["lr_at_edge"] else "")
    took = MISSING if row["missing"] else seconds(row["seconds"])
    shares = [percent(reached.get(k)) for k in ("targeted", "prunable", "total")]
    return [str(row["method"]), percent(row["density"]), *shares, count(row["parameters"]), lr, took]


def _errors(results: Mapping[str, Any]) -> str:
    rows = [
        [f"{r['method']} at {r['density']:g}", r["setting"], error] for r in results["rows"] for error in r["errors"]
    ]
    return html_table("Errors", ["row", "setting", "error"], rows) if rows else ""


def _manifest(results: Mapping[str, Any]) -> str:
    manifest, suite = results["manifest"], results["suite"]
    rows = [[k.replace("_", " "), str(manifest[k])] for k in ("openwork", "torch", "python", "machine", "command")]
    rows += [["seeds", ", ".join(map(str, manifest["seeds"]))], ["suite", f"sha256 {manifest['suite_sha256']}"]]
    rows += [[f"data of {name}", f"fingerprint {mark}"] for name, mark in manifest["data"].items()]
    grid = ", ".join(map(number, suite["lr"])) or "none"
    rows += [["learning rates tried", f"{grid} (on {percent(suite['validation'])} of the training set, seed 0)"]]
    rows += [["time of all runs together", seconds(results["seconds"])]]
    return html_table("Manifest", ["what", "value"], rows)


def _spread(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["std"] is None:
        return percent(found["mean"])
    return f"{100 * found['mean']:.2f} ± {100 * found['std']:.2f} %"


def _points(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    spread = "" if found["std"] is None else f" ± {100 * found['std']:.2f}"
    return f"{100 * found['mean']:+.2f}{spread}".replace("-", "−")
