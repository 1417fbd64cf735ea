"""Small networks and shortcuts for the tests of SpODE."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openwork.core.batches import Feed
from openwork.core.measured import measure
from openwork.core.measuring import Measuring, weights_of
from openwork.core.now import Now
from openwork.core.targets import Select
from openwork.rules.spode import integrate
from openwork.structure import Element
from openwork.structure.cover import partition

F64 = torch.float64
COLLAPSE = pytest.mark.filterwarnings("ignore:SpODE. no unit of")  # not the point of these tests
ROW_KEYS = {"k", "density", "G", "energy", "kept", "g_norm", "e_norm", "cos_Fe", "cos_Fg", "radius", "dt"} | {
    "regrown", "removed", "negative"
}  # fmt: skip


def situation(model, rule, batches, structure=None, loss=F.cross_entropy, seed=0, parts=None):
    """What the engines hand to a rule, built by hand."""
    parts = parts or partition(model, structure or Element(), Select())[0]
    context = Measuring(model, parts, Feed(batches, torch.device("cpu")), loss, seed)
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    return Now(parts, units, weights_of(context), measure(rule, context))


def toy(dtype=torch.float32, conv=False):
    generator = torch.Generator().manual_seed(1)
    if conv:
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(32, 4)
        )
        shape = (24, 2, 6, 6)
    else:
        model, shape = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)), (24, 8)
    x = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    return model.to(dtype), [(b, torch.randint(0, 4, (24,), generator=generator)) for b in x]


def prune(model, rule, batches, share, structure=None, units=None, radius=None, **options):
    now = situation(model, rule, batches, structure, **options)
    now = replace(now, units=units) if units is not None else now
    units, rows = integrate(rule, now, share, radius or rule.radius)
    return now, units, rows


def kept(units):
    return sum(int(u.sum()) for u in units.values())
