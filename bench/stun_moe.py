"""STUN on a small Mixtral trained here on real text: experts first, then single weights.

A Mixtral of 8 experts (2 a token), 2 layers, 64 wide, is trained on the bytes of tinyshakespeare (``--steps``), three
seeds. Loss on held-out text after dropping a quarter or half of the experts: by clusters of router rows, of
co-activation, at random, and the least used ones; for one layer all subsets are tried. Then 65 % of all matrix weights
in the blocks are removed: by Wanda alone, and by dropping experts first and Wanda on the rest. ``--quick``: one seed,
few steps.
"""

from __future__ import annotations

import argparse
import copy
from itertools import combinations
from typing import Any

import torch
from common import spread, write
from torch import Tensor, nn

import openwork as ow
from openwork.data.places import assets_folder
from openwork.llm.experts import coactivation, drop_experts, find_experts, keep_experts
from openwork.methods import wanda

LENGTH = 96


def texts() -> tuple[Tensor, Tensor]:
    """Bytes for training and held-out bytes."""
    assets = assets_folder()
    if assets is None or not (assets / "tinyshakespeare.txt").is_file():
        raise SystemExit("needs tinyshakespeare.txt; set OPENWORK_ASSETS to the folder that holds it")
    ids = torch.tensor(list((assets / "tinyshakespeare.txt").read_bytes()))
    return ids[:1_000_000], ids[1_000_000:]


def windows(ids: Tensor, count: int, rng: torch.Generator) -> Tensor:
    starts = torch.randint(0, len(ids) - LENGTH, (count,), generator=rng).tolist()
    return torch.stack([ids[s : s + LENGTH] for s in starts])


def trained(seed: int, steps: int, ids: Tensor) -> nn.Module:
    """AdamW with a linear fall of the rate; experts are kept in balance by the router's own loss."""
    import transformers

    torch.manual_seed(seed)
    model: Any = transformers.MixtralForCausalLM(transformers.MixtralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=LENGTH,
        output_router_logits=True, router_aux_loss_coef=0.02,
    ))  # fmt: skip
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = windows(ids, 12, rng)
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.config.output_router_logits = False
    return model.eval()


@torch.no_grad()
def loss_of(model: Any, batches: list[Tensor]) -> float:
    return sum(float(model(input_ids=b, labels=b, output_router_logits=False).loss) for b in batches) / len(batches)


def kept_by(model: nn.Module, share: float, how: str, counts: dict[str, Tensor], seed: int) -> nn.Module:
    """A copy with fewer experts, in one of four ways."""
    small = copy.deepcopy(model)
    if how == "router rows":
        drop_experts(small, share)
    elif how == "co-activation":
        drop_experts(small, share, counts=counts, router=0.0, together=1.0)
    else:
        rng = torch.Generator().manual_seed(seed)
        for name, mixture in find_experts(small).items():
            used = torch.rand(mixture.count, generator=rng) if how == "random" else counts[name].diagonal().double()
            stay = used.argsort(descending=True)[: mixture.count - int(share * mixture.count)]
            keep_experts(mixture, sorted(stay.tolist()))
    return small


def one_layer(model: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Two of eight experts of the first layer: the loss of STUN's choice, of the best and of the mean subset."""
    name = next(iter(find_experts(model)))
    found = {}
    for gone in combinations(range(8), 2):
        small = copy.deepcopy(model)
        keep_experts(find_experts(small)[name], [i for i in range(8) if i not in gone])
        found[gone] = loss_of(small, batches)
    trial = copy.deepcopy(model)
    groups = drop_experts(trial, 0.25, even=True, average_below=0).kept[name]
    return {
        "stun": found[tuple(i for i in range(8) if i not in groups)],  # type: ignore[index]
        "best": min(found.values()),
        "mean": sum(found.values()) / len(found),
    }


def matrices(model: nn.Module) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim > 1 and "gate.w" not in n)


def main(quick: bool, steps: int) -> None:
    torch.set_num_threads(1)
    ids, held = texts()
    test = list(held[: 48 * LENGTH].view(-1, LENGTH).split(24))
    table: dict[tuple[float, str], list[float]] = {}
    layer: list[dict[str, float]] = []
    for seed in range(1 if quick else 3):
        model = trained(seed, 20 if quick else steps, ids)
        calibration = windows(ids, 16 if quick else 32, torch.Generator().manual_seed(100 + seed))
        counts = coactivation(model, [calibration])
        table.setdefault((1.0, "dense"), []).append(loss_of(model, test))
        for share in (0.25, 0.5):
            for how in ("router rows", "co-activation", "random", "least used"):
                small = kept_by(model, share, how, counts, seed)
                table.setdefault((1 - share, f"experts: {how}"), []).append(loss_of(small, test))
        layer.append(one_layer(model, test[:1]))
        whole = matrices(model)
        for target in (0.4, 0.35):
            plain = copy.deepcopy(model)
            ow.prune_blockwise(plain, wanda(target), calibration, batch=16)
            table.setdefault((target, "Wanda alone"), []).append(loss_of(plain, test))
            for share in (0.125, 0.25, 0.5):
                small = kept_by(model, share, "router rows", counts, seed)
                inside = target * whole / matrices(small)
                if inside <= 1:
                    ow.prune_blockwise(small, wanda(inside), calibration, batch=16)
                    table.setdefault((target, f"STUN, {share:g} of the experts first"), []).append(loss_of(small, test))
        print(f"seed {seed} done", flush=True)
    rows: list[dict[str, Any]] = []
    for (density, method), values in table.items():
        rows.append({"density": density, "method": method, "loss": spread(values),
                     "after": spread([2.718281828 ** -v for v in values])})  # fmt: skip
        print(f"{density:<6g} {method:36} loss {rows[-1]['loss']['mean']:.4f} {[round(v, 3) for v in values]}")
    print("one layer, two of eight:", layer)
    write("stun_moe_quick" if quick else "stun_moe", rows, steps=20 if quick else steps, one_layer=layer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    main(args.quick, args.steps)
