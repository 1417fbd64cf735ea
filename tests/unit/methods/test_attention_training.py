"""SequentialAttention++ under autocast, accumulation, compilation, and with the paper's ablations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.methods import sequential_attention_pp

STEPS = 60


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def batch(step):
    rng = torch.Generator().manual_seed(step)
    return torch.randn(16, 24, generator=rng), torch.arange(16) % 4


def begin(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-2)
    recipe = sequential_attention_pp(0.25, ow.Block(4, 4), steps=STEPS, min_blocks=8, **options)
    return optimizer, ow.attach(model, recipe, optimizer)


def logits(model):
    return [p for n, p in model.named_parameters() if n.endswith("logits")]


def test_autocast_keeps_the_attention_in_float32():
    model = net()
    optimizer, run = begin(model)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
            loss = F.cross_entropy(out.float(), y)
            assert model[0].parametrizations.weight[0].attention().dtype == torch.float32
        loss.backward()
        optimizer.step()
        assert out.dtype == torch.bfloat16
    assert {p.dtype for p in logits(model)} == {torch.float32}
    result = run.finish()
    assert all(int(u.sum()) == int(0.25 * u.numel()) for u in result.units.values())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_compiled_step_follows_the_masks():
    results = []
    for compiled in (False, True):
        model = net()
        optimizer, run = begin(model)
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(forward(x), y).backward()
            optimizer.step()
        results.append((run.finish(), model(batch(0)[0])))
    assert results[0][0].masks.distance(results[1][0].masks) == 0
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [True, False])
def test_weight_decay_of_the_logits(decay):
    model = net()
    optimizer, run = begin(model, decay_logits=decay)
    with torch.no_grad():
        for p in logits(model):
            p.fill_(1.0)
    optimizer.zero_grad()
    (model(batch(0)[0]).sum() * 0).backward()
    optimizer.step()
    want = 1 - 0.05 * 5e-2 if decay else 1.0
    assert all(torch.allclose(p, torch.full_like(p, want), rtol=1e-6) for p in logits(model))
    run.detach()
    assert len(optimizer.param_groups) == 1
