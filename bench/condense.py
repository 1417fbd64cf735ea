"""The rows of a comparison as a result file: `openwork compare` keeps every cell, the docs need the table.

python bench/condense.py COMPARISON_FOLDER NAME TITLE [--incomplete]

With --incomplete a comparison that breaks rules of honest comparison is taken, and the rules go with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import write

KEYS = ("setting", "method", "role", "structure", "density", "seeds", "collapsed", "failed", "lr", "parameters")


def main(folder: Path, name: str, title: str, incomplete: bool) -> None:
    found = json.loads((folder / "results.json").read_text())
    unmet = [f"{r['rule']} ({r['detail']})" for r in found["rules"] if not r["met"]]
    if unmet and not incomplete:
        raise SystemExit(f"{folder}: the comparison is not complete; go on with openwork compare --resume")
    rows = [{k: r[k] for k in (*KEYS, "pruned", "recalibrated", "finetuned")} for r in found["rows"]]
    note = (
        "Every method with the learning rate that was best on a tenth of the training set; mean and spread over "
        f"{len(found['manifest']['seeds'])} seeds, collapsed runs included. Methods that train sparse have one stage."
    )
    told = {"unmet": unmet} if unmet else {}
    command = found["manifest"]["command"].replace("openwork compare ", "openwork compare recipes/", 1)
    write(name, rows, title=title, command=command, note=note, data=found["manifest"]["data"], **told)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], "--incomplete" in sys.argv)
