"""Gates on their way out: what is not finite is never folded."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.core.recipe import Recipe
from openwork.criteria import Magnitude
from openwork.errors import DivergedError
from openwork.methods import powerpropagation, probmask, sequential_attention_pp, str_
from openwork.relax import Masking
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.structure import Element


def attached(recipe, steps):
    """A model after so many steps, its run and optimiser."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = ow.attach(model, recipe, optimizer)
    walk(model, optimizer, steps)
    return model, run, optimizer


def walk(model, optimizer, steps):
    x, y = torch.randn(8, 12, generator=torch.Generator().manual_seed(1)), torch.ones(8, 8)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def test_a_logit_lost_in_the_last_phase_is_noticed():
    recipe = sequential_attention_pp(0.3, ow.Block(4, 4), steps=60, min_blocks=2)
    model, run, optimizer = attached(recipe, 56)
    assert run.phase == "sparse"
    logits = model[0].parametrizations.weight[0].logits
    with torch.no_grad():
        logits[0] = float("nan")
    walk(model, optimizer, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DivergedError, match="0.weight: attention logits became NaN or infinite in the sparse phase"):
        run.finish()
    assert all(torch.equal(v, before[k]) or bool(v.isnan().any()) for k, v in model.state_dict().items())
    assert set(before) == set(model.state_dict())  # the gates still stand
    run.detach()
    assert not hasattr(model[2], "parametrizations")


@pytest.mark.parametrize(
    ("recipe", "gate"),
    [
        (powerpropagation(0.5, steps=8, prune_at=0.5), "PowerGate"),
        (str_(0.5, steps=8), "ThresholdGate"),
        (probmask(0.5, steps=8), "ProbabilityGate"),
        (Recipe("masked", Element(), TopK(Magnitude()), OneShot(0.5, 4), Masking()), "MaskGate"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_folded(recipe, gate, lost):
    model, run, _ = attached(recipe, 8)
    raw = model[0].parametrizations.weight.original
    kept = run.masks["0.weight"].nonzero()[0].tolist()
    sound = raw.detach().clone()
    with torch.no_grad():
        raw[kept[0], kept[1]] = lost
    message = f"0.weight: weights under {gate} became NaN or infinite in the {run.phase} phase; lower the learning rate"
    with pytest.raises(DivergedError, match=message):
        run.finish()
    with torch.no_grad():
        raw.copy_(sound)
    run.finish()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_what_is_pruned_may_be_lost():
    model, run, _ = attached(powerpropagation(0.5, steps=8), 8)
    gone = (~run.masks["0.weight"]).nonzero()[0].tolist()
    with torch.no_grad():
        model[0].parametrizations.weight.original[gone[0], gone[1]] = float("nan")
    run.finish()
    assert bool((model[0].weight[gone[0], gone[1]] == 0).all())
