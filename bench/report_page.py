"""How large the page of a comparison of 1,000 runs is, and what opening it costs in headless Chromium.

python bench/report_page.py [--quick]

One cell is run for real; its record, with other accuracies, stands for every run of a suite. The page and an empty page
are opened in turn. Processor seconds are those of the thread that parses, lays out, runs scripts and paints, less
those of the empty page; the time until it stands is wall time until the event `load` is over and something is drawn.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import write
from harness import grid

from openwork.data import load_data
from openwork.lab.cells import Cell, cells_of
from openwork.lab.facts import facts_of
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import results_of
from openwork.lab.worker import Task, blank, execute
from openwork.report import suite_html

NAMES = ("chromium", "chromium-browser", "google-chrome")
EMPTY = "<!doctype html><title>empty</title><p>.</p>"
STANDS = ("loadEventEnd", "firstContentfulPaint")


def page(runs: int) -> tuple[str, int]:
    """The page of a suite of at least so many runs, and how many they are."""
    asked = grid(max(1, runs // 20), 10, 1, 0.2)
    asked["settings"]["digits"] |= {"model": "resnet20", "model_options": {}}
    asked["methods"] = {f"{name}, a variant of it": m for name, m in asked["methods"].items()}
    suite = read_suite({k: v for k, v in asked.items() if k != "controls"})
    facts = facts_of(suite)
    cells = [c for c in cells_of(suite, facts) if c.kind != "tune" and c.held_out == 0]
    with tempfile.TemporaryDirectory() as folder:
        known = execute(Task(next(c for c in cells if c.job.at == "init"), Path(folder)), load_data("digits"))
    rng = random.Random(0)
    records = [_record(c, known, rng.uniform(-0.3, 0.1)) for c in cells]
    return suite_html(results_of(suite, facts, records, "openwork compare suite.yaml")), len(cells)


def _record(cell: Cell, known: dict[str, Any], shift: float) -> dict[str, Any]:
    accuracy = min(1.0, max(0.1, 0.8 + shift - 0.02 / cell.density))
    metrics = {stage: {"accuracy": accuracy, "loss": 1 - accuracy} for stage in ("pruned", "recalibrated", "finetuned")}
    sizes = {key: round(known[key] * cell.density) for key in ("parameters", "macs", "bytes")}
    layers = [{**layer, "kept": round(cell.density * layer["numel"])} for layer in known["layers"]]
    return {**known, **blank(cell, 0.05), "metrics": metrics, "status": "done", "layers": layers, **sizes}


def opened(chromium: str, text: str, folder: Path) -> tuple[float, float]:
    """Processor seconds of the main threads of the renderers, and wall seconds until the page stands."""
    (folder / "page.html").write_text(text, encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
               "--window-size=1280,900", f"--screenshot={folder / 'page.png'}", "--trace-startup-duration=0",
               "--trace-startup=toplevel,loading,blink.user_timing", "--trace-startup-format=json",
               f"--trace-startup-file={folder / 'trace.json'}"]  # fmt: skip
    run = subprocess.run([*command, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=300)
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    tasks = [e for e in events if e.get("name") == "ThreadControllerImpl::RunTask" and e.get("ph") == "X"]
    used = [e.get("tdur", 0) for e in tasks if names.get((e["pid"], e["tid"])) == "CrRendererMain"]
    began = [e for e in events if _is_page(e)]
    assert used, run.stderr
    assert began, run.stderr
    process, at = began[-1]["pid"], began[-1]["ts"]
    last = max(e["ts"] for e in events if e["pid"] == process and e["ts"] >= at and e.get("name") in STANDS)
    return sum(used) / 1e6, (last - at) / 1e6


def _is_page(event: dict[str, Any]) -> bool:
    """Whether the event is the begin of the navigation to the page."""
    url = (event.get("args", {}).get("data") or {}).get("documentLoaderURL", "")
    return event.get("name") == "navigationStart" and str(url).endswith("page.html")


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    chromium = next((place for name in NAMES if (place := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit(f"this bench opens a page in Chromium and finds none; install one of {', '.join(NAMES)}")
    text, runs = page(20 if quick else 1000)
    costs, loads = [], []
    with tempfile.TemporaryDirectory() as name:
        for _ in range(1 if quick else 7):
            empty, _ = opened(chromium, EMPTY, Path(name))
            used, load = opened(chromium, text, Path(name))
            costs.append(used - empty)
            loads.append(load)
    rows = [
        {"what": "runs", "value": runs},
        {"what": "bytes of the page", "value": len(text.encode())},
        {"what": "processor seconds of parsing, layout, script and paint, median", "value": median(costs)},
        {"what": "seconds until it stands, median", "value": median(loads)},
        {"what": "and the fastest", "value": min(loads)},
        {"what": "and the slowest", "value": max(loads)},
    ]
    for r in rows:
        print(r, flush=True)
    write(
        "report_page_quick" if quick else "report_page",
        rows,
        title="The page of a thousand runs",
        command="python bench/report_page.py",
        note="In headless Chromium on a machine where other programs were busy. Processor time is that of the thread "
        "that builds the page, less that of an empty page opened in turn.",
        columns={"what": "what", "found": "value:.4g"},
        seconds={"processor": costs, "load": loads},
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
