"""What the papers say happens inside their methods: masks that settle, weights at zero, thresholds, connected optima.

    python bench/mechanisms.py [--quick] [NAME ...]

Digits, small networks, one number a row and seed: accuracies and shares of one, losses and norms as they are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from common import RESULTS, spread, write
from models import deep_mlp
from torch import Tensor, nn
from torch.nn import functional as F

import openwork as ow
from openwork import methods
from openwork.data import load_data
from openwork.data.dataset import DataSet
from openwork.structure import Row

BATCH = 60
Hook = Callable[[int, Any], None]
Build = Callable[[int], nn.Module]
Found = dict[tuple[str, str], float]


def batches(data: DataSet, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` shuffled batches."""
    rng, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(data.x_train), generator=rng)
        take, order = order[:BATCH], order[BATCH:]
        yield data.x_train[take], data.y_train[take]


def fit(
    model: nn.Module,
    data: DataSet,
    steps: int,
    seed: int = 0,
    recipe: ow.Recipe | None = None,
    hook: Hook | None = None,
    begin: int = 0,
    nets: dict[str, Tensor] | None = None,
) -> Any:
    """SGD with momentum and a cosine rate over ``steps``, from step ``begin`` on, under masks or an attached recipe."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    run = ow.attach(model, recipe, optimizer, seed=seed) if recipe is not None else None
    model.train()
    with ow.hold(model, nets or {}):
        for step, (x, y) in enumerate(batches(data, steps, seed)):
            if step < begin:
                continue
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
            if run is None:
                loss = F.cross_entropy(model(x), y)
            else:
                loss = run.averaged(lambda x=x, y=y: F.cross_entropy(model(x), y)) + run.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if hook is not None:
                hook(step + 1, run)
    return run


@torch.no_grad()
def score(model: nn.Module, data: DataSet) -> float:
    """Test accuracy in eval mode; the mode is put back."""
    was = model.training
    accuracy = (model.eval()(data.x_test).argmax(1) == data.y_test).float().mean().item()
    model.train(was)
    return accuracy


def mlp(seed: int) -> nn.Module:
    """64-128-128-10 with the weights of a seed."""
    torch.manual_seed(seed)
    return ow.build_model("mlp", (1, 8, 8), 10)


def acdc(data: DataSet, seed: int, steps: int, build: Build = mlp) -> Found:
    """How far the masks of consecutive sparse phases lie apart; the dense network of the last dense phase."""
    found: Found = {}
    for density in (0.1, 0.05):
        model, seen, dense = build(seed), [], [0.0]

        def hook(step: int, run: Any, model: nn.Module = model, seen: Any = seen, dense: Any = dense) -> None:
            if run.phase == "sparse" and (not seen or seen[-1][0] != step - 1):
                seen.append([step, torch.cat([m.flatten().clone() for m in run.masks.values()])])
            elif run.phase == "sparse":
                seen[-1][0] = step
            elif run.recipe.schedule(step + 1).name == "sparse":
                dense[0] = score(model, data)

        fit(model, data, steps, seed, methods.acdc(density=density, steps=steps), hook).finish()
        apart = [(a[1] ^ b[1]).float().mean().item() for a, b in pairwise(seen)]
        case = f"acdc at {density:g}"
        found |= {(case, "mask distance, first"): apart[0], (case, "mask distance, last"): apart[-1]}
        found[case, "accuracy of its last dense phase"] = dense[0]
        found[case, "accuracy at the end"] = score(model, data)
    model = build(seed)
    fit(model, data, steps, seed)
    found["dense", "accuracy at the end"] = score(model, data)
    return found


def powers(data: DataSet, seed: int, steps: int) -> Found:
    """Weights that gather at zero, and the l1 norm that gradient descent finds on an under-determined system."""
    found: Found = {}
    for alpha in (1.0, 2.0, 3.0):
        model, case = mlp(seed), f"powerpropagation alpha {alpha:g}"
        fit(model, data, steps, seed, methods.powerpropagation(density=0.99, alpha=alpha, steps=steps)).finish()
        weights = [p.detach().abs() for p in model.parameters() if p.ndim > 1]
        small = sum(int((w < 0.01 * w.max()).sum()) for w in weights) / sum(w.numel() for w in weights)
        found[case, "share of weights below 1 % of the largest"] = small
    found |= least_squares(seed, 10 * steps)
    return found


def least_squares(seed: int, steps: int) -> Found:
    """20 equations, 60 unknowns, a solution with four entries; gradient descent from 1 % of the unit scale.

    A weight cannot change its sign under alpha > 1, so "both signs" gives every column its negative as well.
    """
    found: Found = {}
    rng = torch.Generator().manual_seed(seed)
    single = torch.randn(20, 60, generator=rng, dtype=torch.float64) / 20**0.5
    target = single[:, :4] @ torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    for case, a in (("one sign", single), ("both signs", torch.cat([single, -single], 1))):
        for alpha in (1, 2):
            start = 0.01 * torch.randn(a.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            theta = (start.abs() if case == "both signs" else start).requires_grad_()
            for _ in range(steps):
                w = theta * theta.abs() ** (alpha - 1)
                (slope,) = torch.autograd.grad((a @ w - target).square().sum(), theta)
                with torch.no_grad():
                    theta -= 0.01 * slope
            w = (theta * theta.abs() ** (alpha - 1)).detach()
            name = f"least squares, {case}, alpha {alpha}"
            found[name, "l1 norm of the solution"] = w.abs().sum().item()
            found[name, "squared residual"] = (a @ w - target).square().sum().item()
    return found


def gradients(data: DataSet, seed: int, steps: int) -> Found:
    """Squared gradient norm of the deep MLP on the scoring batch after pruning at initialisation."""
    found: Found = {}
    batch = next(batches(data, 1, seed))
    for density in (0.1, 0.05, 0.02):
        for name, options in (("grasp", {}), ("snip", {}), ("random", {"scope": "layer"})):
            torch.manual_seed(seed)
            model = deep_mlp((1, 8, 8), 10)
            recipe = methods.get(name)(density=density, **options)
            result = ow.prune(model, recipe, data=[batch] * 10, loss=F.cross_entropy, seed=seed)
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            norm = sum(
                float((p.grad.double() * result.masks.get(n, torch.ones(()))).square().sum())
                for n, p in model.named_parameters()
                if p.grad is not None
            )
            found[f"{name} at {density:g}", "squared gradient norm"] = norm
    return found


def thresholds(data: DataSet, seed: int, steps: int, build: Build = mlp) -> Found:
    """STR steered by decay alone: sparsity against decay and start, and against the size of the layer."""
    found: Found = {}
    for start, pull in ((-12.0, 2.4), (-12.0, 2.8), (-12.0, 3.2), (-10.0, 2.8), (-14.0, 2.8)):
        model = build(seed)
        recipe = methods.str_(density=0.9999, steps=steps, control="decay", initial=start, decay=pull / steps)
        alive: dict[str, float] = {}

        def hook(step: int, run: Any, model: nn.Module = model, alive: dict[str, float] = alive) -> None:
            if step == round(0.75 * steps) - 1:  # before the mask of the promised density is written
                alive |= {n: (m.weight != 0).float().mean().item() for n, m in layers(model).items()}
                run.detach()

        fit(model, data, round(0.75 * steps) - 1, seed, recipe, hook)
        sizes = {n: m.weight.numel() for n, m in layers(model).items()}
        total = sum(sizes[n] * (1 - share) for n, share in alive.items()) / sum(sizes.values())
        case = f"str start {start:g}, decay {pull:g} / steps"
        found[case, "sparsity"] = total
        largest, smallest = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        found[case, "sparsity of the largest layer"] = 1 - alive[largest]
        found[case, "sparsity of the smallest layer"] = 1 - alive[smallest]
        ranks = torch.tensor([[sizes[n], 1 - alive[n]] for n in sizes]).argsort(0).argsort(0).double().T
        found[case, "rank correlation of size and sparsity"] = torch.corrcoef(ranks)[0, 1].item()
    return found


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with weights, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def probabilities(data: DataSet, seed: int, steps: int, build: Build = mlp) -> Found:
    """ProbMask: probabilities that end near 0 or 1, what the final mask costs; with one draw a step and with two."""
    found: Found = {}
    for samples, case in ((1, "probmask at 0.1"), (2, "probmask at 0.1, two draws a step")):
        model, end = build(seed), {}
        recipe = methods.probmask(density=0.1, steps=steps, learning_rate_of_s=0.03, samples=samples)

        def hook(
            step: int,
            run: Any,
            model: nn.Module = model,
            end: dict[str, float] = end,
            last: int = recipe.schedule.last,
        ) -> None:
            if step == last - 1:
                s = torch.cat([m.s.detach() for m in model.modules() if hasattr(m, "tau")])
                end["polar"] = ((s < 0.05) | (s > 0.95)).float().mean().item()
                end["relaxed"] = score(model, data)
            if step == last:
                if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):  # their statistics are those of draws
                    ow.recalibrate(model, [x for x, _ in batches(data, 50, seed)])
                end["masked"] = score(model, data)

        fit(model, data, steps, seed, recipe, hook).finish()
        found[case, "share of probabilities below 0.05 or above 0.95"] = end["polar"]
        found[case, "accuracy before the mask"] = end["relaxed"]
        found[case, "accuracy under the mask"] = end["masked"]
    return found


def tickets(data: DataSet, seed: int, steps: int) -> Found:
    """Two trainings from the rewound weights with other batches: the error barrier on the line between them."""
    found: Found = {}
    early = max(1, steps // 20)
    model, kept = mlp(seed), {}

    def hook(step: int, run: Any) -> None:
        if step == early:
            kept.update({k: v.clone() for k, v in model.state_dict().items()})

    def train(net: nn.Module, now: Any) -> None:
        fit(net, data, steps, seed, begin=early)

    fit(model, data, steps, seed, hook=hook)
    result = ow.cycle(model, methods.imp(density=0.07), train, rewind_to=kept, seed=seed)
    shuffled = {}
    for name, mask in result.masks.items():
        order = torch.randperm(mask.numel(), generator=torch.Generator().manual_seed(seed))
        shuffled[name] = mask.flatten()[order].view_as(mask)
    for case, masks in (("imp at 0.07", result.masks), ("random mask with its counts at 0.07", shuffled)):
        ends = []
        for other in (seed + 100, seed + 200):
            net = mlp(seed)
            net.load_state_dict(kept)
            fit(net, data, steps, other, begin=early, nets=masks)
            ends.append(net)
        a, b = (n.state_dict() for n in ends)
        errors = []
        for t in torch.linspace(0, 1, 11):
            ends[0].load_state_dict({k: torch.lerp(a[k], b[k], t) for k in a} if t < 1 else b)
            errors.append(1 - score(ends[0], data))
        found[case, "error barrier"] = max(errors) - (errors[0] + errors[-1]) / 2
        found[case, "accuracy at the end"] = 1 - errors[0]
    return found


def removal(data: DataSet, seed: int, steps: int) -> Found:
    """Training loss after whole neurons of a trained network are removed, before any fine-tuning."""
    found: Found = {}
    model = mlp(seed)
    fit(model, data, steps, seed)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    where = ow.Select(include=("1.weight", "3.weight"))
    for density in (0.9, 0.75, 0.5, 0.25):
        for name in ("taylor", "magnitude", "random"):
            model.load_state_dict(weights)
            recipe = methods.get(name)(density=density, structure=Row(), where=where, scope="global")
            needs = {"data": [*batches(data, 8, seed)], "loss": F.cross_entropy} if name == "taylor" else {}
            ow.prune(model.eval(), recipe, seed=seed, **needs)
            with torch.no_grad():
                found[f"{name} at {density:g}", "loss after removal"] = F.cross_entropy(
                    model(data.x_train), data.y_train
                ).item()
    return found


PARTS: dict[str, Callable[[DataSet, int, int], Found]] = {
    "acdc": acdc,
    "powers": powers,
    "gradients": gradients,
    "thresholds": thresholds,
    "probabilities": probabilities,
    "tickets": tickets,
    "removal": removal,
}


def main(names: list[str], quick: bool) -> None:
    torch.set_num_threads(1)
    data, steps = load_data("digits"), 100 if quick else 2000
    rows: list[dict[str, Any]] = []
    for part in names or list(PARTS):
        runs = [PARTS[part](data, seed, steps) for seed in range(1 if quick else 4)]
        for case, what in runs[0]:
            row = {"part": part, "case": case, "what": what, **spread([r[case, what] for r in runs])}
            rows.append(row)
            print(
                f"{part:14} {case:38} {what:46} {row['mean']:10.4g} {[float(f'{v:.4g}') for v in row['values']]}",
                flush=True,
            )
    if not names:
        note = f"{steps} steps of 60, cosine rate from 0.1; mean and spread over {1 if quick else 4} seeds."
        write(
            "mechanisms_quick" if quick else "mechanisms",
            rows,
            title="What happens inside the methods, digits MLP",
            command="python bench/mechanisms.py",
            note=note,
        )
        print(RESULTS / "mechanisms.json")


if __name__ == "__main__":
    main([a for a in sys.argv[1:] if not a.startswith("--")], "--quick" in sys.argv)
