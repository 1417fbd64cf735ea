"""The rows of a comparison as a result file: `openwork compare` keeps every cell, the docs need the table.

python bench/condense.py COMPARISON_FOLDER NAME TITLE [--incomplete] [--losses | --sanity]

With --incomplete a comparison that breaks rules of honest comparison is taken, and the rules go with it; of one that
is complete but for the size of its small dense network the page is taken too. With --losses the losses at the end stand
beside the accuracies; --sanity takes what methods gain over their own masks shuffled and on weights drawn anew instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import spread, write

from openwork.lab.summary import SMALL_RULE, small_rule
from openwork.report.suite_page import suite_html

REPORTS = Path(__file__).parents[1] / "docs" / "reports"
KEYS = ("setting", "method", "role", "structure", "density", "seeds", "collapsed", "failed", "lr", "parameters")
MOMENTS = ("pruned", "recalibrated", "finetuned")
REST = ("top5", "macs", "bytes", "milliseconds", "training_macs", "seconds")
"""Top-5 accuracy where there is one; then costs of one input, of the packed network, of the training and of a run."""
SANITY = {
    "method": "method",
    "density": "density:g",
    "accuracy": "own:spread",
    "over its mask shuffled": "mask shuffled:spread",
    "beyond the noise": "mask shuffled, verdict",
    "over its mask on new weights": "weights drawn anew:spread",
    "beyond their noise": "weights drawn anew, verdict",
}


def main(folder: Path, name: str, title: str, incomplete: bool, losses: bool, sanity: bool = False) -> None:
    found = json.loads((folder / "results.json").read_text())
    checked(found)
    unmet = [f"{r['rule']} ({r['detail']})" for r in found["rules"] if not r["met"]]
    if unmet and not incomplete:
        raise SystemExit(f"{folder}: the comparison is not complete; go on with openwork compare --resume")
    rows = [row_of(r, found["suite"]) for r in found["rows"]]
    if losses:
        cells = [json.loads(p.read_text()) for p in sorted((folder / "cells").glob("*.json"))]
        cells = [c for c in cells if c["kind"] in ("run", "dense") and "validation" not in c["key"]]
        rows = [{**row, "loss": loss_of(row, cells)} for row in rows]
    suite, manifest = found["suite"], found["manifest"]
    where = f" at density {suite['tune_at']:g}" if "tune_at" in suite else ""
    note = (
        f"Every method with the learning rate that was best on a tenth of the training set{where}; mean and spread "
        f"over {len(manifest['seeds'])} seeds, collapsed runs included. Methods that train sparse have one "
        "stage."
    )
    if any(s["budget"].get("precision") == "bfloat16" for s in suite["settings"]):
        note += " Trained and evaluated in bfloat16 under autocast."
    told: dict[str, Any] = {"unmet": unmet} if unmet else {}
    command = manifest["command"].replace("openwork compare ", "openwork compare recipes/", 1)
    if not unmet or {r["rule"] for r in found["rules"] if not r["met"]} == {SMALL_RULE}:
        (REPORTS / f"{name.replace('_', '-')}.html").write_text(suite_html(found))
    if sanity:
        rows, told["columns"] = sanity_rows(found["sanity"]), SANITY
        note = (
            "Does it matter which weights a method chose? What every method gains, seed by seed, over its own mask "
            "shuffled inside each layer and trained in the same way, and over its mask on weights drawn anew that are "
            f"trained from scratch as long as everything together; {len(manifest['seeds'])} seeds, collapsed runs "
            "included. Beyond the noise: at 95 %, one-sided, of paired seeds."
        )
    write(
        name,
        rows,
        machine=machine_of(found),
        title=title,
        command=command,
        note=note,
        data=manifest["data"],
        commits=manifest.get("commits", []),
        suite_sha256=manifest["suite_sha256"],
        suite=without_places(suite),
        settings=found["settings"],
        **told,
    )


def sanity_rows(sanity: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method and density, with both of its checks."""
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    for told in sanity:
        own = {"mean": told["own"], "std": None}
        kept = {k: told[k] for k in ("setting", "method", "density")}
        row = rows.setdefault((told["method"], told["density"]), kept | {"own": own})
        row[told["check"]] = {"mean": told["gain"], "std": told["std"]}
        row[f"{told['check']}, verdict"] = "yes" if told["verdict"] == "better" else "no"
    return list(rows.values())


def checked(found: dict[str, Any]) -> None:
    """Hold the small dense control to its size also in comparisons that were made before that was looked at."""
    now = small_rule(found["rows"])
    if not now["met"]:
        found["rules"] = [now if r["rule"] == SMALL_RULE and r["met"] else r for r in found["rules"]]
        found["complete"] = False


def without_places(suite: dict[str, Any]) -> dict[str, Any]:
    """The suite without the folders of the machine it ran on: weights by the name of their file."""
    settings = [
        {**s, "root": None, "checkpoint": s["checkpoint"] and Path(s["checkpoint"]).name} for s in suite["settings"]
    ]
    return {**suite, "settings": settings}


def row_of(row: dict[str, Any], suite: dict[str, Any]) -> dict[str, Any]:
    """What stays of a row: accuracies, every denominator of its density, its costs, and where its rate lies."""
    kept = {k: row[k] for k in (*KEYS, *MOMENTS)}
    if (len(suite["lr"]) > 1 or suite.get("search")) and row["lr"] is not None and row["method"] != "dense":
        kept["lr_at_edge"] = row["lr_at_edge"]
    if row["reached"]:
        kept["reached"] = {k: round(v, 6) for k, v in row["reached"].items() if v is not None}
    if row["missing"]:
        kept["missing"] = row["missing"]
    return kept | {k: row[k] for k in REST if row.get(k) is not None}


def machine_of(found: dict[str, Any]) -> dict[str, Any]:
    """The machine of the run, from its manifest and its cells; older ones told the architecture only."""
    manifest, cells = found["manifest"], found["cells"]
    versions = {k: ", ".join(sorted({c[k] for c in cells if c.get(k)})) for k in ("torch", "openwork")}
    return {
        "cpu": ", ".join(manifest.get("processors") or ()) or f"{manifest['machine']} (processor not recorded)",
        "threads": max((c["threads"] for c in cells if c.get("threads")), default=1),
        **{k: v or manifest[k] for k, v in versions.items()},
        "python": manifest["python"],
    }


def loss_of(row: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean and spread of the loss at the end over the cells of a row."""
    same = [c for c in cells if all(c[k] == row[k] for k in ("setting", "method", "role", "density"))]
    found = [c["metrics"]["finetuned"]["loss"] for c in same if "finetuned" in c["metrics"]]
    return spread(found) if found else None


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        sys.argv[2],
        sys.argv[3],
        incomplete="--incomplete" in sys.argv,
        losses="--losses" in sys.argv,
        sanity="--sanity" in sys.argv,
    )
