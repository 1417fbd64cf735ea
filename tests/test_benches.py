"""The quick variant of the benches that need a few seconds: they run, and their rows are complete."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize("name", ["init_digits", "floor_digits", "rounds_digits", "digits_oneshot", "digits_blocks"])
def test_quick_bench(name, tmp_path):
    # tried: a method under a name that the index does not have -> red
    for file in BENCH.glob("*.py"):
        shutil.copy(file, tmp_path)
    run = subprocess.run(
        [sys.executable, f"{name}.py", "--quick"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "results" / f"{name}_quick.json").read_text())
    assert found["machine"]["threads"] == 1
    accuracy = [r.get("accuracy") or r["after"] for r in found["rows"]]
    assert all(0 < a["mean"] <= 1 for a in accuracy)
    densest = max(r["density"] for r in found["rows"])
    assert max(a["mean"] for r, a in zip(found["rows"], accuracy, strict=True) if r["density"] == densest) > 0.15
