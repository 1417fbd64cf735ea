"""One row per method of the index: how to build its recipe small, and how to drive it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork import methods
from openwork.structure import InputChannel

STEPS = 60


@dataclass(frozen=True)
class Case:
    """``options`` keep the method small; ``regions`` says whether N:M makes sense for it, ``groups`` whether blocks do.

    ``structure`` takes the place of single weights for a method that removes whole units only; ``coupled`` says that
    these are channels, found on an example of the model's dtype.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    regions: bool = True
    groups: bool = True
    structure: Any = None
    coupled: bool = False

    def recipe(
        self, density: float | None = 0.3, structure: Any = None, dtype: torch.dtype = torch.float32, **more: Any
    ) -> ow.Recipe:
        if structure is None or structure == ow.Element():
            structure = self.structure or ow.Element()
            if self.coupled:
                structure = ow.channels(example=torch.zeros(2, 1, 8, 8, dtype=dtype))
        return methods.get(self.name)(density=density, structure=structure, **{**self.options, **more})

    @property
    def drive(self) -> str:
        return methods.find(self.name).drive

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("magnitude"),
    Case("random"),
    Case("random_search", {"draws": 5}),
    Case("global_mp"),
    Case("gradual_magnitude", {"begin": 5, "end": 40, "every": 7}),
    Case("taylor", {"batches": 2}),
    Case("snip", {"batches": 2}),
    Case("grasp"),
    Case("synflow", {"rounds": 5}),
    Case("spode", {"steps": 6}),
    Case("spode_iterative", {"steps": 4, "rounds": 2}),
    Case("imp", {"rounds": 2}),
    Case("sap", {"rounds": 2}, regions=False),
    Case("acdc", {"steps": STEPS}),
    Case("set", {"steps": STEPS, "every": 5}, regions=False),
    Case("rigl", {"steps": STEPS, "every": 5}, regions=False),
    Case("sequential_attention_pp", {"steps": STEPS, "min_blocks": 2}, regions=False),
    Case("powerpropagation", {"steps": STEPS, "prune_at": 0.5}),
    Case("str", {"steps": STEPS, "end": 0.5}, regions=False, groups=False),
    Case("probmask", {"steps": STEPS, "learning_rate_of_s": 0.1}),
    Case("woodfisher", {"samples": 8, "block": 100}, groups=False),
    Case("wanda"),
    Case("sparsegpt", {"block": 16}),
    Case("dsnot", groups=False),
    Case("ecoflap", {"batches": 2}, regions=False),
    Case("icbs", {"steps": 6, "block": 32, "samples": 4, "groups": 2, "solver": "swap"}, regions=False, groups=False),
    Case("obspa", regions=False, groups=False, structure=InputChannel()),
    Case("beta_rank"),
    Case("precrop", regions=False),
    Case("masksparsity", {"steps": STEPS, "lam": 0.05}, regions=False, groups=False, coupled=True),
    Case("group_importance"),
]


class Net(nn.Module):
    """A convolution with BatchNorm, a grouped one, dropout, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=2)
        self.drop = nn.Dropout(0.1)
        self.hidden = nn.Linear(12 * 9, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.grouped(F.relu(self.norm(self.conv(x)))))
        return self.head(F.relu(self.hidden(self.drop(x.flatten(1)))))


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def batches(n: int = 4, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(7)
    return [
        (torch.randn(16, 1, 8, 8, generator=rng).to(dtype), torch.randint(0, 4, (16,), generator=rng)) for _ in range(n)
    ]


Optimise = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3, nesterov=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.05)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.003, weight_decay=0.01)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, begin: int, end: int, run: Any = None, after: Any = None
) -> None:
    """Steps ``begin`` to ``end`` of a fixed training; the seed of every step is fixed, so it can be cut anywhere."""
    model.train()
    for step in range(begin, end):
        x, y = batches()[step % 4]
        torch.manual_seed(step)
        loss = F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
        if run is not None:
            loss = loss + run.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after is not None:
            after(step)


def perform(
    case: Case, recipe: ow.Recipe, model: nn.Module, seed: int = 0, optimise: Optimise = sgd, data: Any = None
) -> ow.Result:
    """Drive a recipe to its end, whatever its engine."""
    dtype = next(model.parameters()).dtype
    data = batches(dtype=dtype) if data is None else data
    if case.drive == "prune":
        return ow.prune(model, recipe, data=data, loss=F.cross_entropy, seed=seed)
    if case.drive == "attach":
        optimizer = optimise(model)
        run = ow.attach(model, recipe, optimizer, seed=seed)
        train(model, optimizer, 0, STEPS, run)
        return run.finish()
    point = {k: v.clone() for k, v in model.state_dict().items()}

    def rounds(model: nn.Module, now: ow.Round) -> None:
        train(model, optimise(model), 0, 8)

    return ow.cycle(model, recipe, rounds, rewind_to=point, data=data, loss=F.cross_entropy, seed=seed)


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a refused call must not change."""
    return {
        "tensors": {n: t.detach().clone() for n, t in model.state_dict().items()},
        "names": [n for n, _ in model.named_parameters()],
        "identity": [id(p) for p in model.parameters()],
        "grads": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "types": [type(m) for m in model.modules()],
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal fingerprints, tensors bit for bit (NaN equals NaN)."""
    tensors = a["tensors"].keys() == b["tensors"].keys() and all(
        torch.equal(
            a["tensors"][k].view(torch.uint8) if a["tensors"][k].ndim else a["tensors"][k],
            b["tensors"][k].view(torch.uint8) if b["tensors"][k].ndim else b["tensors"][k],
        )
        for k in a["tensors"]
    )
    return tensors and all(a[k] == b[k] for k in a if k != "tensors")
