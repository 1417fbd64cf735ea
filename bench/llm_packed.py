"""Language models pruned in patterns that processors like, packed, written, and loaded again by a fresh process.

A Llama of random weights (hidden 512, 4 blocks; time does not depend on the values) goes through ``prune_blockwise``
with SparseGPT, ``pack``, ``export`` and ``load``; the loaded model is measured against the pruned one in dense form,
one prompt of 128 tokens and one token. The 260,032-parameter Llama trained on TinyStories goes the same way for its
perplexity, if the assets are there: it is far too small to become faster. One thread. ``--missing`` measures only rows
that the last result does not hold. ``--quick``: hidden 64.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import earlier, spread, write
from stories import load as load_stories

import openwork as ow
from openwork.data.places import assets_folder
from openwork.llm.evaluation import load_model
from openwork.methods import sparsegpt
from openwork.runtime import verdict
from openwork.ship.export import PACKED
from openwork.ship.folder import dense_bytes

STRUCTURES = {"32x32 blocks": ow.Block(32, 32), "4x1": ow.Block(4, 1), "single weights": ow.Element()}
TOKENS = (128, 1)
FRESH = """
import json, sys, torch, openwork as ow
torch.set_num_threads(1)
model, _ = ow.load(sys.argv[1])
with torch.no_grad():
    print(json.dumps(model(torch.arange(1, 17)[None]).logits.double().abs().sum().item()))
"""


def llama(folder: Path, quick: bool) -> Path:
    """A folder with a Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = 64 if quick else 512
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=1 if quick else 4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def shipped(dense: Path, structure: Any, density: float, calibration: Any, work: Path, tokens: int) -> tuple[Any, ...]:
    """The pruned model, the packed one as it was loaded again, the example and the folder of the packed one."""
    pruned, packed = work / "pruned", work / f"packed-{tokens}"
    if not pruned.exists():
        where = ow.Select(min_units=2)
        ow.prune_blockwise(dense, sparsegpt(density, structure, where), calibration, out=pruned, samples=32, length=128)
    model, result = ow.load(pruned)
    example = {"input_ids": torch.arange(tokens)[None] % 512}
    ow.export(ow.pack(model, structure, example=example), result, packed)
    return model, ow.load(packed)[0], example, packed


def main(quick: bool, missing: bool) -> None:
    torch.set_num_threads(1)
    stem = "llm_packed_quick" if quick else "llm_packed"
    rows: list[dict[str, Any]] = earlier(stem) if missing else []
    done = {(r["setting"], r["density"], r["method"]) for r in rows}
    ids = torch.randint(0, 512, (32, 128), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        dense = llama(Path(scratch) / "dense", quick)
        for name, structure in STRUCTURES.items():
            for density in (0.3,) if quick else (0.3, 0.1):
                work = Path(scratch) / f"{name} {density}".replace(" ", "-")
                work.mkdir()
                for tokens in TOKENS:
                    if (f"{tokens} tokens", density, name) in done:
                        continue
                    model, packed, example, folder = shipped(dense, structure, density, ids, work, tokens)
                    sizes = ((folder / PACKED).stat().st_size, dense_bytes(work / "pruned"))
                    found = verdict(model, packed, example, rounds=3 if quick else 21, sizes=sizes)
                    said = subprocess.run(
                        [sys.executable, "-c", FRESH, str(folder)], capture_output=True, text=True, check=True
                    )
                    with torch.no_grad():
                        here = float(packed(torch.arange(1, 17)[None]).logits.double().abs().sum())
                    times = {k: v["ms"] for k, v in found.times.items()}
                    rows.append({
                        "setting": f"{tokens} tokens", "density": density, "method": name, **found.plain(),
                        "over_dense": times["dense"] / times["packed"],
                        "over_onednn": times["onednn"] / times["packed"],
                        "fresh_process_equal": json.loads(said.stdout) == here,
                        "after": spread([times["dense"] / times["packed"]]),
                    })  # fmt: skip
                    print(f"{name} {density} {tokens} tokens\n{found}", flush=True)
                    write(stem, rows)  # row by row: a stopped run leaves what it has
        if assets_folder() is not None:
            for row in stories(Path(scratch), quick, done):
                rows.append(row)
                write(stem, rows)


def stories(scratch: Path, quick: bool, done: set[Any]) -> Iterator[dict[str, Any]]:
    """Perplexity of the small real model before and behind the packed folder."""
    text = load_stories(scratch)
    for density in (0.5,) if quick else (0.7, 0.5):
        if ("stories260K", density, "4x1") in done:
            continue
        work = scratch / f"stories-{density}"
        work.mkdir()
        model, _, _, folder = shipped(text.folder, ow.Block(4, 1), density, text.calibration, work, 128)
        values = {n: text.both(m)["validation"] for n, m in (("pruned", model), ("packed", load_model(folder)))}
        size = (folder / PACKED).stat().st_size / dense_bytes(work / "pruned")
        print(density, values, f"{size:.3f}x bytes", flush=True)
        yield {"setting": "stories260K", "density": density, "method": "4x1", "perplexity": values,
               "bytes_ratio": size, "after": spread([1 / values["packed"]])}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--missing", action="store_true", help="measure only what the last result does not hold")
    args = parser.parse_args()
    main(args.quick, args.missing)
