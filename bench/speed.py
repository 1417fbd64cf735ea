"""What openwork costs: selection, masked steps, gated steps, path steps, memory, import. Interleaved, one thread.

python bench/speed.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import interleaved, ratio, write
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measured import measure
from openwork.core.measuring import Measuring
from openwork.core.now import Now, Phase
from openwork.methods import magnitude, sequential_attention_pp, spode, woodfisher
from openwork.structure import Block, Element, partition
from openwork.zoo import build_model


def step_of(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer, run: Any = None
) -> Callable[[], None]:
    """One training step as a function."""

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        if run is not None:
            loss = loss + run.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def training_steps(rounds: int) -> list[dict[str, Any]]:
    """Dense, hard-masked and gated steps of ResNet-20 on 32x32 colour, batch 128."""
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    steps = {}
    for name in ("dense", "again", "masked", "sa++"):
        torch.manual_seed(0)
        model = build_model("resnet20", (3, 32, 32), 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        run = None
        if name == "masked":
            ow.prune(model, magnitude(density=0.1))
            run = ow.attach(model, magnitude(density=0.1), optimizer)
        if name == "sa++":
            run = ow.attach(model, sequential_attention_pp(density=0.1, structure=Block(8, 8), steps=1000), optimizer)
        steps[name] = step_of(model, x, y, optimizer, run)
    times = interleaved(steps, rounds)
    goals = {"again": None, "masked": 1.03, "sa++": 1.10}
    return [
        {"what": f"{n} training step / dense step, ResNet-20", "goal": g, **ratio(times, n, "dense")}
        for n, g in goals.items()
    ]


def path_step(rounds: int) -> list[dict[str, Any]]:
    """SpODE steps against forward + backward on the same batches, ResNet-20, batch 256; and peak memory."""
    model = build_model("resnet20", (3, 32, 32), 10)
    x, y = torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,))

    def backward() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    def session(n: int) -> Callable[[], None]:
        recipe = spode(density=0.9, steps=n)
        parts, _ = partition(model, Element(), recipe.where)
        ctx = Measuring(model, parts, Feed([(x, y)], torch.device("cpu")), F.cross_entropy)
        weights = {n: p.detach() for n, p in model.named_parameters() if n in parts}
        units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}

        def run() -> None:
            now = Now(parts, units, weights, measure(recipe.rule, ctx))
            recipe.rule.update(now, Phase(0.9, True), None)

        return run

    times = interleaved({"fb": backward, "one": session(1), "three": session(3)}, rounds, warmup=1)
    per_step = [(c - a) / 2 / b for a, b, c in zip(times["one"], times["fb"], times["three"], strict=True)]
    return [
        {
            "what": "SpODE step / forward + backward, ResNet-20 batch 256",
            "goal": 1.25,
            "ratio": median(per_step),
            "low": min(per_step),
            "high": max(per_step),
            "rounds": len(per_step),
        }
    ]


def path_run(rounds: int, steps: int) -> list[dict[str, Any]]:
    """A whole SpODE run, from the weights to the masks, against as many training steps with momentum."""
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    model = build_model("resnet20", (3, 32, 32), 10)
    start = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = step_of(model, x, y, optimizer)

    def train() -> None:
        for _ in range(steps):
            step()

    def path() -> None:
        model.load_state_dict(start)
        ow.prune(model, spode(density=0.05, steps=steps), data=[(x, y)], loss=F.cross_entropy)

    times = interleaved({"path": path, "train": train}, rounds, warmup=0)
    what = f"SpODE run of {steps} steps / {steps} training steps, ResNet-20 batch 128"
    return [{"what": what, "goal": 1.3, **ratio(times, "path", "train")}]


def selection(rounds: int) -> list[dict[str, Any]]:
    """keep_top on 10 M scores."""
    rows = []
    for share in (0.01, 0.1, 0.5):
        scores = torch.rand(10_000_000)
        keep = int(share * scores.numel())
        times = interleaved(
            {"ours": lambda s=scores, k=keep: ow.keep_top(s, k), "sort": lambda s=scores: torch.sort(s, stable=True)},
            rounds,
            warmup=1,
        )
        rows.append(
            {
                "what": f"keep_top, 10 M scores, keep {share:g} (seconds)",
                "goal": 0.35,
                "seconds": median(times["ours"]),
                "stable_sort_seconds": median(times["sort"]),
                "rounds": rounds,
            }
        )
    return rows


def surgery(samples: int) -> list[dict[str, Any]]:
    """WoodFisher on ResNet-20: gradients, selection and update together."""
    model = build_model("resnet20", (3, 32, 32), 10)
    batch = (torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,)))
    began = time.perf_counter()
    ow.prune(model, woodfisher(density=0.1, samples=samples), data=[batch], loss=F.cross_entropy)
    seconds = time.perf_counter() - began
    what = f"WoodFisher, ResNet-20, {samples} gradients, blocks of 2000 (seconds)"
    return [{"what": what, "goal": 300, "seconds": seconds}]


_MEMORY = """
import sys, torch
from torch.nn import functional as F
torch.set_num_threads(1)
import openwork as ow
from openwork.zoo import build_model
from openwork.methods import spode
model = build_model("resnet20", (3, 32, 32), 10)
x, y = torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,))
def peak():  # not ru_maxrss: a child inherits the peak of the process that started it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
if sys.argv[1] == "dense":
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad(); F.cross_entropy(model(x), y).backward(); optimizer.step()
else:
    ow.prune(model, spode(density=0.5, steps=4), data=[(x, y)], loss=F.cross_entropy)
print(peak() - before)
"""


def memory() -> list[dict[str, Any]]:
    """Peak resident memory above the loaded model, in fresh processes."""
    peak = {
        k: int(subprocess.run([sys.executable, "-c", _MEMORY, k], capture_output=True, text=True, check=True).stdout)
        for k in ("dense", "spode")
    }
    return [
        {
            "what": "SpODE peak memory / dense training peak memory",
            "goal": 1.0,
            "ratio": peak["spode"] / peak["dense"],
            "dense_mib": peak["dense"] / 1024,
            "spode_mib": peak["spode"] / 1024,
        }
    ]


def importing(rounds: int) -> list[dict[str, Any]]:
    """Seconds that `import openwork` takes on top of `import torch`."""
    code = "import torch, time; t = time.perf_counter(); import openwork; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds)
    ]
    return [
        {
            "what": "import openwork on top of torch (seconds)",
            "goal": 0.3,
            "seconds": median(times),
            "low": min(times),
            "high": max(times),
            "rounds": rounds,
        }
    ]


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    rounds = 5 if quick else 21
    rows = importing(3) + selection(3) + training_steps(rounds) + path_step(3 if quick else 9) + memory()
    rows += path_run(1 if quick else 3, 3 if quick else 100) + surgery(40 if quick else 400)
    for row in rows:
        value = row.get("ratio", row.get("seconds"))
        print(f"{row['what']:60} {value:8.4f}  goal {row['goal']}")
    write("speed_quick" if quick else "speed", rows)


if __name__ == "__main__":
    main("--quick" in sys.argv)
