"""What every bench shares: the machine, interleaved timing, spread, and JSON results."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from safetensors.torch import save_file

import openwork as ow
from openwork.core.machine import processor
from openwork.data import DataSet
from openwork.kernels import isa
from openwork.lab import Job, Runner

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, threads and versions."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "openwork": ow.__version__,
    }


def write(name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> None:
    """``bench/results/NAME.json``: machine, command line of the script, rows."""
    RESULTS.mkdir(exist_ok=True)
    data = {"bench": name, "machine": machine(), **extra, "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def of_isa(name: str, threads: int, *, quick: bool) -> str:
    """A result's name with the kernels' instruction set (AVX2 has none) and threads; quick ones have neither."""
    if quick:
        return f"{name}_quick"
    return name + ("" if isa() == "avx2" else f"_{isa()}") + ("" if threads == 1 else f"_{threads}")


def earlier(name: str) -> list[dict[str, Any]]:
    """The rows of the last result of that name, for benches that measure a part and keep the rest; none at first."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text())["rows"] if file.is_file() else []


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and the values themselves."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": list(values)}


def interleaved(candidates: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of every candidate, measured in turn, round after round, so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(warmup + rounds):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            if i >= warmup:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, Sequence[float]], one: str, base: str) -> dict[str, float]:
    """Median of the per-round ratios, with their quartiles."""
    ratios = sorted(a / b for a, b in zip(times[one], times[base], strict=True))
    n = len(ratios)
    return {"ratio": median(ratios), "low": ratios[n // 4], "high": ratios[(3 * n) // 4], "rounds": n}


def accuracies(results: Sequence[Any], stage: str = "finetuned") -> dict[str, Any]:
    """Spread of the test accuracy of several runs at one stage."""
    return spread([r.metrics[stage]["accuracy"] for r in results])


def row(setting: str, density: float, method: str, results: Sequence[Any], stage: str = "finetuned") -> dict[str, Any]:
    """One printed row of a table of accuracies; ``stage`` is the moment they were measured at."""
    found = accuracies(results, stage)
    print(f"{setting:28} {density:6g} {method:32} {100 * found['mean']:6.2f} {found['values']}", flush=True)
    smallest = min(t["kept"] for r in results for t in r.tensors if t["units"])
    return {
        "setting": setting,
        "density": density,
        "method": method,
        "accuracy": found,
        "smallest_layer": smallest,
    }


def trained(job: Job, data: DataSet, folder: str | Path) -> str:
    """Train the job's dense network and nothing else; the path of its weights, a ``checkpoint`` for other jobs."""
    budget = replace(job.budget, finetune_epochs=0)
    model, _ = Runner(replace(job, method="magnitude", density=1.0, at="init", budget=budget), data=data).run()
    path = Path(folder) / f"{job.seed}.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


Plans = Mapping[str, Mapping[str, Any]]
"""Name of a row -> what its job has that others have not."""


def table(
    setting: str,
    data: DataSet,
    seeds: Sequence[int],
    densities: Sequence[float],
    plans: Plans,
    stage: str = "finetuned",
    **job: Any,
) -> list[dict[str, Any]]:
    """Every plan at every density with every seed, one row each; ``job`` is what all plans share."""
    rows = []
    for density in densities:
        for name, own in plans.items():
            jobs = [Job(**{"data": data.name, "density": density, "seed": s, **job, **own}) for s in seeds]
            rows.append(row(setting, density, name, [Runner(j, data=data).run()[1] for j in jobs], stage))
    return rows
