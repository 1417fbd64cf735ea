"""`make demo` and `make test`, each in a clean clone with a new environment: do they work, and how long do they take.

python bench/commands.py
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

from common import write

ROOT = Path(__file__).parents[1]
TELLING = {"demo": r"\d+ s in all|outputs agree bit for bit", "test": r"\d+ passed.*"}


def main() -> None:
    rows = []
    for target, telling in TELLING.items():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
            began = time.monotonic()
            run = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True)
            seconds = time.monotonic() - began
        said = "; ".join(re.findall(telling, run.stdout))
        value = f"exit {run.returncode}, {seconds:.0f} s with the installation; {said}"
        print(f"make {target}: {value}", flush=True)
        rows.append({"what": f"`make {target}`", "value": value})
    write("commands", rows)


if __name__ == "__main__":
    main()
