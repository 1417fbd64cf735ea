"""Post-training pruning of a real, small language model: a 260,032-parameter Llama trained on TinyStories.

``python llm_stories.py`` needs the asset folder (``OPENWORK_ASSETS``) and transformers. Perplexity on the 5 validation
stories (1,804 targets) and on a quarter of the excerpt of training stories that calibration does not see; three draws
of the calibration windows. ``--quick``: one draw, 50 %, three methods.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import spread, write

import openwork as ow
from openwork.data.places import assets_folder
from openwork.llm.calibration import documents_of, load_tokenizer
from openwork.llm.evaluation import load_model
from openwork.llm.llama2c import convert_llama2c
from openwork.llm.shares import outlier_shares, zeroth_order_shares
from openwork.methods import dsnot, magnitude, sparsegpt, wanda
from openwork.metrics import agreement, perplexity
from openwork.recovery import Perp

ROW = ow.Element(per="row")
BEGIN = r"(Once upon a time|One day|Once there was|There was once|Once, )"


def stories_of(text: str) -> list[str]:
    """Paragraphs put together to stories; a story begins with one of the usual words."""
    found: list[str] = []
    for paragraph in filter(None, map(str.strip, text.split("\n"))):
        if not found or re.match(BEGIN, paragraph):
            found.append(paragraph)
        else:
            found[-1] += "\n" + paragraph
    return found


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


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    assets = assets_folder()
    if assets is None or not (assets / "stories260K.bin").is_file():
        raise SystemExit("needs stories260K.bin; set OPENWORK_ASSETS to the folder that holds it")
    with tempfile.TemporaryDirectory() as scratch:
        folder = convert_llama2c(assets / "stories260K.bin", assets / "tok512.bin", Path(scratch) / "stories")
        tokenizer = load_tokenizer(folder)
        stories = stories_of((assets / "tinystories_train_excerpt.txt").read_text())
        ids = [torch.tensor(tokenizer(s)["input_ids"]) for s in stories]
        cut = len(ids) * 3 // 4
        calibration, unseen = torch.cat(ids[:cut]), ids[cut:]
        validation = documents_of(assets / "tinystories_sample.txt", tokenizer)
        dense = load_model(folder)
        windows = {"samples": 8 if quick else 32, "length": 256, "batch": 8}
        measured = {"validation": perplexity(dense, validation, 512), "unseen": perplexity(dense, unseen, 512)}
        rows = [{"setting": "dense", "density": 1.0, "method": "dense", "after": spread([1.0]),
                 **{k: spread([v.value]) for k, v in measured.items()}}]  # fmt: skip
        for setting, density, structure in settings(quick):
            for name, (recipe, beside) in methods_of(density, structure, quick).items():
                found: dict[str, list[float]] = {k: [] for k in ("validation", "unseen", "top1", "seconds", "realised")}
                for seed in range(1 if quick else 3):
                    if name == "magnitude" and seed:  # no data, nothing to draw
                        break
                    model = load_model(folder)
                    more: dict = {}
                    began = time.process_time()
                    if beside == "owl":
                        more["shares"] = outlier_shares(model, density, calibration, seed=seed, **windows)
                    elif beside == "ecoflap":
                        rng = torch.Generator().manual_seed(seed)
                        starts = torch.randint(0, len(calibration) - 256, (16,), generator=rng).tolist()
                        data = [{"input_ids": x, "labels": x} for x in
                                torch.stack([calibration[s : s + 256] for s in starts]).split(4)]  # fmt: skip
                        more["shares"] = zeroth_order_shares(model, density, data, batches=4, seed=seed)
                    elif beside == "perp":
                        more["recovery"] = Perp(lr=2e-3, epochs=3)
                    result = ow.prune_blockwise(model, recipe, calibration, seed=seed, **windows, **more)
                    found["seconds"].append(time.process_time() - began)
                    found["realised"].append(result.density)
                    found["validation"].append(perplexity(model, validation, 512).value)
                    found["unseen"].append(perplexity(model, unseen, 512).value)
                    found["top1"].append(agreement(model, dense, torch.cat(validation), 512).top1)
                row = {
                    "setting": setting,
                    "density": density,
                    "method": name,
                    **{k: spread(v) for k, v in found.items()},
                }
                row["after"] = spread([1 / v for v in found["unseen"]])  # a probability, comparable to an accuracy
                rows.append(row)
                mean = {k: sum(v) / len(v) for k, v in found.items()}
                print(f"{setting:6} {name:28} validation {mean['validation']:8.3f} unseen {mean['unseen']:8.3f} "
                      f"agrees {100 * mean['top1']:5.1f} % in {mean['seconds']:5.1f} s", flush=True)  # fmt: skip
                write("llm_stories_quick" if quick else "llm_stories", rows, calibration=windows,
                      counts={k: v.to_dict() for k, v in measured.items()})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
