"""The kernels under Triton's interpreter, each file in a process that had ``TRITON_INTERPRET=1`` from its start."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent / "kernels"
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "least"), [("test_products", 50), ("test_epilogues", 30), ("test_hostile", 10)])
def test_kernels(file, least):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install 'openwork[gpu]'")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(KERNELS / f"{file}.py")],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None, run.stdout[-2000:]
    assert int(passed.group(1)) >= least
    assert "skipped" not in run.stdout
