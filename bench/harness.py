"""What the harness costs, and whether a suite that is killed again and again loses or repeats anything.

python bench/harness.py [--quick]

Overhead: the same cells once as jobs in a loop of one process, once through the harness; all processor time, in turn,
so that other programs hit both alike. Kills: the parent gets SIGKILL at random moments and is started again with
--resume; every finished record must stay as it was, and the end must be that of a run without a disturbance.
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
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from common import write

from openwork.data import load_data
from openwork.lab.cells import cells_of, facts_of
from openwork.lab.compare import compare
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


def processor() -> float:
    """Seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def imports() -> float:
    """Processor seconds of a worker that only starts."""
    began = processor()
    subprocess.run([sys.executable, "-c", "import openwork.lab.worker"], check=True, env=ENV)
    return processor() - began


def overhead(rounds: int, epochs: float) -> dict[str, list[float]]:
    """Processor time through the harness over that of the bare jobs."""
    data, found = load_data("digits"), {"bare": [], "harness": [], "start": []}
    for i in range(rounds):
        suite = read_suite({**grid(1, 2, 1, epochs, "init"), "seeds": [i]})
        facts = facts_of(suite)
        cells = cells_of(suite, facts)
        began = processor()
        for cell in cells:
            Runner(cell.job, data=data).run()
        bare = processor() - began
        with tempfile.TemporaryDirectory() as folder:
            began = processor()
            compare(suite, Path(folder) / "o", 1)
            whole = processor() - began
        start = imports()
        for name, value in (("bare", bare), ("harness", whole), ("start", start)):
            found[name].append(value)
        print(f"bare {bare:.2f} s, harness {whole:.2f} s, of it {start:.2f} s to start", flush=True)
    return found


def kills(count: int, methods: int, epochs: float) -> dict[str, Any]:
    """Kill the parent ``count`` times; records, repetitions, and whether the end is the same."""
    rng, asked = random.Random(0), grid(methods, 5, 4, epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
        began = time.monotonic()
        whole = compare(read_suite(asked, "s"), folder / "whole", 1)
        took, done, lost = time.monotonic() - began, 0, 0
        files: dict[str, tuple[int, bytes]] = {}
        began = time.monotonic()
        imports()
        start = 2.5 * (time.monotonic() - began)  # the parent imports, then its worker
        command = [sys.executable, "-m", "openwork", "compare", str(folder / "s.yaml"), "--out", str(folder / "o")]
        command += ["--resume", "--jobs", "1", "--quiet", "--save-every", "1"]

        def changed() -> int:
            now = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in (folder / "o" / "cells").glob("*.json")}
            bad = sum(files.get(k, v) != v for k, v in now.items()) + len(set(files) - set(now))
            files.update(now)
            return bad

        while True:
            process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                process.wait(rng.uniform(0.4, 1.0) * (took / count + start) if done < count else None)
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
        return {"runs": len(again["cells"]), "kills": done, "lost_or_repeated": lost, "identical": same}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    found = overhead(1 if quick else 5, 1 if quick else 60)
    training = [w - s for w, s in zip(found["harness"], found["start"], strict=True)]
    shares = [t / b - 1 for t, b in zip(training, found["bare"], strict=True)]
    rows: list[dict[str, Any]] = [
        {"what": "processor time over that of bare jobs, start of the worker left out", "value": median(shares)},
        {"what": "processor seconds to start a worker, once for all its cells", "value": median(found["start"])},
    ]
    killed = kills(1 if quick else 20, 1 if quick else 5, 1 if quick else 4)
    rows += [
        {"what": "runs of the suite that was killed", "value": killed["runs"]},
        {"what": "kills", "value": killed["kills"]},
        {"what": "records lost or written twice", "value": killed["lost_or_repeated"]},
        {"what": "results equal to those of an undisturbed run (1 = all)", "value": int(killed["identical"])},
    ]
    for r in rows:
        print(r, flush=True)
    write(
        "harness_quick" if quick else "harness",
        rows,
        title="The harness of comparisons",
        command="python bench/harness.py",
        note=f"Suites of small runs on digits. Overhead: {len(shares)} suites, the same jobs in a loop of one process "
        "and through the harness with one worker, in turn. The parent was killed at random moments.",
        columns={"what": "what", "found": "value:.4g"},
        overhead=shares,
    )
    assert killed["identical"]
    assert not killed["lost_or_repeated"]


if __name__ == "__main__":
    main("--quick" in sys.argv)
