"""Channels of ResNets cut to a budget, beside Torch-Pruning: accuracy; latency; graph times and memory.

    python bench/structural.py [--quick] [--only accuracy spode latency graph] [--seeds N] [--epochs E] [--finetune F]

Accuracy: a ResNet-20 with a strided stem on Fashion-MNIST, and the trained ResNet-20 on CIFAR-10 of the folder that
``OPENWORK_ASSETS`` names. Torch-Pruning is used when it can be imported (``bench/torch_pruning_side.py``); otherwise
its rows are missing and the result says so. Every network of a seed starts from the same dense weights, and all are
fine-tuned in the same way. Multiply-accumulates of all small models are counted by the same function. With ``--log
FILE`` every finished run is noted there, and a run that stands there is not made again. Times are process CPU times of
one thread, in turn.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch_pruning_side as peer
from common import earlier, spread, write
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.data import Batches, DataSet, load_data
from openwork.data.places import assets_folder
from openwork.graph import build_graph, count_macs
from openwork.lab import Budget
from openwork.lab.evaluate import evaluate_source
from openwork.llm.heap import resident
from openwork.methods import group_importance, spode, taylor
from openwork.runtime.fold import fold_norms


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
        "group fpgm, equal shares": lambda s: group_importance(structure=s, criterion="fpgm", scope="layer"),
        "channel l1, one layer": lambda s: ow.methods.magnitude(structure=s, norm="l1", scope="global"),
        "taylor, squared per batch": lambda s: taylor(structure=s, batches=4),
        "spode": lambda s: spode(structure=s, steps=steps),
    }


def ours(setting: Setting, recipe: Callable[[Any], ow.Recipe], target: dict[str, float], seed: int) -> nn.Module:
    model = copy.deepcopy(setting.model(seed))
    made = recipe(ow.channels(example=setting.x))
    result = ow.prune(model, made, scoring(setting.data, seed), F.cross_entropy, target=target, seed=seed)
    return ow.compact(model, result)


@dataclass
class Setting:
    """Data, a trained network for every seed, and what both are called with."""

    title: str
    data: DataSet
    build: Callable[[int], nn.Module]
    finetune: float
    dense: dict[int, nn.Module] = field(default_factory=dict)

    @property
    def x(self) -> torch.Tensor:
        return torch.zeros(1, *self.data.input_shape)

    def model(self, seed: int) -> nn.Module:
        if seed not in self.dense:
            self.dense[seed] = self.build(seed)
        return self.dense[seed]


def settings(args: argparse.Namespace) -> Iterator[Setting]:
    """Fashion-MNIST; CIFAR-10 where its files are."""
    data = load_data("fashion-mnist")
    data = replace(data, x_test=data.x_test[:5000], y_test=data.y_test[:5000])

    def trained(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = ow.build_model("resnet20", (1, 28, 28), 10, stem_stride=2, shortcut="projection")
        return run(model, data, args.epochs, 0.1, seed)

    yield Setting("Fashion-MNIST", data, trained, args.finetune)
    folder = assets_folder()
    if args.quick or folder is None:
        return

    def loaded(seed: int) -> nn.Module:
        model = ow.build_model("resnet20").eval()
        model.load_state_dict(load_file(folder / "resnet20_cifar10.safetensors"), strict=False)
        return model

    yield Setting("CIFAR-10", load_data("cifar10-jpeg", test=2000), loaded, args.finetune_cifar)


class Log:
    """Finished runs, one JSON line each; without a path nothing is kept."""

    def __init__(self, path: str | None):
        self.path = Path(path) if path else None
        lines = self.path.read_text().splitlines() if self.path and self.path.is_file() else []
        self.known = {json.dumps(key): value for key, value in map(json.loads, lines)}

    def get(self, key: list[Any], make: Callable[[], Any]) -> Any:
        """The value noted for a key, or a new one."""
        word = json.dumps(key)
        if word not in self.known:
            began = time.process_time()
            self.known[word] = make()
            print(f"{key}: {self.known[word]} {time.process_time() - began:.0f} s", flush=True)
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps([key, self.known[word]]) + "\n")
        return self.known[word]


Cutter = Callable[[Setting, float, int], nn.Module]


def cutters(args: argparse.Namespace) -> dict[tuple[str, str], Cutter]:
    """Everything that makes a network smaller to a share of its multiply-accumulates: ours and theirs, by name."""
    only = ("group l2", "group taylor") if args.quick else args.ours
    found: dict[tuple[str, str], Cutter] = {}
    for name, recipe in recipes(args.steps).items():
        if not only or name in only:
            found["ours", name] = lambda s, share, seed, r=recipe: ours(s, r, {"macs": share}, seed)
    for name, make in peer.importances(("GroupMagnitude",) if args.quick else tuple(args.peers)).items():
        found[peer.NAME, name] = lambda s, share, seed, m=make: peer.cut(
            s.model(seed), s.x, m(), scoring(s.data, seed), share, seed
        )
    return found


def measured(setting: Setting, make: Callable[[], nn.Module], seed: int) -> list[float] | str:
    """Share of the multiply-accumulates, accuracy after the cut and after fine-tuning; or why there is no network."""
    try:
        model = make()
        macs = count_macs(model, setting.x) / count_macs(setting.model(seed), setting.x)
    except Exception as problem:
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:160]}"
    pruned = evaluate_source(model, setting.data.test)["accuracy"]
    run(model, setting.data, setting.finetune, 0.02, seed)
    return [macs, pruned, evaluate_source(model, setting.data.test)["accuracy"]]


def accuracy(args: argparse.Namespace, log: Log) -> Iterator[dict[str, Any]]:
    """Rows of equal multiply-accumulates; a seed is done for every network before the next begins."""
    shares = (0.5,) if args.quick else tuple(args.shares)
    every = list(settings(args))
    found: dict[tuple[str, float, str, str], list[Any]] = {}
    for seed in range(args.seeds):
        for setting in every:
            if seed >= args.seeds_cifar and setting.title == "CIFAR-10":
                continue
            key = [setting.title, seed, args.epochs, setting.finetune]
            dense = log.get([*key, "dense"], lambda s=setting, i=seed: evaluate_source(s.model(i), s.data.test))
            for share in shares:
                found.setdefault((setting.title, share, "dense", ""), []).append([1.0, *2 * [dense["accuracy"]]])
                for (who, name), cut in cutters(args).items():
                    value = log.get(
                        [*key, share, who, name],
                        lambda s=setting, c=cut, p=share, i=seed: measured(s, lambda: c(s, p, i), i),
                    )
                    found.setdefault((setting.title, share, who, name), []).append(value)
    for (title, share, who, name), values in found.items():
        named = f"{title}, {100 - 100 * share:.0f} % removed" + f", {args.seeds} seeds" * narrow(args)
        row = {"part": "accuracy", "setting": named, "by": who, "method": name}
        failed = next((v for v in values if isinstance(v, str)), None)
        if failed is None:
            macs, pruned, tuned = (spread([v[i] for v in values]) for i in range(3))
            yield row | {"macs": macs["mean"], "reached": macs, "pruned": pruned, "accuracy": tuned}
        else:
            yield row | {"failed": failed}


def paths(args: argparse.Namespace, log: Log) -> Iterator[dict[str, Any]]:
    """Structured SpODE beside channel norms with 72 % of the parameters removed."""
    every = {
        "channel l1, equal shares": lambda s: ow.methods.magnitude(structure=s, norm="l1"),
        "channel l1, one ranking": lambda s: ow.methods.magnitude(structure=s, norm="l1", scope="global"),
        "spode, equal shares": lambda s: spode(structure=s, steps=args.steps, scope="local"),
        "spode, one ranking": lambda s: spode(structure=s, steps=args.steps),
    }
    setting = next(settings(args))
    for name, make in every.items():
        values = []
        for seed in range(args.seeds):
            key = [setting.title, seed, args.epochs, setting.finetune, "params", 0.28, name]
            values.append(
                log.get(
                    key,
                    lambda i=seed, m=make: measured(setting, lambda: ours(setting, m, {"params": 0.28}, i), i),
                )
            )
        macs, pruned, tuned = (spread([v[i] for v in values]) for i in range(3))
        row = {"part": "spode", "setting": "72 % of the parameters removed", "by": "ours", "method": name}
        yield row | {"macs": macs["mean"], "pruned": pruned, "accuracy": tuned}


def latency(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """CPU time of compacted networks beside their multiply-accumulates, kept channels in several multiples, in turn."""
    side, name = (64, "resnet18") if args.quick else (224, "resnet50")
    torch.manual_seed(0)
    model, x = ow.build_model(name).eval(), torch.randn(1, 3, side, side)
    for share in (0.5,) if args.quick else args.shares:
        small: dict[int, nn.Module] = {}
        for multiple in (1, 8) if args.quick else (1, 8, 16, 32):
            pruned = copy.deepcopy(model)
            structure = ow.channels(example=x, multiple=multiple)
            result = ow.prune(pruned, group_importance(structure=structure, scope="layer"), target={"macs": share})
            small[multiple] = ow.compact(pruned, result)
            del pruned
        for ready in ("", ", norms folded"):
            nets = {m: folded(net) if ready else net for m, net in {0: model, **small}.items()}
            ratios: dict[int, list[float]] = {multiple: [] for multiple in small}
            for i in range(args.rounds + 1):
                dense_s = cpu_seconds(nets[0], x)
                for multiple in small:
                    ratios[multiple] += [cpu_seconds(nets[multiple], x) / dense_s] if i else []
            for multiple, found in ratios.items():
                macs, middle = count_macs(small[multiple], x) / count_macs(model, x), median(found)
                row = {
                    "part": "latency",
                    "setting": f"{name}, channels in multiples of {multiple}{ready}",
                    "macs": macs,
                }
                yield row | {"time": spread(found), "median": middle, "off": middle / macs - 1}
                print(f"{row['setting']}: {macs:.3f} of the macs, {middle:.3f} of the time", flush=True)


def folded(model: nn.Module) -> nn.Module:
    """A copy as it is deployed: every norm that follows a convolution becomes part of its weights."""
    made = copy.deepcopy(model)
    fold_norms(made)
    return made


def cpu_seconds(model: nn.Module, x: torch.Tensor) -> float:
    began = time.process_time()
    with torch.inference_mode():
        model(x)
    return time.process_time() - began


def graphs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds of CPU time that the graph of a network takes (the least of three), and what it adds to the memory."""
    build_graph(ow.build_model("mlp"), torch.zeros(1, 1, 8, 8))  # torch.export loads itself the first time
    models: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
        "resnet50": lambda: (ow.build_model("resnet50").eval(), torch.zeros(1, 3, 224, 224))
    }
    if importlib.util.find_spec("transformers") is not None and not args.quick:
        models["Llama, 32 layers, hidden 4096, grouped queries, meta"] = llama
    for name, make in models.items():
        model, x = make()
        seconds = []
        before = peak_bytes(forget=True)
        for _ in range(1 if args.quick else 3):  # other work on the machine only ever adds
            began = time.process_time()
            graph = build_graph(model, x)
            seconds.append(time.process_time() - began)
        row = {"part": "graph", "setting": name, "seconds": min(seconds), "mib": (peak_bytes() - before) / 2**20}
        print(f"graph of {name}: {seconds} s, {row['mib']:.0f} MiB", flush=True)
        yield row | {"operations": graph.n_ops, "groups": len(graph.groups), "every": seconds}


def peak_bytes(forget: bool = False) -> int:
    """The most memory that this process held, since it began or since this was last to be forgotten."""
    home = Path("/proc/self")
    if forget and (home / "clear_refs").exists():
        (home / "clear_refs").write_text("5")
    return resident()


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).eval(), {"input_ids": torch.zeros(1, 16, dtype=torch.long, device="meta")}


def narrow(args: argparse.Namespace) -> bool:
    """Whether only a few methods are compared, over more seeds perhaps; the rows of all of them are then kept."""
    return bool(args.ours or args.peers)


def seeds_of(rows: list[dict[str, Any]], part: str, data: str = "") -> int:
    """How many seeds the rows of a part, and of data, hold at most."""
    mine = [
        r
        for r in rows
        if r["part"] == part and "accuracy" in r and r["setting"].startswith(data) and "seeds" not in r["setting"]
    ]
    return max((len(r["accuracy"]["values"]) for r in mine), default=0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=["accuracy", "spode", "latency", "graph"])
    parser.add_argument("--ours", nargs="*", default=[], help="only these of ours")
    parser.add_argument("--peers", nargs="*", default=[], help="only these importances of Torch-Pruning")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.3], help="of the multiply-accumulates")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--finetune", type=float)
    parser.add_argument("--seeds-cifar", type=int)
    parser.add_argument("--finetune-cifar", type=float)
    parser.add_argument("--steps", type=int, help="of SpODE")
    parser.add_argument("--log", help="finished runs are noted here and not made again")
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    small = {"seeds": 1, "seeds_cifar": 1, "epochs": 0.02, "finetune": 0.01, "steps": 3, "rounds": 3}
    small["finetune_cifar"] = 0.1
    large = {"seeds": 1, "seeds_cifar": 1, "epochs": 1.0, "finetune": 0.1, "steps": 50, "rounds": 10}
    large["finetune_cifar"] = 0.5
    for name, value in (small if args.quick else large).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    log = Log(args.log)
    rows += accuracy(args, log) if "accuracy" in args.only else []
    rows += paths(args, log) if "spode" in args.only else []
    rows += latency(args) if "latency" in args.only else []
    rows += graphs(args) if "graph" in args.only else []
    name = "structural_quick" if args.quick else "structural"
    made = {r["setting"] for r in rows}
    before = earlier(name)
    kept = [r for r in before if r["part"] not in args.only or (narrow(args) and r["setting"] not in made)]
    rows = kept + rows
    words = {"title": "Structural pruning: networks cut to a budget", "command": "python bench/structural.py"}
    note = "Times are process CPU times of one thread on a busy machine, in turn. "
    if any(r["part"] in ("accuracy", "spode") for r in rows):
        fashion, cifar = seeds_of(rows, "accuracy", "Fashion"), seeds_of(rows, "accuracy", "CIFAR")
        note += (
            f"Fashion-MNIST: ResNet-20 with a strided stem and projections, {args.epochs:g} epochs dense, "
            f"{args.finetune:g} of fine-tuning, {fashion} seeds ({seeds_of(rows, 'spode')} with "
            "72 % of the parameters removed), 5,000 test pictures. "
            f"CIFAR-10: a trained ResNet-20 with padded shortcuts, {args.finetune_cifar:g} epochs on 10,000 pictures, "
            f"{cifar} seeds, 2,000 test pictures. SpODE in {args.steps} steps of one batch of 128. "
        )
        has = bool(peer.importances())
        note += f"Beside it {peer.NAME} {peer.VERSION}." if has else f"{peer.NAME} is missing, and so are its rows."
    write(name, rows, **words, note=note.strip())


if __name__ == "__main__":
    main()
