"""Damaged recipe, suite, result and checkpoint files by the thousand: only openwork's own errors may come out.

python bench/fuzz.py [--quick]
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from common import write
from safetensors import safe_open
from safetensors.torch import save

import openwork as ow
from openwork.errors import OpenworkError
from openwork.formats import Bitmap, BlockSparse, Csr, Format
from openwork.lab.checkpoint import load_state, save_state
from openwork.lab.suite_file import load_suite, read_suite
from openwork.methods import acdc, magnitude, rigl, spode
from openwork.runtime import PackedLinear
from openwork.ship import read_packed, write_packed
from openwork.ship.folder import read_result
from openwork.ship.packed import sum_of_index

WORDS = (None, True, -1, 0, 1e308, float("nan"), "", "kind", "..", "\x00", "9" * 400, [], {}, [[]], {"kind": "Recipe"})


def damaged(data: Any, rng: random.Random, known: list[Any]) -> Any:
    """A copy of nested plain data with one to three places changed, removed, doubled or exchanged."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        owner, key = data, None
        while isinstance(owner, dict | list) and owner:
            key = rng.choice(list(owner)) if isinstance(owner, dict) else rng.randrange(len(owner))
            if not isinstance(owner[key], dict | list) or not owner[key] or rng.random() < 0.3:
                break
            owner = owner[key]
        if not isinstance(owner, dict | list) or not owner:
            return rng.choice(WORDS)
        what = rng.random()
        if what < 0.2:
            del owner[key]
        elif what < 0.4 and isinstance(owner, dict):
            owner[rng.choice(("kind", "x", "method", "format", str(key) + "s", 7))] = owner.pop(key)
        else:
            owner[key] = copy.deepcopy(rng.choice(known)) if what < 0.6 else rng.choice(WORDS)
    return data


def scrambled(content: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut out or repeated."""
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(raw) + 1)
        what = rng.random()
        if what < 0.5 and raw:
            raw[min(at, len(raw) - 1)] = rng.choice((rng.randrange(256), *b"0123456789.abcxyz"))
        elif what < 0.7:
            del raw[at : at + rng.randint(1, 200)]
        elif what < 0.85:
            raw[at:at] = raw[at : at + rng.randint(1, 50)]
        else:
            raw = raw[:at]
    return bytes(raw)


def pieces(data: Any) -> list[Any]:
    """All values inside nested data."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [data, *(p for value in inner for p in pieces(value))]


def packed_files(folder: Path) -> Callable[[random.Random], None]:
    """Bytes of a packed file at random, or numbers in its tensors under checksums that fit; what is read runs."""
    weight, x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), torch.ones(2, 32)
    formats = (Csr, Bitmap, lambda w, m: BlockSparse.pack(w, m, height=4, width=4))
    path, held = folder / "packed.safetensors", []
    for make in formats:
        pack = getattr(make, "pack", make)
        write_packed(path, {"weight": pack(weight * (weight > 1), weight > 1)})
        with safe_open(path, framework="pt") as file:
            held.append(
                (
                    path.read_bytes(),
                    json.loads(file.metadata()["openwork"]),
                    {k: file.get_tensor(k).clone() for k in file.keys()},  # noqa: SIM118  (safe_open is no dict)
                )
            )

    def forged(index: dict[str, Any], tensors: dict[str, torch.Tensor], rng: random.Random) -> bytes:
        tensors, index = {k: t.clone() for k, t in tensors.items()}, copy.deepcopy(index)
        for _ in range(rng.randint(1, 3)):
            flat = tensors[rng.choice(sorted(tensors))].view(-1).view(torch.uint8)
            flat[rng.randrange(len(flat))] = rng.randrange(256)
        index["sums"] = {
            k: hashlib.sha256(t.view(-1).view(torch.uint8).numpy().data).hexdigest() for k, t in tensors.items()
        }
        index["sha256"] = sum_of_index(index)
        return save(tensors, {"openwork": json.dumps(index)})

    def attempt(rng: random.Random) -> None:
        raw, index, tensors = rng.choice(held)
        path.write_bytes(scrambled(raw, rng) if rng.random() < 0.5 else forged(index, tensors, rng))
        for packed in read_packed(path)[0].values():
            if isinstance(packed, Format):
                PackedLinear(packed, None, "column")(x)

    return attempt


def kinds(folder: Path) -> dict[str, tuple[float, Callable[[random.Random], None]]]:
    """Name -> (share of the inputs, a function that makes one and reads it)."""
    recipes = [r.to_dict() for r in (magnitude(0.5), spode(0.1, structure=ow.Block(4, 4)), rigl(0.2), acdc(0.5))]
    parts = pieces(recipes)
    suites = [yaml.safe_load(p.read_text()) for p in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))]
    suites = suites or [{"settings": {"d": {"model": "mlp", "data": "digits"}}, "methods": {"magnitude": None}}]
    known = pieces(suites)
    model = ow.build_model("mlp")
    result = ow.save(model, ow.prune(model, magnitude(0.1)), folder / "result")
    index, masks = (result / "openwork.json").read_bytes(), (result / "masks.safetensors").read_bytes()
    save_state(folder / "state", {"a": [1, (torch.ones(3), None)], "b": {"c": "x", 3: True}})
    state = (folder / "state").read_bytes()

    def recipe(rng: random.Random) -> None:
        ow.Recipe.from_dict(damaged(rng.choice(recipes), rng, parts))

    def recipe_file(rng: random.Random) -> None:
        data = rng.choice(recipes)
        name, text = ("r.json", json.dumps(data)) if rng.random() < 0.8 else ("r.yaml", yaml.safe_dump(data))
        (folder / name).write_bytes(scrambled(text.encode(), rng))
        ow.Recipe.load(folder / name)

    def suite(rng: random.Random) -> None:
        read_suite(damaged(rng.choice(suites), rng, known))

    def suite_file(rng: random.Random) -> None:
        (folder / "s.yaml").write_bytes(scrambled(yaml.safe_dump(rng.choice(suites)).encode(), rng))
        load_suite(folder / "s.yaml")

    def result_file(rng: random.Random) -> None:
        where = rng.random()
        said = (
            json.dumps(damaged(json.loads(index), rng, [0, "x", {}])).encode() if where < 0.5 else scrambled(index, rng)
        )
        (result / "openwork.json").write_bytes(said if where < 0.8 else index)
        (result / "masks.safetensors").write_bytes(masks if where < 0.8 else scrambled(masks, rng))
        read_result(result)

    def checkpoint(rng: random.Random) -> None:
        (folder / "state").write_bytes(scrambled(state, rng))
        load_state(folder / "state")

    return {
        "recipe": (0.4, recipe),
        "recipe file": (0.15, recipe_file),
        "suite": (0.2, suite),
        "suite file": (0.02, suite_file),
        "result folder": (0.08, result_file),
        "checkpoint": (0.15, checkpoint),
        "packed file": (0.1, packed_files(folder)),
    }


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    total = 1_000 if quick else 100_000
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for kind, (share, attempt) in kinds(Path(name)).items():
            outcomes: Counter[str] = Counter()
            wrong: list[str] = []
            count, began = round(share * total), time.process_time()
            for seed in range(count):
                try:
                    attempt(random.Random(f"{kind} {seed}"))
                    outcomes["read"] += 1
                except OpenworkError as problem:  # noqa: PERF203  (one input at a time is the point)
                    outcomes["refused"] += 1
                    if not str(problem):
                        wrong.append(f"{seed}: no message")
                except Exception as problem:  # what this bench looks for
                    wrong.append(f"{seed}: {type(problem).__name__}: {problem}"[:200])
            seconds = time.process_time() - began
            row = {"kind": kind, "inputs": count, **{k: outcomes[k] for k in ("read", "refused")}, "wrong": len(wrong)}
            rows.append({**row, "seconds": seconds, "first": wrong[:5]})
            print(rows[-1], flush=True)
    write(
        "fuzz_quick" if quick else "fuzz",
        rows,
        title="Damaged files",
        command="python bench/fuzz.py",
        note="Read: valid after the damage. Refused: an error of openwork with a message. Wrong: any other error.",
        columns={"kind": "kind", "inputs": "inputs:,", "read": "read:,", "refused": "refused:,", "wrong": "wrong"},
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
