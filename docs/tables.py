"""How every result file of ``bench/results`` becomes a table of the benchmark page.

A result with ``columns`` (header -> ``key`` or ``key:format``) needs nothing here. Formats are Python's, ``percent``, ``spread``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparisons import COMPARISONS
from goals import with_goals, with_threads

from openwork.lab.summary import SMALL_RULE, small_rule

Found = dict[str, Any]
REPORTS = Path(__file__).parent / "reports"


@dataclass(frozen=True)
class Section:
    """One table with its words; ``title`` and ``command`` fall back to those of the result file."""

    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    command: str = ""


NAMES = {
    "avx2": "AVX2",
    "amx": "AVX-512 and AMX",
    "avx512_bf16": "AVX-512 on Zen 5",
}  # of the kernels' instruction sets, in headings
SECTIONS: dict[str, Callable[[Found], Section]] = {}
"""Result name -> how it is shown, in the order of the page."""


def section(*names: str) -> Callable[[Callable[[Found], Section]], Callable[[Found], Section]]:
    """Register a function for result files."""

    def register(make: Callable[[Found], Section]) -> Callable[[Found], Section]:
        SECTIONS.update(dict.fromkeys(names, make))
        return make

    return register


def spread(value: dict[str, Any]) -> str:
    """Mean and sample standard deviation in points."""
    around = "" if value["std"] is None else f" ± {100 * value['std']:.1f}"
    return f"{100 * value['mean']:.1f}{around}"


def cell(row: Found, what: str) -> str:
    """One value of a row by ``key`` or ``key:format``; empty when there is none."""
    key, _, form = what.partition(":")
    value = row.get(key)
    if value is None:
        return ""
    if form == "spread":
        return spread(value)
    return f"{100 * value:.4g} %" if form == "percent" else format(value, form)


def described(found: Found, columns: dict[str, str] | None = None, **words: str) -> Section:
    """A section whose columns are named, here or by the result itself."""
    named = columns or found["columns"]
    rows = [[cell(r, what) for what in named.values()] for r in found["rows"]]
    return Section(words.pop("text", found.get("note", "")), list(named), rows, **words)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


@section("digits_oneshot")
def _digits_oneshot(found: Found) -> Section:
    columns = {
        "fine-tuning": "finetune",
        "density": "density:g",
        "method": "method",
        "before fine-tuning": "before:spread",
        "after": "after:spread",
        "regrown along the path": "returned:.0f",
    }
    for r in found["rows"]:
        r["returned"] = r["regrown"]["mean"] if "regrown" in r else None
    text = (
        f"Dense {spread(found['dense'])}, {found['seeds']} seeds, MLP 64-128-128-10, all three weights, 20 epochs of "
        "fine-tuning."
    )
    return described(
        found, columns, title="Digits MLP, one-shot, global", command="python bench/digits_oneshot.py", text=text
    )


@section("digits_blocks")
def _digits_blocks(found: Found) -> Section:
    columns = {
        "inputs": "inputs",
        "density": "density:g",
        "learning rate": "rate:g",
        "method": "method",
        "reached (parameters)": "reached:.4f",
        "accuracy": "after:spread",
    }
    return described(
        found,
        columns,
        title="Digits MLP, 8x8 blocks, sparse training",
        command="python bench/digits_blocks.py",
        text=f"{found['steps']} steps for every row, {found['seeds']} seeds. In the `scaled` rows every input pixel is "
        "multiplied by 10^U(-1, 1).",
    )


@section("spode_variants")
def _spode_variants(found: Found) -> Section:
    columns = {
        "density": "density:g",
        "setting": "method",
        "before fine-tuning": "before:spread",
        "after": "after:spread",
    }
    text = (
        f"The same trained digits MLPs, {found['seeds']} seeds; after pruning and after 20 epochs at 0.01. More steps "
        "help before fine-tuning, 2 / density of them too little to depend on it; so does a search over the radius. The "
        "default follows the schedule's density (`paper` follows G, which large radii break); hess and linear paths take "
        "too large last steps. Masks clamped to 0 and 1 gain ten points before fine-tuning at 0.01 and nothing after it. "
        "Sums in float32 choose the same masks, the code's direction others that are as good."
    )
    return described(found, columns, title="SpODE's settings", command="python bench/spode_variants.py", text=text)


@section(
    *("init_digits", "shares_digits", "gradual_digits", "rounds_digits", "causes"),
    *("floor_digits", "growth_fashion", "baselines_digits", "channels_fashion", "rearranged"),
)
def _accuracies(found: Found) -> Section:
    columns = {"setting": "setting", "density": "density:g", "method": "method", "accuracy": "accuracy:spread"}
    return described(found, columns | {"smallest layer keeps": "smallest_layer", "squared weight kept": "kept:spread"})


@section("soups_digits")
def _soups(found: Found) -> Section:
    for r in found["rows"]:
        if "merges" in r:
            r["mean_"], r["best_"] = (f"{r[k]} of {r['merges']}" for k in ("no_worse_than_mean", "no_worse_than_best"))
        r["support_"] = r["support"]["mean"] if "support" in r else None
    columns = {
        "density": "density:g",
        "method": "method",
        "accuracy": "accuracy:spread",
        "merges no worse than the mean copy": "mean_",
        "than the best": "best_",
        "weights that are not zero": "support_:percent",
    }
    text = (
        f"Digits MLP with a BatchNorm, {found['rounds']} rounds of pruning, {found['epochs']} epochs each, {found['copies']} copies, "
        f"{len(found['rows'][0]['accuracy']['values'])} seeds. Networks pruned apart from each other do not share their zeros: "
        "their average has more weights than each."
    )
    return described(found, columns, title="Model soups", command="python bench/soups_digits.py", text=text)


@section("mechanisms", "small_cnn", "sanity_digits")
def _mechanisms(found: Found) -> Section:
    columns = {"of": "case", "what": "what", "mean": "mean:.3g", "standard deviation": "std:.2g"}
    return described(found, found.get("columns", columns))


@section(*COMPARISONS)
def _comparison(found: Found) -> Section:
    columns = {
        "method": "method",
        "structure": "structure",
        "density": "density:g",
        "parameters": "parameters:,.0f",
        "after pruning": "pruned:spread",
        **({"after BN recalibration": "recalibrated:spread"} if found["bench"].startswith("oneshot") else {}),
        "at the end": "finetuned:spread",
        **({"top-5": "top5:spread"} if any("top5" in r for r in found["rows"]) else {}),
        **({"log loss": "log_loss"} if "loss" in found["rows"][0] else {}),
        "learning rate": "lr_",
        "collapsed": "collapsed_",
    }
    for r in found["rows"]:
        r["lr_"] = None if r["lr"] is None else f"{r['lr']:g}" + r"\*" * r.get("lr_at_edge", False)
        r["collapsed_"] = r["collapsed"] or None
        if r.get("loss"):
            r["log_loss"] = f"{r['loss']['mean']:.4f} ± {r['loss']['std']:.4f}"
    page = f"{found['bench'].replace('_', '-')}.html"
    unmet, small = list(found.get("unmet", ())), small_rule(found["rows"])
    if not small["met"] and not any(told.startswith(SMALL_RULE) for told in unmet):  # condensed before it was looked at
        unmet.append(f"{SMALL_RULE} ({small['detail']})")
    end = f"Not met: {'; '.join(unmet)}. " if unmet else ""
    if (REPORTS / page).is_file():
        end += f"The curves: [the page of this comparison](reports/{page})."
    else:
        end += "[The leaderboard](reports/leaderboard.html)."
    return described(found, columns, text=f"{found['note']} {_edges(found)} {end}")


def _edges(found: Found) -> str:
    """How many of the tuned learning rates lie where the grid ends: a wider one might have found better."""
    tuned = [r["lr_at_edge"] for r in found["rows"] if "lr_at_edge" in r]
    if not tuned:
        return "Whether a learning rate lies at an edge of its grid was not kept with this result."
    star = " (\\*): a wider grid might give better accuracies" if any(tuned) else ""
    return f"{sum(tuned)} of {len(tuned)} tuned rates lie at an edge of their grid{star}."


@section("memory")
def _memory(found: Found) -> Section:
    columns = {"method": "method", "peak MiB": "mib:.0f", "over dense training": "over_dense:.2f"}
    return described(found, columns, title="Peak memory of the methods", command="python bench/memory.py")


@section("architectures")
def _architectures(found: Found) -> Section:
    """One network a row: what is covered, the proof of the small one, and what becomes of it."""

    def off(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.0e}" if value else "0"
        return "" if value is None else value.split(":")[0]

    for r in found["rows"]:
        r["less"] = r["small"] / r["params"] if "small" in r else None
        r["over"] = "yes" if "units that stay" in r.get("reference", "") else None
        for key in ("error", "reload", "export", "onnx"):
            r[key] = off(r.get(key))
        if isinstance(r.get("onnx_dense"), str):
            r["onnx"] = "nor of the dense one"
        r["stopped"] = (r.get("failed") or r["refused"] or "").split(";")[0][:90].replace("|", "/")
    columns = {
        "family": "family",
        "network": "name",
        "graph, s": "seconds:.2f",
        "in groups": "coverage:percent",
        "parameters left": "less:percent",
        "error": "error",
        "statistics change": "over",
        "reloaded": "reload",
        "torch.export": "export",
        "ONNX Runtime": "onnx",
        "stopped by": "stopped",
    }
    words = ", ".join(f"{n} {v}" for n, v in found["versions"].items())
    text = (
        "Tiny networks with random weights. Half of the units of every kind (channels, heads, widths, experts) are taken "
        "away at random; the small network is compared with the masked one, reloaded in a fresh process without pickle, "
        "exported by `torch.export` and to ONNX, and run there: the largest difference of the outputs, over the largest "
        "output where that is above one. *In groups* is the share of the parameters that some group touches; where "
        "statistics change, the masked network takes them over what stays. Seconds are CPU time of one thread on a busy "
        f"machine. {words}."
    )
    return described(
        found,
        columns,
        title="Every architecture: groups, a proof, a reload, exports",
        command="python bench/architectures.py",
        text=text,
    )


@section("structural")
def _structural(found: Found) -> Section:
    """Time beside multiply-accumulates, accuracy at equal ones, and how long graphs take."""
    columns = {
        "part": "part",
        "setting": "setting",
        "by": "by",
        "method": "method",
        "share of the multiply-accumulates": "macs:.3f",
        "share of the time": "median:.3f",
        "after the cut": "pruned:spread",
        "fine-tuned": "accuracy:spread",
        "seconds": "seconds:.2f",
        "MiB": "mib:.0f",
        "failed": "failed",
    }
    return described(found, columns, title=found["title"], command=found["command"])


@section("speed")
def _speed(found: Found) -> Section:
    rows = [
        [
            r["what"],
            f"{r.get('ratio', r.get('seconds')):.3f}",
            f"{r['low']:.3f} to {r['high']:.3f}" if "low" in r else "",
            "" if r["goal"] is None else f"{r['goal']:g}",
        ]
        for r in found["rows"]
    ]
    text = "Ratios are medians of interleaved rounds with quartiles."
    columns = ["what", "value", "spread", "goal (at most)"]
    return Section(text, columns, rows, "Cost of openwork itself", "python bench/speed.py")


@section("formats")
def _formats(found: Found) -> Section:
    zeros = sorted({r["sparsity"] for r in found["rows"]})
    cells: dict[tuple[str, str], dict[float, float]] = {}
    for r in found["rows"]:
        cells.setdefault((r["pattern"], r["dtype"]), {})[r["sparsity"]] = r["ratio"]
    rows = [[*key, *(f"{ratios[c]:.4f}" if c in ratios else "" for c in zeros)] for key, ratios in cells.items()]
    size = f"{found['rows_of_matrix']} x {found['cols_of_matrix']}"
    text = (
        f"Whole file over the whole dense float32 file ({found['dense']:,} bytes), one {size} layer with its bias; header, "
        "index and checksums count. int8 has one float32 scale per row (large blocks: per block). "
        "What the formats are: [storage formats](formats.md)."
    )
    columns = ["pattern", "dtype", *(f"{100 * c:g} % zeros" for c in zeros)]
    return Section(text, columns, rows, "Bytes on disk of packed layers", "python bench/formats.py")


@section(*(f"kernels{isa}{threads}" for isa in ("", "_amx", "_avx512_bf16") for threads in ("", "_2")))
def _kernels(found: Found) -> Section:
    threads = found["machine"]["threads"]
    for r in found["rows"]:
        r["over"] = f"{r['over_fastest']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
    goals = with_goals(found["rows"]) if found["isa"] != "avx2" else ""
    columns = {
        "case": "case",
        "pattern": "pattern",
        "zeros": "sparsity:percent",
        "ms": "ms:.3g",
        "torch ms": "torch_ms:.3g",
        "oneDNN ms": "onednn_ms:.3g",
        "x over the fastest dense": "over",
        "x over torch": "over_torch:.2f",
        **({"goal": "goal"} if goals else {}),
        "error": "error:.0e",
    }
    return described(
        found,
        columns,
        title=f"Sparse products, {NAMES[found['isa']]}, {threads} thread{'s' * (threads > 1)}",
        command="python bench/kernels.py" + (f" --threads {threads}" if threads > 1 else ""),
        text=f"{found['note']} oneDNN is the dense product with its weights in oneDNN's own order; cold rows read their "
        f"weights from memory, as a model does. {goals} {with_threads(found)}".strip(),
    )


@section(*(f"whole_models{isa}{threads}" for isa in ("", "_amx", "_avx512_bf16") for threads in ("", "_2")))
def _whole_models(found: Found) -> Section:
    for r in found["rows"]:
        r["share"] = f"{r['packed_layers']} of {r['layers']}"
        r["between"] = "yes" if r.get("fused") else "no"
    columns = {
        "model": "case",
        "pattern": "pattern",
        "zeros": "sparsity:percent",
        "packed ms": "packed:.3g",
        "dense ms": "dense:.3g",
        "oneDNN ms": "onednn:.3g",
        "x over dense": "over_dense:.2f",
        "x over oneDNN": "over_onednn:.2f",
        "packed layers": "share",
        "fused": "between",
        "error": "error:.0e",
        "of a layer": "layer_error:.0e",
        "x over dense float32": "over_float32:.2f",
        "error to it": "error_float32:.0e",
    }
    threads = found["machine"]["threads"]
    title = f"Whole models, {NAMES[found.get('isa', 'avx2')]}" + (f", {threads} threads" if threads > 1 else "")
    command = "python bench/whole_models.py" + (f" --threads {threads}" if threads > 1 else "")
    return described(found, columns, title=title, command=command)


@section("kill_resume")
def _kill_resume(found: Found) -> Section:
    text = (
        f"{found['kills']} SIGKILLs at random moments of `openwork prune` (also during saves), over {len(found['rows'])} runs "
        "of four methods; every resumed run ended bit-identical to one that was never killed: "
        f"**{'yes' if found['identical'] else 'no'}**. No file was ever half-written."
    )
    return Section(text, (), (), "Killed and resumed", "python bench/kill_resume.py")


@section("commands")
def _commands(found: Found) -> Section:
    columns = {"command": "what", "result": "value"}
    return described(
        found,
        columns,
        title="Whole commands",
        command="python bench/commands.py",
        text="In a clean clone with a new environment.",
    )
