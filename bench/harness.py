"""What the harness costs, and whether a suite that is killed again and again loses or repeats anything.

python bench/harness.py [--quick]

Overhead: what a cell of a comparison takes beside the job inside it, and what a worker takes before its first. Kills:
the parent gets SIGKILL at random moments and is started again with --resume; every finished record must stay as it was,
and the end must be that of a run without a disturbance.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from common import write

from openwork.data import load_data
from openwork.lab import worker
from openwork.lab.cells import cells_of
from openwork.lab.compare import compare
from openwork.lab.facts import facts_of
from openwork.lab.runner import Runner
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import without_times

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def grid(methods: int, densities: int, seeds: int, epochs: float, at: str = "pretrained") -> dict[str, Any]:
    """A suite of small runs on digits; no tuning, no controls but the dense networks that runs start from."""
    budget = {"epochs": epochs, "finetune_epochs": epochs, "batch_size": 64, "lr": 0.1, "finetune_lr": 0.05}
    return {
        "settings": {"digits": {"model": "mlp", "data": "digits", "model_options": {"hidden": [32]}, "budget": budget}},
        "methods": {
            f"{name} {i}": {"method": name, "at": at} for i in range(methods) for name in ("magnitude", "random")
        },
        "densities": [round(0.5 / (i + 1), 3) for i in range(densities)],
        "seeds": list(range(seeds)),
        "controls": [],
    }


def leaderboard(epochs: float) -> dict[str, Any]:
    """The job of most methods on the digits in recipes/leaderboard.yaml, of which there are a hundred."""
    suite = grid(1, 1, 1, epochs, "init")
    suite["settings"]["digits"] |= {"model_options": {}}
    suite["settings"]["digits"]["budget"] |= {"finetune_epochs": epochs * 1.5}  # all of the training, for `at: init`
    return suite


def processor() -> float:
    """Seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def start() -> tuple[float, float]:
    """Processor and wall seconds of a worker that starts and loads its data."""
    began, wall = processor(), time.monotonic()
    code = "import openwork.lab.worker as w; w.load_data('digits')"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENV)
    return processor() - began, time.monotonic() - wall


def overhead(rounds: int, epochs: float) -> dict[str, list[float]]:
    """Processor seconds of cells of a comparison: of the job inside, of what lies around it, of a worker's start."""
    data, found = load_data("digits"), {"job": [], "around": [], "start": [start()[0]]}
    suite = read_suite(leaderboard(epochs))
    cell = cells_of(suite, facts_of(suite))[0]
    inside = []

    class Timed(Runner):
        def run(self, **options: Any) -> Any:
            began = processor()
            result = super().run(**options)
            inside.append(processor() - began)
            return result

    worker.Runner = Timed  # type: ignore[misc]
    for i in range(rounds + 1):
        once = replace(cell, job=replace(cell.job, seed=i))
        with tempfile.TemporaryDirectory() as folder:
            began = processor()
            record = worker.execute(worker.Task(once, Path(folder)), data)
            assert record["status"] != "failed", record["error"]
            whole = processor() - began
        if i:  # the first one does whatever is done once
            found["job"].append(inside[-1])
            found["around"].append(whole - inside[-1])
    found["start"].append(start()[0])
    return found


def kills(count: int, size: tuple[int, int, int], epochs: float) -> dict[str, Any]:
    """Kill the parent of a suite of so many methods, densities and seeds ``count`` times; what was lost or repeated."""
    rng, asked = random.Random(0), grid(*size, epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
        began = time.monotonic()
        used = resource.getrusage(resource.RUSAGE_SELF)
        whole = compare(read_suite(asked, "s"), folder / "whole", 1)
        now = resource.getrusage(resource.RUSAGE_SELF)
        parent = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        took, done, lost = time.monotonic() - began, 0, 0
        files: dict[str, tuple[int, bytes]] = {}
        command = [sys.executable, "-m", "openwork", "compare", str(folder / "s.yaml"), "--out", str(folder / "o")]
        command += ["--resume", "--jobs", "1", "--quiet", "--save-every", "1"]

        def records() -> list[Path]:
            return [f for f in (folder / "o" / "cells").glob("*.json") if not f.name.startswith(".")]

        def changed() -> int:
            now = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in records()}
            bad = sum(files.get(k, v) != v for k, v in now.items()) + len(set(files) - set(now))
            files.update(now)
            return bad

        while True:
            process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while process.poll() is None and len(records()) <= len(files):  # every start gets at least one cell done
                time.sleep(0.02)
            try:
                process.wait(rng.uniform(0, 1.0) * took / (count + 1) if done < count else None)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                lost += changed()
        lost += changed()
        assert process.returncode == 0, process.stderr.read().decode() if process.stderr else ""
        again = json.loads((folder / "o" / "results.json").read_text())
        same = without_times({k: v for k, v in again.items() if k != "manifest"}) == without_times(
            json.loads(json.dumps({k: v for k, v in whole.items() if k != "manifest"}))
        )
        runs = len(again["cells"])
        return {"runs": runs, "kills": done, "lost": lost, "identical": same, "parent": parent / runs}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    found = overhead(2 if quick else 15, 1 if quick else 20)
    killed = kills(1 if quick else 20, (1, 2, 1) if quick else (5, 5, 4), 1 if quick else 4)
    bare, around, begin = (median(found[k]) for k in ("job", "around", "start"))
    more = around + killed["parent"]
    rows: list[dict[str, Any]] = [
        {"what": "processor seconds of a job", "value": bare},
        {"what": "the harness adds, seconds a job", "value": more},
        {"what": "and seconds a worker to start and to load its data, once", "value": begin},
        {"what": "so to 200 such jobs with one worker, share", "value": (200 * more + begin) / (200 * bare)},
        {"what": "seconds of 200 jobs, each, that make it 2 %", "value": (more + begin / 200) / 0.02},
        {"what": "runs of the suite that was killed", "value": killed["runs"]},
        {"what": "kills", "value": killed["kills"]},
        {"what": "records lost or written twice", "value": killed["lost"]},
        {"what": "results equal to those of an undisturbed run (1 = all)", "value": int(killed["identical"])},
    ]
    for r in rows:
        print(r, flush=True)
    write(
        "harness_quick" if quick else "harness",
        rows,
        title="The harness of comparisons",
        command="python bench/harness.py",
        note="Small runs on digits; processor time. Long jobs leave a checkpoint every 20 s as well. The parent of "
        "the suite was killed at random moments and started again with --resume.",
        columns={"what": "what", "found": "value:.4g"},
        seconds=found,
    )
    assert killed["identical"]
    assert not killed["lost"]


if __name__ == "__main__":
    main("--quick" in sys.argv)
