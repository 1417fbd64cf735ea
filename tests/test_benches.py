"""The quick variant of the benches that need a few seconds: they run, and their rows are complete."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def quick(name, folder):
    """Run one bench with --quick in a copy of its folder; its result."""
    for file in BENCH.glob("*.py"):
        shutil.copy(file, folder)
    run = subprocess.run(
        [sys.executable, f"{name}.py", "--quick"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((folder / "results" / f"{name}_quick.json").read_text())
    assert found["machine"]["threads"] == 1
    return found


def test_quick_formats(tmp_path):
    # tried: columns of 32 bits for all -> red
    found = quick("formats", tmp_path)
    assert {r["sparsity"] for r in found["rows"]} >= {0.5, 0.8, 0.9, 0.95}
    for row in found["rows"]:
        if row["dtype"] == "float32":
            kept = 1 - row["sparsity"]  # of a few large blocks, so roughly
            index = 0.5 if "CSR" in row["pattern"] else 0.13
            assert 0.9 * kept < row["ratio"] < (1.1 + index) * kept + 0.1
            assert row["error"] == 0


@pytest.mark.parametrize("name", ["init_digits", "floor_digits", "rounds_digits", "digits_oneshot", "digits_blocks"])
def test_quick_bench(name, tmp_path):
    # tried: a method under a name that the index does not have -> red
    found = quick(name, tmp_path)
    accuracy = [r.get("accuracy") or r["after"] for r in found["rows"]]
    assert all(0 < a["mean"] <= 1 for a in accuracy)
    densest = max(r["density"] for r in found["rows"])
    assert max(a["mean"] for r, a in zip(found["rows"], accuracy, strict=True) if r["density"] == densest) > 0.15
