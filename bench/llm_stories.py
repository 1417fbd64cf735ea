"""Post-training pruning of a real, small language model: a 260,032-parameter Llama trained on TinyStories.

``python llm_stories.py`` needs the asset folder (``OPENWORK_ASSETS``) and transformers. Perplexity on the 5 validation
stories (1,804 targets) and on a quarter of the excerpt of training stories that calibration does not see; three draws
of the calibration windows. The result is written after every row: ``--missing`` measures only rows it does not have
yet, ``--setting`` and ``--method`` only these. ``--quick``: one draw, 50 %, three methods. ``--manual FOLDER``: the
same table for the decoder of ``manual.py`` and held-out pages of the Python manual (2 times 16,384 tokens).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import manual
import stories
import torch
from common import earlier, spread, write
from stories import Stories

import openwork as ow
from openwork.llm.shares import outlier_shares, zeroth_order_shares
from openwork.methods import dsnot, icbs, magnitude, sparsegpt, wanda
from openwork.metrics import agreement, perplexity
from openwork.recovery import Perp

ROW = ow.Element(per="row")
Rows = dict[tuple[str, str], dict[str, Any]]


def settings(quick: bool) -> list[tuple[str, float, Any]]:
    rows = [
        ("50 %", 0.5, None),
        ("60 %", 0.4, None),
        ("70 %", 0.3, None),
        ("2:4", 0.5, ow.NM(2, 4)),
        ("4:8", 0.5, ow.NM(4, 8)),
    ]
    return rows[:1] if quick else rows


def methods_of(density: float, structure: Any, quick: bool) -> dict[str, tuple[ow.Recipe, str]]:
    """Name -> recipe and what is done beside it."""
    where = ow.Select(min_units=2)  # 172 inputs have no runs of 8: down_proj stays dense at 4:8, and is counted as such
    per = structure or ROW
    found = {
        "magnitude": (magnitude(density, structure or ow.Element(), where), ""),
        "wanda": (wanda(density, per, where), ""),
        "sparsegpt": (sparsegpt(density, structure or ow.Element(), where), ""),
    }
    if quick:
        return found
    if structure is None:
        found["sparsegpt, rows"] = (sparsegpt(density, ROW, where), "")
        found["wanda + OWL"] = (wanda(density, per, where), "owl")
        found["wanda + ECoFLaP"] = (wanda(density, per, where), "ecoflap")
    found["magnitude + DSnoT"] = (dsnot(density, per, where, start="magnitude"), "")
    found["wanda + DSnoT"] = (dsnot(density, per, where), "")
    found["wanda + DSnoT, no sign rule"] = (dsnot(density, per, where, same_sign=False), "")
    found["wanda + PERP"] = (wanda(density, per, where), "perp")
    found["magnitude + PERP"] = (magnitude(density, structure or ow.Element(), where), "perp")
    found["sparsegpt + PERP"] = (sparsegpt(density, structure or ow.Element(), where), "perp")
    if structure is None:
        budget = {"steps": 50, "block": 512, "samples": 8, "groups": 8, "solver": "swap"}
        blocks = ow.Select(include=("model.layers.*",))
        found["magnitude + iCBS"] = (icbs(density, where=blocks, start="magnitude", **budget), "whole")
        found["wanda + iCBS"] = (icbs(density, where=blocks, start="wanda", per_row=True, **budget), "whole")
    return found


def spare(text: Stories, model: Any, density: float, beside: str, seed: int, windows: dict[str, int]) -> dict[str, Any]:
    """What is done beside the recipe: shares of the layers, or a recovery."""
    if beside == "owl":
        return {"shares": outlier_shares(model, density, text.calibration, seed=seed, **windows)}
    if beside == "ecoflap":
        return {"shares": zeroth_order_shares(model, density, text.batches(4, 4, 256, seed), batches=4, seed=seed)}
    return {"recovery": Perp(lr=2e-3, epochs=3)} if beside == "perp" else {}


def pruned(text: Stories, recipe: ow.Recipe, beside: str, seed: int, windows: dict[str, int]) -> tuple[Any, float]:
    """The pruned model and its density; what needs the loss of the whole model sees as many tokens as the blocks do."""
    model = text.model()
    if beside == "whole":
        data = text.batches(windows["samples"] // 8, 8, windows["length"], seed)
        return model, ow.prune(model, recipe, data=data, seed=seed).density
    more = spare(text, model, recipe.density, beside, seed, windows)
    return model, ow.prune_blockwise(model, recipe, text.calibration, seed=seed, **windows, **more).density


def measure(
    text: Stories, dense: Any, setting: str, name: str, recipe: ow.Recipe, beside: str, draws: int, windows: Any
) -> dict[str, Any]:
    """One row."""
    found: dict[str, list[float]] = {k: [] for k in ("validation", "unseen", "top1", "seconds", "realised")}
    for seed in range(1 if name == "magnitude" else draws):  # without data there is nothing to draw
        began = time.process_time()
        model, realised = pruned(text, recipe, beside, seed, windows)
        found["seconds"].append(time.process_time() - began)
        found["realised"].append(realised)
        for key, value in text.both(model).items():
            found[key].append(value)
        found["top1"].append(agreement(model, dense, torch.cat(text.validation), 512).top1)
    mean = {k: sum(v) / len(v) for k, v in found.items()}
    print(f"{setting:6} {name:28} validation {mean['validation']:8.3f} unseen {mean['unseen']:8.3f} "
          f"agrees {100 * mean['top1']:5.1f} % in {mean['seconds']:5.1f} s", flush=True)  # fmt: skip
    row = {"setting": setting, "density": recipe.density, "method": name, **{k: spread(v) for k, v in found.items()}}
    return {**row, "after": spread([1 / v for v in found["unseen"]])}  # a probability, comparable to an accuracy


def main(quick: bool, chosen: list[str], methods: list[str], missing: bool, folder: Path | None) -> None:
    torch.set_num_threads(1)
    text = stories.load() if folder is None else manual.load(folder)
    dense = text.model()
    windows = {"samples": 8 if quick else 32, "length": 256, "batch": 8}
    counts = {name: perplexity(dense, getattr(text, name), 512) for name in ("validation", "unseen")}
    rows: Rows = {
        ("dense", "dense"): {"setting": "dense", "density": 1.0, "method": "dense", "after": spread([1.0]),
                             **{k: spread([v.value]) for k, v in counts.items()}}
    }  # fmt: skip
    stem = ("llm_stories" if folder is None else "llm_manual") + "_quick" * quick
    before = {(r["setting"], r["method"]): r for r in ([] if quick else earlier(stem))}
    plans = {
        (setting, name): (*plan, setting)
        for setting, density, structure in settings(quick)
        for name, plan in methods_of(density, structure, quick).items()
    }
    rows |= {key: before[key] for key in plans if key in before}
    for key, (recipe, beside, setting) in plans.items():
        left_out = (chosen and setting not in chosen) or (methods and key[1] not in methods)
        if left_out or (missing and key in rows):
            continue
        rows[key] = measure(text, dense, setting, key[1], recipe, beside, 1 if quick else 3, windows)
        write(stem, [rows[k] for k in (("dense", "dense"), *plans) if k in rows], calibration=windows,
              counts={k: v.to_dict() for k, v in counts.items()})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--setting", action="append", default=[], choices=[s for s, _, _ in settings(False)])
    parser.add_argument("--method", action="append", default=[], help="measure only these methods")
    parser.add_argument("--missing", action="store_true", help="measure only what the last result does not hold")
    parser.add_argument("--manual", type=Path, metavar="FOLDER", help="what manual.py has trained")
    args = parser.parse_args()
    main(args.quick, args.setting, args.method, args.missing, args.manual)
