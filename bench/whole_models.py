"""Whole models with random masks, packed against dense: milliseconds end to end, error, and how many layers run packed.

    python bench/whole_models.py [--quick] [--threads N]

Weights are random (speed does not depend on them); MiniLM and the decoder are built from their configurations and need
transformers. Both dense baselines are measured in the same rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import write
from torch import nn

import openwork as ow
from openwork.runtime import verdict
from openwork.structure import Element, GroupOf
from openwork.zoo import build_model

STRUCTURES: dict[str, Any] = {"32x32": ow.Block(32, 32), "4x1": GroupOf(4, dim=0), "unstructured": Element()}


def resnet(name: str, size: int, batch: int) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (build_model(name, (3, size, size), 10), torch.randn(batch, 3, size, size))


def minilm(batch: int, tokens: int) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        return BertModel(config), {"input_ids": torch.randint(1000, (batch, tokens))}

    return make


def decoder(batch: int, tokens: int) -> Callable[[], tuple[nn.Module, Any]]:
    """A Llama of 12 layers of 1,024; one token is a decoding step without its cache, which sparsity does not touch."""

    def make() -> tuple[nn.Module, Any]:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=1000, hidden_size=1024, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=4,
            intermediate_size=2816,
        )  # fmt: skip
        return LlamaForCausalLM(config), {"input_ids": torch.randint(1000, (batch, tokens))}

    return make


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "ResNet-20, batch 32": resnet("resnet20", 32, 32),
    "ResNet-50, batch 1": resnet("resnet50", 224, 1),
    "MiniLM, 32 x 128 tokens": minilm(32, 128),
    "MiniLM, 1 x 128 tokens": minilm(1, 128),
    "Llama 12 x 1024, 128 tokens": decoder(1, 128),
    "Llama 12 x 1024, 1 token": decoder(1, 1),
}


def sparsify(model: nn.Module, structure: Any, sparsity: float) -> None:
    """Random masks in the hidden layers; the first convolution, heads and embeddings stay dense."""
    where = ow.Select(min_units=8, exclude=("conv1", "fc", "linear", "lm_head", "*pooler*"))
    try:
        ow.prune(model, ow.methods.random(density=1 - sparsity, structure=structure, where=where, scope="layer"))
    except ow.StructureError:
        where = ow.Select(min_units=8)
        ow.prune(model, ow.methods.random(density=1 - sparsity, structure=structure, where=where, scope="layer"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    cases = {"ResNet-20, batch 2": resnet("resnet20", 32, 2)} if args.quick else CASES
    for case, make in cases.items():
        for pattern, structure in list(STRUCTURES.items())[:: 2 if args.quick else 1]:
            for sparsity in (0.9,) if args.quick else (0.8, 0.9):
                torch.manual_seed(0)
                try:
                    model, example = make()
                except ImportError as problem:
                    print(f"{case}: skipped, {problem}")
                    break
                model.eval()
                sparsify(model, structure, sparsity)
                packed = ow.pack(model, structure, example=example)
                found = verdict(model, packed, example, rounds=3 if args.quick else 7)
                t = found.times
                plan: Any = packed.openwork_plan
                layers = sum(c.packed for c in plan.choices)
                rows.append(
                    {
                        "case": case,
                        "pattern": pattern,
                        "sparsity": sparsity,
                        **{n: t[n]["ms"] for n in ("packed", "dense", "onednn")},
                        "over_dense": t["dense"]["ms"] / t["packed"]["ms"],
                        "over_onednn": t["onednn"]["ms"] / t["packed"]["ms"],
                        "packed_layers": layers,
                        "layers": len(plan.choices),
                        "error": found.error,
                    }
                )
                r = rows[-1]
                print(f"{case:30} {pattern:13} {sparsity} {r['over_dense']:.2f}x {r['over_onednn']:.2f}x", flush=True)
    name = "whole_models" if args.threads == 1 else f"whole_models_{args.threads}"
    write(f"{name}_quick" if args.quick else name, rows, note=(__doc__ or "").split("\n\n")[2].replace("\n", " "))


if __name__ == "__main__":
    main()
