"""SpODE on trained digits: regrowth, survivors only, against magnitude."""

import pytest
import torch
from tests.unit.rules.paths import prune
from torch import nn
from torch.nn import functional as F

from openwork.core.masks import masks_of
from openwork.rules.spode import SpODE, total_regrowth


@pytest.fixture(scope="module")
def digits():
    """MLP 64-128-128-10, trained; shuffled batches of 512; a held-out part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32) / 16, torch.tensor(bunch.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    train, test = order[:1350], order[1350:]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(30):
        for batch in train[torch.randperm(1350, generator=generator)].split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    picks = [train[torch.randperm(1350, generator=generator)[:512]] for _ in range(100)]
    return model, [(x[p], y[p]) for p in picks], (x[test], y[test])


def accuracy(model, masks, held_out):
    tensors = {n: p * masks[n] for n, p in model.named_parameters() if n in masks}
    with torch.no_grad():
        return float(
            (torch.func.functional_call(model, tensors, (held_out[0],)).argmax(1) == held_out[1]).float().mean()
        )


def test_regrowth_grows_with_sparsity(digits):
    model, batches, _ = digits
    counts = [total_regrowth(prune(model, SpODE(), batches, d)[2]) for d in (0.1, 0.05, 0.02)]
    assert 0 < counts[0] < counts[1] < counts[2]
    assert total_regrowth(prune(model, SpODE(), batches, 0.02, radius=1.0)[2]) == 0


def test_survivor_only_gradients_regrow_less(digits):
    model, batches, _ = digits
    hard, soft = (total_regrowth(prune(model, SpODE(polariser=p), batches, 0.02)[2]) for p in ("ohh", "ohm"))
    assert soft < hard / 2


def test_spode_beats_magnitude_before_fine_tuning(digits):
    model, batches, held_out = digits
    found = {}
    for radius in (1.0, 1.1):
        now, units, _ = prune(model, SpODE(), batches, 0.05, radius=radius)
        found[radius] = accuracy(model, masks_of(now.parts, units), held_out)
    assert found[1.1] >= found[1.0] + 0.10
