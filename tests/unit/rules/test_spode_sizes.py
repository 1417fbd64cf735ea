"""One ranking over units of different sizes: coupled channels of wide and of narrow layers."""

import pytest
import torch
from tests.unit.rules.paths import COLLAPSE, prune, situation, toy
from torch import nn

import openwork as ow
from openwork.core.select import keep_top
from openwork.rules.spode import SpODE, _Run

X = torch.zeros(2, 3, 8, 8)


def funnel():
    """Three groups of channels whose units have 171, 648 and 160 weights each."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 4, 4),
    )  # fmt: skip
    batch = torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    return model, [batch]


def masks_without_a_turn(rule):
    """The smallest and the largest soft mask of every group where only the density pulls."""
    model, batches = funnel()
    run = _Run(rule, situation(model, rule, batches, ow.channels(example=X)))
    run.walk(1.0, 0.25, 1.0)
    return [(float(m.min()), float(m.max())) for m in run.mask.split(run.sizes)]


def test_even_sizes_fall_alike_and_raw_ones_by_their_weights():
    even, raw = (masks_without_a_turn(SpODE(steps=10, sizes=sizes)) for sizes in ("even", "raw"))
    assert [m for pair in even for m in pair] == pytest.approx([even[0][0]] * 6)
    assert raw[1][1] < 0.05  # 648 weights a unit, against 171 and 160
    assert min(raw[0][0], raw[2][0]) > 0.3
    assert masks_without_a_turn(SpODE(steps=10)) == even


def test_without_a_turn_the_order_is_that_of_the_relative_norms():
    model, batches = funnel()
    now, units, _ = prune(model, SpODE(steps=7, floor=1), batches, 0.5, structure=ow.channels(example=X), radius=1.0)
    sums = {n: p.pool({m: now.weights[m].abs() for m in p.members}) for n, p in now.parts.items()}
    wanted = keep_top(torch.cat([s / s.mean() for s in sums.values()]).double(), 44)
    assert torch.equal(torch.cat(list(units.values())), wanted)


@COLLAPSE
@pytest.mark.parametrize("structure", [ow.Element(), ow.Block(4, 4)])
def test_what_is_not_coupled_moves_as_it_did(structure):
    found = []
    for sizes in ("auto", "raw"):
        torch.manual_seed(0)
        model, batches = toy()
        _, units, rows = prune(model, SpODE(steps=5, sizes=sizes, floor=1), batches, 0.5, structure=structure)
        found.append((torch.cat(list(units.values())), rows))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_papers_preset_is_raw():
    assert ow.methods.spode(preset="paper").rule.sizes == "raw"
    assert ow.methods.spode().rule.sizes == "auto"
