"""Essential sparsity of a small vision transformer that was pre-trained on one task and fine-tuned on another.

ViT of 2 blocks (patches of 7, width 64, 98,304 weights in the blocks). Pre-training on Fashion-MNIST, classes 0 to 4:
the classes themselves or a rotation by quarter turns, 24,000 images, or 6,000 for as many steps. Then a mask over all
matrices of the blocks together, before fine-tuning on 2,000 images of the classes 5 to 9 and fixed during it: the
smallest magnitudes (OMP), random weights, or two rounds of lottery tickets (IMP). Accuracy on 5,000 test images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from common import spread
from torch import Tensor, nn
from training import answers, fit

import openwork as ow
from openwork.methods import imp, magnitude, random
from openwork.metrics import Curve, Essential, essential_sparsity, mask_cosine, sparsity_curve
from openwork.metrics.essential import TENTHS

BLOCKS = ow.Select(include=("blocks.*",))
POINT = 0.01  # of accuracy
HALF = 0.5


@dataclass(frozen=True)
class Sizes:
    """Images, passes over them and levels."""

    large: int = 24_000
    small: int = 6_000
    epochs: float = 3.0  # over the large set; the small one is passed as many times more
    tuned: int = 2_000
    tuning: float = 3.0
    tests: int = 5_000
    levels: tuple[float, ...] = TENTHS
    seeds: int = 3
    others: int = 2  # seeds of the comparisons of pre-trainings


QUICK = Sizes(2_000, 500, 1.0, 500, 1.0, 500, (0.0, 0.3, 0.6, 0.9), 1, 1)


@dataclass
class Study:
    """Everything that is trained, once per seed."""

    data: Any
    sizes: Sizes
    dense: dict[Any, float] = field(default_factory=dict)
    trained: dict[Any, nn.Module] = field(default_factory=dict)

    def images(self, low: bool, train: bool, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Images of the first or the last five classes, with classes from 0 to 4."""
        d = self.data
        x, y = (d.x_train, d.y_train) if train else (d.x_test, d.y_test)
        at = ((y < 5) if low else (y >= 5)).nonzero().flatten()
        at = at[torch.randperm(len(at), generator=torch.Generator().manual_seed(seed))[:count]]
        return x[at], y[at] - (0 if low else 5)

    def pretrained(self, objective: str, count: int, seed: int) -> nn.Module:
        """The model before any task; its head is that of the pre-training."""
        key = objective, count, seed
        if key not in self.trained:
            x, y = self.images(True, True, count, seed)
            if objective == "rotation":
                y = torch.arange(len(x)) % 4
                x = torch.stack([torch.rot90(image, int(turns), (-2, -1)) for image, turns in zip(x, y, strict=True)])
            torch.manual_seed(seed)
            classes = int(y.max()) + 1
            model = ow.build_model("vit", self.data.input_shape, classes, patch=7, dim=64, depth=2, heads=4)
            fit(model, x, y, self.sizes.epochs * self.sizes.large / count, seed, lr=1e-3, adam=True)
            self.trained[key] = model
        return self.trained[key]

    def start(self, objective: str, count: int, seed: int) -> nn.Module:
        """The pre-trained body with a fresh head."""
        model = copy.deepcopy(self.pretrained(objective, count, seed))
        torch.manual_seed(1000 + seed)
        model.head = nn.Linear(64, 5)
        return model

    def tune(self, model: nn.Module, seed: int, masks: ow.Masks | None = None) -> float:
        """Fine-tune with the masks held; the accuracy, and pruned weights that are still exactly zero."""
        x, y = self.images(False, True, self.sizes.tuned, seed)
        with ow.hold(model, masks or {}):
            fit(model, x, y, self.sizes.tuning, seed, lr=5e-4, batch=64, adam=True)
        for name, mask in (masks or {}).items():
            assert not model.get_parameter(name)[~mask].any(), name
        x, y = self.images(False, False, self.sizes.tests, 0)
        return float((answers(model, x) == y).double().mean())

    def curve(self, name: str, objective: str, count: int, seeds: int) -> Curve:
        """Accuracy by sparsity of masks by ``name``; the dense model is tuned once per seed."""
        make = {"OMP": magnitude, "random": random}[name]

        def evaluate(sparsity: float, seed: int) -> float:
            model, key = self.start(objective, count, seed), (objective, count, seed)
            if sparsity == 0:
                if key not in self.dense:
                    self.dense[key] = self.tune(model, seed)
                return self.dense[key]
            result = ow.prune(model, make(round(1 - sparsity, 6), where=BLOCKS, scope="global"), seed=seed)
            return self.tune(model, seed, result.masks)

        return sparsity_curve(evaluate, self.sizes.levels, seeds)

    def tickets(self, seed: int) -> dict[str, float]:
        """Masks of half the weights: those of two rounds of lottery tickets beside OMP and chance."""
        count = self.sizes.large
        model = self.start("classes", count, seed)
        rounds = ow.Cycle(model, imp(HALF, where=BLOCKS, rounds=2), rewind_to=model.state_dict(), seed=seed)
        while not rounds.finished:
            self.tune(model, seed, rounds.masks if rounds.done else None)
            rounds.prune_round()
        assert torch.equal(model.get_parameter("token"), self.pretrained("classes", count, seed).get_parameter("token"))
        ticket = rounds.finish().masks
        body = self.start("classes", count, seed)
        omp = ow.prune(copy.deepcopy(body), magnitude(HALF, where=BLOCKS, scope="global")).masks
        chance = ow.prune(copy.deepcopy(body), random(HALF, where=BLOCKS, scope="global"), seed=seed).masks
        excess = [
            mask_cosine(omp[n], ticket[n]) - float(omp[n].double().mean() * ticket[n].double().mean()) ** 0.5
            for n in ticket
        ]
        return {
            "cosine": mask_cosine(_flat(omp), _flat(ticket)),
            "chance": mask_cosine(_flat(chance), _flat(ticket)),
            "least excess of a layer": min(excess),
            "ticket": self.tune(model, seed, ticket),
        }


def _flat(masks: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([masks[n].flatten() for n in sorted(masks)])


def plain(found: Essential) -> dict[str, Any]:
    """The estimates; a curve that is flat before its break has no finite sharpness."""
    return {**found.to_dict(), "sharpness": found.sharpness if math.isfinite(found.sharpness) else None}


def row(model: str, method: str, protocol: str, curve: Curve, tolerance: float) -> dict[str, Any]:
    """One row of the table with its curve."""
    found = essential_sparsity(curve, tolerance)
    means = essential_sparsity(Curve(curve.sparsity, curve.score), tolerance)
    seeds = len(next(iter(curve.seeds.values())))
    apart = [Curve(curve.sparsity, tuple(v[i] for v in curve.seeds.values())) for i in range(seeds)]
    start = (
        f"{100 * curve.score[0]:.1f} %" if protocol == "fine-tuned" else f"perplexity {math.exp(-curve.score[0]):.2f}"
    )
    told = [f"{100 * p:.1f}" for p in curve.score]
    print(f"{model:40} {method:10} free {means.tolerance:.2f} chord {found.chord:.2f} lines {found.segments:.2f} "
          f"{' '.join(told)}", flush=True)  # fmt: skip
    return {
        "model": model, "start": start, "method": method, "protocol": protocol, "seeds": seeds, **plain(found),
        "of the means": means.tolerance, "of each seed": [essential_sparsity(c, tolerance).tolerance for c in apart],
        "dense": curve.score[0], "sparsity": list(curve.sparsity), "score": list(curve.score),
        "std": list(curve.std), "values": [list(v) for v in curve.seeds.values()],
    }  # fmt: skip


def rows_of(quick: bool, write: Callable[[list[dict[str, Any]]], None]) -> None:
    """All rows; ``write`` gets what is there after every row."""
    sizes = QUICK if quick else Sizes()
    study = Study(ow.load_data("fashion-mnist"), sizes)
    rows = []
    plans = [
        ("OMP", "classes", sizes.large, sizes.seeds), ("random", "classes", sizes.large, sizes.seeds),
        ("OMP", "classes", sizes.small, sizes.others), ("OMP", "rotation", sizes.large, sizes.others),
    ]  # fmt: skip
    for name, objective, count, seeds in plans:
        model = f"ViT, {objective} of {count:,} images"
        rows.append(row(model, name, "fine-tuned", study.curve(name, objective, count, seeds), POINT))
        if len(rows) == 1:
            found = [study.tickets(seed) for seed in range(seeds)]
            rows[0] |= {key: spread([f[key] for f in found]) for key in found[0]}
            print({key: rows[0][key]["values"] for key in found[0]}, flush=True)
        write(rows)
