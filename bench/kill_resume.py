"""Kill `openwork prune` with SIGKILL at random moments; every resumed run must end bit-identical, no file half-written.

python bench/kill_resume.py [KILLS]
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import write
from safetensors import safe_open

from openwork.lab.checkpoint import load_state

METHODS = {
    "spode": ["--method", "spode", "--density", "0.05"],
    "sequential_attention_pp": [
        "--method",
        "sequential_attention_pp",
        "--density",
        "0.05",
        "--structure",
        "block:8x8",
        "--min-units",
        "100",
    ],
    "rigl": ["--method", "rigl", "--density", "0.1"],
    "imp": ["--method", "imp", "--density", "0.4"],
}
COMMON = [
    "--data",
    "digits",
    "--epochs",
    "40",
    "--finetune-epochs",
    "20",
    "--save-every",
    "0.05",
    "--threads",
    "1",
    "--quiet",
]


def command(out: Path, method: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "openwork", "prune", "--out", str(out), *COMMON, *METHODS[method], *more]


def fingerprint(folder: Path) -> str:
    return hashlib.sha256(
        (folder / "model.safetensors").read_bytes() + (folder / "masks.safetensors").read_bytes()
    ).hexdigest()


def check_files(out: Path) -> None:
    """Whatever exists must be whole."""
    work = out.with_name(f"{out.name}.partial")
    for file in work.glob("*.safetensors") if work.exists() else ():
        load_state(file)
    if out.exists():
        for file in ("model.safetensors", "masks.safetensors"):
            with safe_open(out / file, "pt") as opened:
                assert list(opened.keys())


def main(kills: int) -> None:
    rng, rows = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            whole = Path(folder) / f"{method}-whole"
            subprocess.run(command(whole, method), check=True, capture_output=True)
            began = time.monotonic()
            subprocess.run(command(whole, method, "--overwrite"), check=True, capture_output=True)
            seconds, want = time.monotonic() - began, fingerprint(whole)
            done = 0
            while done < -(-kills // len(METHODS)):
                out, row = Path(folder) / f"{method}-{done}-{rng.random()}", {"method": method, "kills": 0}
                while not out.exists():
                    process = subprocess.Popen(
                        command(out, method, *(["--resume"] if row["kills"] else [])),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                    )
                    try:
                        process.wait(timeout=rng.uniform(0.3, 0.9) * seconds if row["kills"] < 3 else None)
                        assert process.returncode == 0, process.stderr.read().decode() if process.stderr else ""
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        row["kills"] += 1
                        done += 1
                    check_files(out)
                row["identical"] = fingerprint(out) == want
                rows.append(row)
                print(row, flush=True)
    total: dict[str, Any] = {"kills": sum(r["kills"] for r in rows), "identical": all(r["identical"] for r in rows)}
    print(total)
    write("kill_resume", rows, **total)
    assert total["identical"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
