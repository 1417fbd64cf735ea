"""A comparison as one HTML page, as Markdown, and as rows for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openwork.report.curves import AT_A_TIME, MOST_PARTS, cost_charts, density_charts
from openwork.report.numbers import MISSING, count, number, percent, seconds
from openwork.report.suite_board import suite_board
from openwork.report.table import Column, markdown_table
from openwork.report.theme import card, grid, html_page, html_table, section

HEADS = ("method", "density", "after pruning", "recalibrated", "fine-tuned", "drop", "collapsed", "failed")
DETAIL_HEADS = (
    "method", "asked", "targeted", "effective", "prunable", "all parameters", "non-zero", "learning rate",
    "time of a run",
)  # fmt: skip
MOST_ROWS = 200  # of the two tables of a setting: the leaderboard and table.csv have all
SPREAD = "mean ± sample standard deviation over seeds"
SANITY = (", mask shuffled", ", weights drawn anew")
"""The ends of the names of sanity controls."""
SANITY_HEADS = ("method", "density", "check", "accuracy", "of the control", "gain", "seeds", "verdict")
_SANITY_NOTE = (
    "A mask shuffled inside each layer keeps how many weights every layer has and forgets which; weights drawn anew "
    "under the same mask are trained from the start. A method is called better where it wins by more than the noise of "
    "paired seeds (95 %, one-sided): where it is not, its choice of weights, or its trained weights, made no "
    "measurable difference."
)
_COST_NOTE = (
    "Counted for one input: multiply-accumulates with weights that are not zero, and bytes of the values that are not "
    "zero with one bit for every unit of a pruned tensor. Kernels may save less: milliseconds stand here only where "
    "they were measured. Training counts all examples of all steps, scoring, and the dense network that a row began "
    "from, as a machine would that skips every zero. Diamonds in the leaderboard and the first series mark rows that "
    "no other beats in both."
)
_BOARD_NOTE = (
    "Press a heading to sort, type to filter, open a method for its runs, their records and the density of each layer. "
    "Structures differ in what they can save: compare within one, or by what was counted and measured."
)


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
    sections.append(section("Leaderboard", _BOARD_NOTE, suite_board(results)))
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
    foot = f"openwork {results['manifest']['openwork']}"
    return html_page(f"{label}: comparison", label, under, lede, sections, foot, script=True)


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
    some = rows[:MOST_ROWS]
    rest = f" The first {MOST_ROWS} of {count(len(rows))} rows; table.csv has all." if len(rows) > MOST_ROWS else ""
    table = html_table(
        f"Accuracy, {name}", HEADS, [cells_of_row(r) for r in some], right=range(1, 8), quiet=_set_back(some)
    )
    detail = html_table(
        f"Densities, {name}", DETAIL_HEADS, [_detail(r) for r in some], right=range(1, 9), quiet=_set_back(some)
    )
    main = [r for r in rows if not r["method"].endswith(SANITY)]
    drawn = grid(*density_charts(results, name, main))
    return [
        section(name, what, f'<div class="cards">{_cards(rows)}</div>'),
        section("Accuracy and density", _crowd(main), drawn),
        section("Accuracy and cost", _COST_NOTE, grid(*cost_charts(results, name, main))),
        section("Sanity checks", _SANITY_NOTE, _sanity(results, name)),
        section("Three moments", f"{SPREAD}; the drop is against the dense network of the same seed.{rest}", table),
        section(
            "Density and learning rate",
            "Kept share of the pruned tensors, of all prunable weights and of all parameters; effective counts only "
            "what lies on a path from an input to an output. A star marks a learning rate at the edge of its grid.",
            detail,
        ),
    ]


def sanity_rows(results: Mapping[str, Any], setting: str) -> list[list[str]]:
    """What the sanity checks of one setting found, in the order of ``SANITY_HEADS``."""
    told = []
    for check in results.get("sanity") or ():
        if check["setting"] == setting:
            gain = None if check["gain"] is None else {"mean": check["gain"], "std": check["std"]}
            numbers = [percent(check["own"]), percent(check["control"]), _points(gain), str(check["seeds"])]
            place = [str(check["method"]), percent(check["density"]), str(check["check"])]
            told.append([*place, *numbers, str(check["verdict"])])
    return told


def _sanity(results: Mapping[str, Any], setting: str) -> str:
    rows = sanity_rows(results, setting)
    quiet = [i for i, r in enumerate(rows) if r[-1] != "better"]
    return html_table(f"Sanity checks, {setting}", SANITY_HEADS, rows, right=range(3, 7), quiet=quiet) if rows else ""


def _crowd(rows: Sequence[Mapping[str, Any]]) -> str:
    """What is said where there are more methods than charts hold."""
    found, most = len({r["method"] for r in rows}), MOST_PARTS * AT_A_TIME
    return f"Of {found} methods and controls up to {most} are drawn; the leaderboard has all." if found > most else ""


def _set_back(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [i for i, r in enumerate(rows) if r["role"] == "control"]


def _cards(rows: Sequence[Mapping[str, Any]]) -> str:
    dense = [r for r in rows if r["density"] == 1.0 and r["structure"] == "-" and r["finetuned"]]
    cards = [card(r["method"], percent(r["finetuned"]["mean"]), _spread(r["finetuned"])) for r in dense]
    runs = sum(r["seeds"] for r in rows)
    collapsed, failed = (sum(r[k] for r in rows) for k in ("collapsed", "failed"))
    cards.append(card("Runs", count(runs), f"{collapsed} collapsed, {failed} failed"))
    return "".join(cards)


def _detail(row: Mapping[str, Any]) -> list[str]:
    reached = row["reached"] or {}
    lr = MISSING if row["lr"] is None else number(row["lr"]) + (" *" if row["lr_at_edge"] else "")
    took = MISSING if row["missing"] else seconds(row["seconds"])
    shares = [percent(reached.get(k)) for k in ("targeted", "effective", "prunable", "total")]
    return [str(row["method"]), percent(row["density"]), *shares, count(row["parameters"]), lr, took]


def _errors(results: Mapping[str, Any]) -> str:
    rows = [
        [f"{r['method']} at {r['density']:g}", r["setting"], error] for r in results["rows"] for error in r["errors"]
    ]
    return html_table("Errors", ["row", "setting", "error"], rows) if rows else ""


def _manifest(results: Mapping[str, Any]) -> str:
    manifest, suite = results["manifest"], results["suite"]
    rows = [[k.replace("_", " "), str(manifest[k])] for k in ("openwork", "torch", "python", "machine", "command")]
    rows += [[k, ", ".join(map(str, manifest[k]))] for k in ("processors", "threads", "commits") if manifest.get(k)]
    rows += [["seeds", ", ".join(map(str, manifest["seeds"]))], ["suite", f"sha256 {manifest['suite_sha256']}"]]
    rows += [[f"data of {name}", f"fingerprint {mark}"] for name, mark in manifest["data"].items()]
    grid = ", ".join(map(number, suite["lr"])) or "none"
    if suite.get("search"):
        search = suite["search"]
        ranges = ", ".join(f"{name} {number(low)} to {number(high)}" for name, (low, high) in search["ranges"].items())
        grid = f"{search['trials']} trials of {search['sampler']}, {ranges}"
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
