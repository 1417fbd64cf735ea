"""Essential sparsity: how much of a trained model is free, by one-shot pruning at every tenth.

``python essential.py --part vit``: the vision transformer of ``essential_vit.py``. ``--part llm``: the Llama of 260,032
parameters trained on TinyStories (asset folder), and with ``--manual FOLDER`` the decoder of ``manual.py``: magnitude
over all blocks, Wanda and SparseGPT, nothing fine-tuned, perplexity on text that calibration does not see. Without
``--part`` both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import essential_vit
import manual
import stories
import torch
from common import earlier, write
from essential_vit import plain, row
from stories import Stories

from openwork.llm import sparsity_sweep
from openwork.llm.sweep import global_magnitude
from openwork.methods import sparsegpt, wanda
from openwork.metrics.essential import TENTHS

NATS = 0.01  # per token: 1 % of perplexity
SHOWN = {
    "title": "Essential sparsity",
    "command": "python bench/essential.py --manual FOLDER",
    "note": "One-shot pruning at every tenth: the last level that is free (one point of mean accuracy, or 1 % of "
    "perplexity), the knees, and how much steeper the curve is behind the break. The vision transformer is fine-tuned "
    "with the mask held, the language models are measured as pruned: [essential sparsity](essential-sparsity.md).",
    "columns": {
        "model": "model", "mask": "method", "seeds": "seeds", "dense": "start", "free": "of the means:percent",
        "chord": "chord:percent", "two lines": "segments:percent", "steeper": "sharpness:.1f",
    },
}  # fmt: skip
METHODS = {"magnitude": global_magnitude, "wanda": wanda, "sparsegpt": sparsegpt}


def language_model(
    name: str, text: Stories, quick: bool, length: int, write: Callable[[list[dict[str, Any]]], None]
) -> None:
    """A sweep for every method; ``write`` gets what is there after each."""
    levels = (0.1, 0.3, 0.5) if quick else TENTHS
    for method, recipe in METHODS.items():
        found = sparsity_sweep(
            text.folder, text.unseen, recipe, text.calibration, levels=levels, length=length, batch=8,
            samples=8 if quick else 32, refine=0 if quick or method != "magnitude" else 3, tolerance=NATS,
        )  # fmt: skip
        free = found.essential.tolerance  # with the levels of bisection; the knees without them
        told = row(name, method, "as pruned", found.curve, NATS)
        told |= {**plain(found.essential), "of the means": free, "next": found.next, "ranked": found.ranked}
        told["empty from"] = next((r["sparsity"] for r in found.rows if r["empty"]), None)
        write([told])


def main(quick: bool, part: str | None, folder: Path | None) -> None:
    torch.set_num_threads(1)
    name = "essential" + "_quick" * quick
    rows = {(r["model"], r["method"]): r for r in ([] if quick else earlier(name))}

    def keep(new: list[dict[str, Any]]) -> None:
        rows.update({(r["model"], r["method"]): r for r in new})
        write(name, list(rows.values()), **SHOWN)

    if part in (None, "vit"):
        essential_vit.rows_of(quick, keep)
    if part in (None, "llm"):
        language_model("Llama of 0.26 M, TinyStories", stories.load(), quick, 256, keep)
        if folder is not None:
            language_model("Llama of 1.1 M, Python manual", manual.load(folder), quick, 256, keep)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=["vit", "llm"])
    parser.add_argument("--manual", type=Path, metavar="FOLDER", help="what manual.py has trained")
    args = parser.parse_args()
    main(args.quick, args.part, args.manual)
