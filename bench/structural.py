"""Channels of a ResNet-8 on Fashion-MNIST at equal multiply-accumulates, beside Torch-Pruning; latency; graph times.

    python bench/structural.py [--quick] [--only accuracy spode latency graph] [--seeds N] [--epochs E] [--finetune F]

Torch-Pruning is used when it can be imported (pip install torch-pruning==1.6.1, best into a folder of its own that
PYTHONPATH names); otherwise its rows are missing and the result says so. Every network starts from the same dense
weights, and all are fine-tuned in the same way. Multiply-accumulates of all small models are counted by the same
function. Times are process CPU times of one thread, in turn.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from common import RESULTS, spread, write
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.data import Batches, DataSet, load_data
from openwork.graph import build_graph, count_macs
from openwork.lab import Budget
from openwork.lab.evaluate import evaluate_source
from openwork.methods import group_importance, spode, taylor

X = torch.zeros(1, 1, 28, 28)
PEER = "torch-pruning"
VERSION = "1.6.1"


def run(model: nn.Module, data: DataSet, epochs: float, lr: float, seed: int) -> nn.Module:
    """Train in place: SGD with momentum, warm-up and a cosine."""
    budget = Budget(lr=lr)
    batches = Batches.over(data.train, 128, seed)
    steps = max(1, round(epochs * batches.steps_per_epoch))
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    model.train()
    for step in range(steps):
        x, y = batches.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(step, steps, lr)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def scoring(data: DataSet, seed: int, size: int = 128) -> Batches:
    return Batches.over(data.train, size, seed + 1, augment=False)


def recipes(steps: int) -> dict[str, Callable[[Any], ow.Recipe]]:
    """Ours: the criteria that the peer has too, and SpODE."""
    grouped = ("l1", "l2", "bn_scale", "fpgm", "taylor", "hessian", "random")
    found: dict[str, Callable[[Any], ow.Recipe]] = {
        f"group {c}": lambda s, c=c: group_importance(structure=s, criterion=c, scope="global", batches=4)
        for c in grouped
    }
    return found | {
        "taylor, squared per batch": lambda s: taylor(structure=s, batches=4),
        "spode": lambda s: spode(structure=s, steps=steps),
    }


def ours(dense: nn.Module, recipe: ow.Recipe, data: DataSet, target: dict[str, float], seed: int) -> nn.Module:
    model = copy.deepcopy(dense)
    result = ow.prune(model, recipe, scoring(data, seed), F.cross_entropy, target=target, seed=seed)
    return ow.compact(model, result)


def peers(names: tuple[str, ...]) -> dict[str, Any]:
    """Importances of Torch-Pruning, by name; empty when it cannot be imported."""
    if importlib.util.find_spec("torch_pruning") is None:
        return {}
    import torch_pruning

    kinds = torch_pruning.importance
    made = {
        "GroupMagnitude": lambda: kinds.GroupMagnitudeImportance(p=2),
        "GroupMagnitude, p=1": lambda: kinds.GroupMagnitudeImportance(p=1),
        "BNScale": kinds.BNScaleImportance,
        "LAMP": kinds.LAMPImportance,
        "FPGM": kinds.FPGMImportance,
        "Random": kinds.RandomImportance,
        "GroupTaylor": kinds.GroupTaylorImportance,
        "GroupHessian": kinds.GroupHessianImportance,
    }
    return {name: make for name, make in made.items() if not names or name in names}


def peer(dense: nn.Module, importance: Any, data: DataSet, share: float, seed: int) -> nn.Module:
    """Their pruner in 400 small steps over the whole network until the budget is reached, as their scripts do."""
    import torch_pruning

    torch.manual_seed(seed)
    model = copy.deepcopy(dense)
    wanted = share * count_macs(dense, X)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model, X, importance, global_pruning=True, pruning_ratio=1.0, iterative_steps=400, ignored_layers=head
        )
        gradients(model, importance, data, seed)
        count = torch_pruning.utils.count_ops_and_params(model, X)[0]
        whole = count
        while count > share * whole:
            pruner.step()
            count = torch_pruning.utils.count_ops_and_params(model, X)[0]
    model.zero_grad()
    if abs(count_macs(model, X) - wanted) > 0.05 * wanted:
        print(f"  {type(importance).__name__}: {count_macs(model, X) / wanted:.3f} of the budget", flush=True)
    return model


def gradients(model: nn.Module, importance: Any, data: DataSet, seed: int) -> None:
    """What Taylor and Hessian importances read: as many inputs as ours see."""
    name = type(importance).__name__
    model.eval()
    if "Taylor" in name:
        for i in range(4):
            x, y = scoring(data, seed).batch(i)
            F.cross_entropy(model(x), y).backward()
    elif "Hessian" in name:
        importance.zero_grad()
        x, y = scoring(data, seed).batch(0)
        for i in range(64):
            model.zero_grad()
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
            importance.accumulate_grad(model)


def accuracy(args: argparse.Namespace, data: DataSet) -> Iterator[dict[str, Any]]:
    """Rows of equal multiply-accumulates."""
    only = ("group l2", "group taylor") if args.quick else args.ours
    chosen = {n: r for n, r in recipes(args.steps).items() if not only or n in only}
    theirs = peers(("GroupMagnitude",) if args.quick else tuple(args.peers))
    small: dict[tuple[str, str], Callable[[nn.Module, float, int], nn.Module]] = {
        ("ours", n): lambda m, share, seed, r=r: ours(m, r(ow.channels(example=X)), data, {"macs": share}, seed)
        for n, r in chosen.items()
    }
    small |= {(PEER, n): lambda m, share, seed, i=i: peer(m, i(), data, share, seed) for n, i in theirs.items()}
    for share in (0.5,) if args.quick else (0.5, 0.3):
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for seed in range(args.seeds):
            dense = dense_of(args, data, seed)
            whole = count_macs(dense, X)
            before = evaluate_source(dense, data.test)["accuracy"]
            found.setdefault(("dense", ""), []).append((1.0, before, before))
            for key, make in small.items():
                model = make(dense, share, seed)
                pruned = evaluate_source(model, data.test)["accuracy"]
                tuned = evaluate_source(run(model, data, args.finetune, 0.02, seed), data.test)["accuracy"]
                found.setdefault(key, []).append((count_macs(model, X) / whole, pruned, tuned))
                print(f"{share} seed {seed} {key}: {found[key][-1]}", flush=True)
        for (who, name), values in found.items():
            macs, pruned, tuned = (spread([v[i] for v in values]) for i in range(3))
            row = {"part": "accuracy", "setting": f"{100 - 100 * share:.0f} % removed", "by": who, "method": name}
            yield row | {"reached": macs, "pruned": pruned, "accuracy": tuned}


DENSE: dict[int, nn.Module] = {}


def dense_of(args: argparse.Namespace, data: DataSet, seed: int) -> nn.Module:
    if seed not in DENSE:
        torch.manual_seed(seed)
        model = ow.build_model("resnet8", (1, 28, 28), 10, stem_stride=2)
        DENSE[seed] = run(model, data, args.epochs, 0.1, seed)
    return DENSE[seed]


def paths(args: argparse.Namespace, data: DataSet) -> Iterator[dict[str, Any]]:
    """Structured SpODE beside channel norms with 72 % of the parameters removed."""
    every = {
        "channel l1, equal shares": lambda s: ow.methods.magnitude(structure=s, norm="l1"),
        "channel l1, one ranking": lambda s: ow.methods.magnitude(structure=s, norm="l1", scope="global"),
        "spode, equal shares": lambda s: spode(structure=s, steps=args.steps, scope="local"),
        "spode, one ranking": lambda s: spode(structure=s, steps=args.steps),
    }
    for name, make in every.items():
        values = []
        for seed in range(args.seeds):
            model = ours(dense_of(args, data, seed), make(ow.channels(example=X)), data, {"params": 0.28}, seed)
            pruned = evaluate_source(model, data.test)["accuracy"]
            values.append((pruned, evaluate_source(run(model, data, args.finetune, 0.02, seed), data.test)["accuracy"]))
            print(f"72 % of the parameters, seed {seed} {name}: {values[-1]}", flush=True)
        pruned, tuned = (spread([v[i] for v in values]) for i in range(2))
        row = {"part": "spode", "setting": "72 % of the parameters removed", "by": "ours", "method": name}
        yield row | {"pruned": pruned, "accuracy": tuned}


def latency(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """CPU time of a compacted network beside its multiply-accumulates."""
    side, name = (64, "resnet18") if args.quick else (224, "resnet50")
    torch.manual_seed(0)
    model, x = ow.build_model(name).eval(), torch.randn(1, 3, side, side)
    for share in (0.5,) if args.quick else (0.5, 0.3):
        pruned = copy.deepcopy(model)
        structure = ow.channels(example=x, multiple=8)
        result = ow.prune(pruned, group_importance(structure=structure, scope="layer"), target={"macs": share})
        small = ow.compact(pruned, result)
        del pruned
        ratios = []
        for i in range(args.rounds + 1):
            dense_s, small_s = cpu_seconds(model, x), cpu_seconds(small, x)
            ratios += [small_s / dense_s] if i else []
        macs = count_macs(small, x) / count_macs(model, x)
        off = median(ratios) / macs - 1
        print(f"{name} {macs:.3f} of the macs, {median(ratios):.3f} of the time ({100 * off:+.1f} %)", flush=True)
        yield {
            "part": "latency",
            "setting": name,
            "macs": macs,
            "time": spread(ratios),
            "median": median(ratios),
            "off": off,
        }


def cpu_seconds(model: nn.Module, x: torch.Tensor) -> float:
    began = time.process_time()
    with torch.inference_mode():
        model(x)
    return time.process_time() - began


def graphs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """How long the graph of a network takes, in seconds of CPU time."""
    build_graph(ow.build_model("mlp"), torch.zeros(1, 1, 8, 8))  # torch.export loads itself the first time
    models: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
        "resnet50": lambda: (ow.build_model("resnet50").eval(), torch.zeros(1, 3, 224, 224))
    }
    if importlib.util.find_spec("transformers") is not None and not args.quick:
        models["Llama, 32 layers, hidden 4096, grouped queries, meta"] = llama
    for name, make in models.items():
        model, x = make()
        began = time.process_time()
        graph = build_graph(model, x)
        seconds = time.process_time() - began
        print(f"graph of {name}: {seconds:.2f} s, {graph.n_ops} operations, {len(graph.groups)} groups", flush=True)
        yield {
            "part": "graph",
            "setting": name,
            "seconds": seconds,
            "operations": graph.n_ops,
            "groups": len(graph.groups),
        }


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).eval(), {"input_ids": torch.zeros(1, 16, dtype=torch.long, device="meta")}


def earlier(name: str) -> list[dict[str, Any]]:
    """Rows of the last run; parts that are not measured now stay."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=["accuracy", "spode", "latency", "graph"])
    parser.add_argument("--ours", nargs="*", default=[], help="only these of ours")
    parser.add_argument("--peers", nargs="*", default=[], help="only these importances of Torch-Pruning")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--finetune", type=float)
    parser.add_argument("--steps", type=int, help="of SpODE")
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    small = {"seeds": 1, "epochs": 0.02, "finetune": 0.01, "steps": 3, "rounds": 3}
    large = {"seeds": 3, "epochs": 1.0, "finetune": 0.5, "steps": 50, "rounds": 10}
    for name, value in (small if args.quick else large).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if {"accuracy", "spode"} & set(args.only):
        data = load_data("fashion-mnist")
        rows += accuracy(args, data) if "accuracy" in args.only else []
        rows += paths(args, data) if "spode" in args.only else []
    rows += latency(args) if "latency" in args.only else []
    rows += graphs(args) if "graph" in args.only else []
    name = "structural_quick" if args.quick else "structural"
    rows = [r for r in earlier(name) if r["part"] not in args.only] + rows
    words = {"title": "Structural pruning: networks cut to a budget", "command": "python bench/structural.py"}
    note = "Times are process CPU times of one thread on a busy machine, in turn. "
    if any(r["part"] in ("accuracy", "spode") for r in rows):
        note += (
            f"Fashion-MNIST, ResNet-8: {args.epochs:g} epochs dense, {args.finetune:g} of fine-tuning, {args.seeds} "
            f"seeds; SpODE in {args.steps} steps of one batch of 128. "
        )
        has = importlib.util.find_spec("torch_pruning") is not None
        note += f"Beside it {PEER} {VERSION}." if has else f"{PEER} is not installed, so its rows are missing."
    write(name, rows, **words, note=note.strip())


if __name__ == "__main__":
    main()
