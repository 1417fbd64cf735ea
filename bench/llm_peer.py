"""A checkpoint folder pruned by SparseGPT at 50 %, by openwork and by llm-compressor: memory, CPU seconds, density.

``--peer PYTHON`` is the interpreter of llm-compressor's environment (see ``llm_compressor_side.py``); without it only
openwork's row is written. Each runs in a process of its own, one thread, and tells its largest resident memory, and how
much of that it had after its imports. A Llama of 374 million random weights in bfloat16 shards, 4 windows of 64
tokens; ``--size 1b`` for 1.1 billion. Rows of other sizes are kept. ``--quick``: 56 million.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import earlier, spread, write
from llm_scale import SIZES, VOCABULARY, write_checkpoint

HERE = Path(__file__).resolve()


def prune_folder(folder: str, ids: str, out: str) -> dict[str, Any]:
    """As ``openwork prune-llm`` does it."""
    import transformers

    import openwork as ow
    from openwork.llm.heap import resident
    from openwork.methods import sparsegpt

    _ = transformers.LlamaForCausalLM  # what the run would import later
    before = resident()
    began = time.process_time()
    result = ow.prune_blockwise(folder, sparsegpt(0.5), ids, out=out, batch=1)
    return {
        "seconds": time.process_time() - began,
        "imported_bytes": before,
        "resident_bytes": resident(),
        "density": result.density,
    }


def told(command: list[str]) -> dict[str, Any]:
    """The last line of a process as JSON."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{command[1]} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def main(size: str, peer: str | None, quick: bool) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, ids = Path(scratch) / "dense", Path(scratch) / "ids.npy"
        folder.mkdir()
        parameters = write_checkpoint(folder, size)
        np.save(ids, torch.randint(0, VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0)).numpy())
        runs = {"openwork": [sys.executable, str(HERE), "--one"]}
        if peer is not None:
            runs["llm-compressor"] = [peer, str(HERE.with_name("llm_compressor_side.py"))]
        stem = "llm_peer_quick" if quick else "llm_peer"
        rows = [r for r in ([] if quick else earlier(stem)) if r["setting"] != size]
        for name, command in runs.items():
            found = told([*command, str(folder), str(ids), str(Path(scratch) / name)])
            found["own_bytes"] = found["resident_bytes"] - found["imported_bytes"]
            rows.append({"setting": size, "method": name, "parameters": parameters, "blocks": SIZES[size][2],
                         **found, "after": spread([found["density"]])})  # fmt: skip
            print(rows[-1], flush=True)
            write(stem, rows, windows=[4, 64])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        torch.set_num_threads(1)
        print(json.dumps(prune_folder(*sys.argv[2:5])))
        sys.exit()
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", choices=list(SIZES), default="300m")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with llm-compressor")
    args = parser.parse_args()
    main("rehearsal" if args.quick else args.size, args.peer, args.quick)
