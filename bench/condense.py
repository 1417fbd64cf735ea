"""The rows of a comparison as a result file: `openwork compare` keeps every cell, the docs need the table.

python bench/condense.py COMPARISON_FOLDER NAME TITLE [--incomplete] [--losses]

With --incomplete a comparison that breaks rules of honest comparison is taken, and the rules go with it; of a complete
one the page is taken too. With --losses the losses at the end stand beside the accuracies.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from common import spread, write

REPORTS = Path(__file__).parents[1] / "docs" / "reports"
KEYS = ("setting", "method", "role", "structure", "density", "seeds", "collapsed", "failed", "lr", "parameters")


def main(folder: Path, name: str, title: str, incomplete: bool, losses: bool) -> None:
    found = json.loads((folder / "results.json").read_text())
    unmet = [f"{r['rule']} ({r['detail']})" for r in found["rules"] if not r["met"]]
    if unmet and not incomplete:
        raise SystemExit(f"{folder}: the comparison is not complete; go on with openwork compare --resume")
    rows = [{k: r[k] for k in (*KEYS, "pruned", "recalibrated", "finetuned")} for r in found["rows"]]
    if losses:
        cells = [json.loads(p.read_text()) for p in sorted((folder / "cells").glob("*.json"))]
        cells = [c for c in cells if c["kind"] in ("run", "dense") and "validation" not in c["key"]]
        rows = [{**row, "loss": loss_of(row, cells)} for row in rows]
    suite = json.loads((folder / "suite.json").read_text())["suite"]
    where = f" at density {suite['tune_at']:g}" if "tune_at" in suite else ""
    note = (
        f"Every method with the learning rate that was best on a tenth of the training set{where}; mean and spread "
        f"over {len(found['manifest']['seeds'])} seeds, collapsed runs included. Methods that train sparse have one "
        "stage."
    )
    if any(s["budget"].get("precision") == "bfloat16" for s in suite["settings"]):
        note += " Trained and evaluated in bfloat16 under autocast."
    told = {"unmet": unmet} if unmet else {}
    command = found["manifest"]["command"].replace("openwork compare ", "openwork compare recipes/", 1)
    if not unmet:
        shutil.copyfile(folder / "report.html", REPORTS / f"{name.replace('_', '-')}.html")
    write(name, rows, title=title, command=command, note=note, data=found["manifest"]["data"], **told)


def loss_of(row: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean and spread of the loss at the end over the cells of a row."""
    same = [c for c in cells if all(c[k] == row[k] for k in ("setting", "method", "role", "density"))]
    found = [c["metrics"]["finetuned"]["loss"] for c in same if "finetuned" in c["metrics"]]
    return spread(found) if found else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], "--incomplete" in sys.argv, "--losses" in sys.argv)
