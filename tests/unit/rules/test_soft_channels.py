"""Soft masks on coupled channels: SpODE's masks travel and return, attention scales every unit once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.methods import sequential_attention_pp, spode
from openwork.rules.spode import total_regrowth


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


X, Y = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4


def test_soft_masks_stand_where_units_are_read():
    parts, _ = ow.channels(example=X).fit_model(net(), ow.Select())
    part = parts["0.weight"]
    assert set(part.members) == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight"}
    assert part.reading.members == ("3.weight",)
    half = part.reading.spread(torch.full((12,), 0.5))
    assert torch.equal(half["3.weight"], torch.full((16, 12, 3, 3), 0.5))


def test_a_channel_that_is_off_still_feels_a_gradient():
    """With masks on both sides the product rule would give zero at zero, and nothing could come back."""
    model = net()
    recipe = spode(density=0.4, structure=ow.channels(example=X), steps=40, radius=1.5)
    result = ow.prune(model, recipe, data=[(X, Y)], loss=F.cross_entropy)
    path = result.log[0]["path"]
    assert total_regrowth(path) > 0
    assert sum(int(u.sum()) for u in result.units.values()) == 12
    small = ow.compact(model.eval(), result)
    torch.testing.assert_close(small(X), model(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_counts_are_exact(scope):
    recipe = spode(density=0.5, structure=ow.channels(example=X), steps=6, scope=scope)
    result = ow.prune(net(), recipe, data=[(X, Y)], loss=F.cross_entropy)
    assert sum(int(u.sum()) for u in result.units.values()) == 14
    if scope == "local":
        assert sorted(int(u.sum()) for u in result.units.values()) == [6, 8]


def test_attention_on_channels():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    recipe = sequential_attention_pp(density=0.25, structure=ow.channels(example=X), steps=60, min_blocks=1)
    run = ow.attach(model, recipe, optimizer)
    gated = [n for n, m in model.named_modules() if hasattr(m, "parametrizations")]
    assert gated == ["3", "8"]
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    result = run.finish()
    assert {n: int(u.sum()) for n, u in result.units.items()} == {"0.weight": 3, "3.weight": 4}
    small = ow.compact(model.eval(), result)
    torch.testing.assert_close(small(X), model(X), atol=1e-5, rtol=1e-5)
