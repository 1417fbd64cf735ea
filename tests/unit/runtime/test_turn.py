"""Networks turned to channels last: only where nobody can tell, and only where it is faster."""

import sys

import pytest
import torch
import torch.nn.functional as F
from tests.unit.runtime.models import timed
from torch import nn

import openwork as ow
from openwork.runtime import pack
from openwork.runtime.plan import _MEMORY
from openwork.runtime.turn import may_turn, turn, turned


class Small(nn.Module):
    """A dense stem, a convolution that can be packed, a linear end."""

    def __init__(self, end="flatten"):
        super().__init__()
        self.stem, self.conv, self.fc, self.end = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 4), end

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(F.relu(self.stem(x)))), 2)
        if self.end == "image":
            return x
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(x.view(-1, 32) if self.end == "view" else x.flatten(1))


def small(end="flatten"):
    model = Small(end).eval()
    with torch.no_grad():
        model.conv.weight[:16] = 0
    return model


def faster_with_channels_last(monkeypatch):
    """Layers whose input has its channels last take half the time."""
    timed(monkeypatch, {"dense": 4.0, "onednn": 4.0, "block": 2.0, "column": 3.0})
    plan = sys.modules["openwork.runtime.plan"]
    decide = plan.decide

    def halved(layer, candidates, x, key, dtype):
        _MEMORY.clear()
        times, kind, error = decide(layer, candidates, x, key, dtype)
        last = x.dim() == 4 and not x.is_contiguous()
        return {k: t / 2 if last else t for k, t in times.items()}, kind, error

    monkeypatch.setattr(sys.modules["openwork.runtime.pack"], "decide", halved)


def test_a_network_is_turned_where_it_is_faster(monkeypatch):
    model, x = small(), torch.randn(2, 3, 12, 12)
    timed(monkeypatch, {"dense": 4.0, "onednn": 4.0, "block": 2.0, "column": 3.0})
    assert not pack(model, ow.Block(16, 32), example=x).openwork_last  # a tie stays as it is
    faster_with_channels_last(monkeypatch)
    packed = pack(model, ow.Block(16, 32), example=x)
    assert packed.openwork_last
    assert packed.conv.channels_last
    seen = []
    packed.conv.register_forward_hook(lambda m, a, y: seen.append((a[0], y)))
    torch.testing.assert_close(packed(x), model(x))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen[0])
    assert packed.conv.activation == "relu"


@pytest.mark.parametrize("end", ["view", "image"])
def test_nobody_may_see_it(monkeypatch, end):
    """A view of the model's own and a caller of the model could both tell."""
    faster_with_channels_last(monkeypatch)
    model, x = small(end), torch.randn(2, 3, 12, 12)
    packed = pack(model, ow.Block(16, 32), example=x)
    assert not packed.openwork_last
    torch.testing.assert_close(packed(x), model(x))


def test_parts():
    assert not may_turn(None, torch.zeros(2))
    x = torch.randn(2, 3, 4, 5)
    assert turned(None) is None
    assert turned(x[0]).equal(x[0])
    assert turned(x).is_contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(3, 4, 3)
    turn(conv)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)
