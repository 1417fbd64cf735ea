"""Post-training pruning of a real, small language model: a 260,032-parameter Llama trained on TinyStories.

``python llm_stories.py`` needs the asset folder (``OPENWORK_ASSETS``) and transformers. Perplexity on the 5 validation
stories (1,804 targets) and on a quarter of the excerpt of training stories that calibration does not see; three draws
of the calibration windows. ``--quick``: one draw, 50 %, three methods.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from common import RESULTS, spread, write
from stories import Stories, load

import openwork as ow
from openwork.llm.shares import outlier_shares, zeroth_order_shares
from openwork.methods import dsnot, magnitude, sparsegpt, wanda
from openwork.metrics import agreement, perplexity
from openwork.recovery import Perp

ROW = ow.Element(per="row")


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
    return found


def spare(text: Stories, model: Any, density: float, beside: str, seed: int, windows: dict[str, int]) -> dict[str, Any]:
    """What is done beside the recipe: shares of the layers, or a recovery."""
    if beside == "owl":
        return {"shares": outlier_shares(model, density, text.calibration, seed=seed, **windows)}
    if beside == "ecoflap":
        return {"shares": zeroth_order_shares(model, density, text.batches(4, 4, 256, seed), batches=4, seed=seed)}
    return {"recovery": Perp(lr=2e-3, epochs=3)} if beside == "perp" else {}


def main(quick: bool, only: str | None, chosen: list[str]) -> None:
    torch.set_num_threads(1)
    text = load()
    dense = text.model()
    windows = {"samples": 8 if quick else 32, "length": 256, "batch": 8}
    measured = {name: perplexity(dense, getattr(text, name), 512) for name in ("validation", "unseen")}
    rows: list[dict[str, Any]] = [
        {"setting": "dense", "density": 1.0, "method": "dense", "after": spread([1.0]),
         **{k: spread([v.value]) for k, v in measured.items()}}
    ]  # fmt: skip
    for setting, density, structure in settings(quick):
        for name, (recipe, beside) in methods_of(density, structure, quick).items():
            if (only is not None and setting != only) or (chosen and name not in chosen):
                rows += [] if quick else earlier("llm_stories", setting, name)
                continue
            found: dict[str, list[float]] = {k: [] for k in ("validation", "unseen", "top1", "seconds", "realised")}
            for seed in range(1 if quick else 3):
                if name == "magnitude" and seed:  # no data, nothing to draw
                    break
                model = text.model()
                began = time.process_time()
                more = spare(text, model, density, beside, seed, windows)
                result = ow.prune_blockwise(model, recipe, text.calibration, seed=seed, **windows, **more)
                found["seconds"].append(time.process_time() - began)
                found["realised"].append(result.density)
                for key, value in text.both(model).items():
                    found[key].append(value)
                found["top1"].append(agreement(model, dense, torch.cat(text.validation), 512).top1)
            row = {"setting": setting, "density": density, "method": name, **{k: spread(v) for k, v in found.items()}}
            row["after"] = spread([1 / v for v in found["unseen"]])  # a probability, comparable to an accuracy
            rows.append(row)
            mean = {k: sum(v) / len(v) for k, v in found.items()}
            print(f"{setting:6} {name:28} validation {mean['validation']:8.3f} unseen {mean['unseen']:8.3f} "
                  f"agrees {100 * mean['top1']:5.1f} % in {mean['seconds']:5.1f} s", flush=True)  # fmt: skip
    write("llm_stories_quick" if quick else "llm_stories", rows, calibration=windows,
          counts={k: v.to_dict() for k, v in measured.items()})  # fmt: skip


def earlier(bench: str, setting: str, method: str) -> list[dict[str, Any]]:
    """A row of the last result, so that a long table can be measured in pieces."""
    file = RESULTS / f"{bench}.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    return [r for r in rows if (r["setting"], r["method"]) == (setting, method)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--setting", choices=[s for s, _, _ in settings(False)], help="measure only this one")
    parser.add_argument("--method", action="append", default=[], help="measure only these methods")
    args = parser.parse_args()
    main(args.quick, args.setting, args.method)
