"""ECoFLaP: exact counts, a gradient norm from forward passes, and shares in the whole."""

import copy
import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.allocation.zeroth import ZerothOrder, counts_by_score
from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.errors import RecipeError
from openwork.methods import ecoflap
from openwork.stats.zeroth import ZerothNorms
from openwork.structure import Element, partition


def test_counts_are_exact_and_bounded():
    rng = random.Random(0)
    for _ in range(1000):
        sizes = [rng.randint(1, 400) for _ in range(rng.randint(1, 9))]
        scores = [rng.choice([0.0, rng.random(), 100 * rng.random()]) for _ in sizes]
        share = rng.uniform(0.05, 0.95)
        most = min(1.0, 1 - share + 0.1)
        keep = math.ceil(share * sum(sizes))
        floors = sum(math.ceil(n * (1 - most) - 1e-9) for n in sizes)
        if floors > keep:
            with pytest.raises(RecipeError, match="in every group needs"):
                counts_by_score(scores, sizes, keep, 1 - most)
            continue
        counts = counts_by_score(scores, sizes, keep, 1 - most)
        assert sum(counts) == keep
        assert all(0 <= k <= n and 1 - k / n <= most + 1 / n for k, n in zip(counts, sizes, strict=True))


def test_equal_scores_per_entry_give_equal_shares():
    counts = counts_by_score([10.0, 20.0, 40.0], [100, 200, 400], 350, 0.0)
    assert counts == [50, 100, 200]
    assert counts_by_score([0.0, 0.0], [100, 300], 200, 0.1) in ([50, 150], [51, 149], [49, 151])


def test_the_norm_is_that_of_the_gradient_and_weights_are_not_touched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    before = copy.deepcopy(model.state_dict())
    batch = (torch.randn(8, 6, dtype=torch.float64), torch.arange(8) % 3)
    parts, _ = partition(model, Element(), ow.Select())
    draws = 1500
    ctx = Measuring(model, parts, Feed([batch], torch.device("cpu")), F.cross_entropy, seed=1)
    found = ZerothNorms(draws, 1e-3).measure(ctx)
    loss = F.cross_entropy(model(batch[0]), batch[1])
    for name in found:
        (grad,) = torch.autograd.grad(loss, model.get_parameter(name), retain_graph=True)
        assert found[name] / draws == pytest.approx(math.sqrt(2 / math.pi) * float(grad.norm()), rel=0.06)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_layers_that_matter_stay_denser():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 4))
    model[0].weight.data *= 0.001  # the second layer has a tiny gradient, the first a large one
    model[0].bias.data.zero_()
    batch = (torch.randn(32, 20), torch.arange(32) % 4)
    for structure in (ow.Element(), ow.Element(per="row")):
        result = ow.prune(copy.deepcopy(model), ecoflap(0.5, structure), data=[batch], loss=F.cross_entropy)
        shares = {t["name"]: t["density"] for t in result.tensors if t["units"]}
        assert 0.52 >= shares["0.weight"] > 0.51 > 0.42 > shares["1.weight"] >= 0.4
        assert result.counts.kept == 240


def test_refused():
    with pytest.raises(RecipeError, match="ZerothNorms: batches must be at least 1, got 0"):
        ZerothNorms(0)
    with pytest.raises(RecipeError, match="ZerothNorms: eps must be positive, got 0"):
        ZerothNorms(1, 0)
    with pytest.raises(RecipeError, match="ecoflap gives layers unequal shares, but NM"):
        ecoflap(structure=ow.NM(2, 4))
    part = partition(nn.Linear(4, 4), ow.NM(2, 4), ow.Select())[0]
    now = type("Now", (), {"parts": part, "__getitem__": lambda s, k: {"weight": 1.0}})()
    with pytest.raises(RecipeError, match="weight: ZerothOrder gives layers unequal shares, but the structure fixes"):
        ZerothOrder()(now, {"weight": torch.zeros(16)}, 0.5)
