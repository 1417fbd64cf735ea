"""The demo: four methods, blocks and single weights, equal budgets, several seeds, one model saved and reloaded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from openwork.core.protocols import Structure
from openwork.core.targets import Select
from openwork.data import DataSet, load_data
from openwork.engine.result import Result
from openwork.errors import OpenworkError, VerificationFailed
from openwork.lab.budget import Budget
from openwork.lab.job import Job
from openwork.lab.runner import Runner
from openwork.report import compare_html
from openwork.ship.atomic import refuse_place
from openwork.ship.folder import save_with
from openwork.structure import Block, Element

DENSITY = 0.05
METHODS = ("magnitude", "acdc", "sequential_attention_pp", "spode")
_RELOAD = """
import sys, torch, openwork as ow
from openwork.lab.demo import fingerprint
torch.set_num_threads(int(sys.argv[2]))
model, result = ow.load(sys.argv[1])
print(fingerprint(model, ow.load_data("digits").x_test), result.density)
"""


def run_demo(folder: str, seeds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; returns the rows of the table and the closing lines.

    Raises:
        OpenworkError: bad arguments.
        VerificationFailed: the reloaded model differs from the one in memory.
    """
    if seeds < 1 or steps < 50:
        raise OpenworkError(f"demo: seeds must be at least 1 and steps at least 50, got {seeds} and {steps}")
    refuse_place(Path(folder), overwrite=True)
    torch.set_num_threads(1)  # the network is small: one thread is fastest
    began, data = time.monotonic(), load_data("digits")
    say(
        f"digits, MLP 64-128-128-10, {steps} steps a run in all, {seeds} seeds, density {DENSITY} of every "
        "layer with >= 100 units"
    )
    rows, kept = (
        [_row("dense", "-", 1.0, [_run(data, "magnitude", Element(), 1.0, s, steps) for s in range(seeds)])],
        None,
    )
    for structure in (Block(8, 8), Element()):
        for method in METHODS:
            runs = [_run(data, method, structure, DENSITY, s, steps) for s in range(seeds)]
            rows.append(_row(method, str(structure), DENSITY, runs))
            say(f"  {method:<24} {structure!s:<24} {100 * rows[-1]['after_mean']:6.2f} %")
            kept = runs[0]
    assert kept is not None
    model, result, _ = kept
    page = compare_html(rows, "openwork demo: digits at 95 % sparsity").encode()
    target = save_with(model, result, folder, {"compare.html": page}, overwrite=True)
    check_reload(model, target, data)
    lines = [
        f"saved {target}: spode, density {result.density:.4f} (report.html, compare.html)",
        "reloaded in a fresh process: outputs agree bit for bit",
        f"{time.monotonic() - began:.0f} s in all",
    ]
    return {"rows": rows, "lines": lines}


def check_reload(model: nn.Module, folder: Path, data: DataSet) -> None:
    """Load the folder in a fresh process and compare outputs on the test set bit for bit."""
    command = [sys.executable, "-c", _RELOAD, str(folder), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VerificationFailed(
            f"{folder}: could not be loaded in a fresh process: {done.stderr.strip().splitlines()[-1]}"
        )
    if done.stdout.split()[0] != fingerprint(model, data.x_test):
        raise VerificationFailed(f"{folder}: the reloaded model gives other outputs than the one that was saved")


@torch.no_grad()
def fingerprint(model: nn.Module, x: torch.Tensor) -> str:
    """Hash of the model's outputs in eval mode."""
    return hashlib.sha256(model.eval()(x).contiguous().numpy().tobytes()).hexdigest()


def _run(
    data: DataSet, method: str, structure: Structure, density: float, seed: int, steps: int
) -> tuple[nn.Module, Result, float]:
    per_epoch = -(-len(data.x_train) // 128)
    dense = (2 * steps // 3) / per_epoch
    budget = Budget(dense, steps / per_epoch - dense, batch_size=128, lr=0.05, finetune_lr=0.05)
    job = Job("mlp", "digits", method, density, structure, Select(min_units=100), budget=budget, seed=seed)
    began = time.monotonic()
    model, result = Runner(job, data=data).run()
    return model, result, time.monotonic() - began


def _row(method: str, structure: str, density: float, runs: list[tuple[nn.Module, Result, float]]) -> dict[str, Any]:
    after = [r.metrics["finetuned"]["accuracy"] for _, r, _ in runs]
    before = [r.metrics["pruned"]["accuracy"] for _, r, _ in runs if "pruned" in r.metrics]
    return {
        "method": method,
        "structure": structure,
        "density": density,
        "reached": mean(r.density for _, r, _ in runs),
        "seeds": len(runs),
        "before_mean": mean(before) if before else None,
        "before_std": _spread(before),
        "after_mean": mean(after),
        "after_std": _spread(after),
        "seconds_mean": mean(t for _, _, t in runs),
    }


def _spread(values: list[float]) -> float | None:
    """Sample standard deviation, None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None
