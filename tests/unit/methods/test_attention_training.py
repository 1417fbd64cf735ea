"""SequentialAttention++ under autocast, accumulation, compilation, and with the paper's ablations."""

import shutil

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


COMPILERS = [
    "aot_eager",
    pytest.param("inductor", marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"),
    ]),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch, on its import
@pytest.mark.parametrize("backend", COMPILERS)
def test_a_compiled_step_follows_the_masks(backend):
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        model = net()
        optimizer, run = begin(model)
        forward = torch.compile(model, backend=backend) if compiled else model
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


def test_the_learning_rate_of_the_logits_is_a_multiple_of_that_of_their_weights():
    model = net()
    optimizer, run = begin(model, learning_rate=3.0)
    own = [g for g in optimizer.param_groups if any(p is logits(model)[0] for p in g["params"])]
    assert [g["lr"] for g in own] == [pytest.approx(0.15)] * len(own)
    assert {id(p) for g in optimizer.param_groups[1:] for p in g["params"]} == {id(p) for p in logits(model)}
    assert optimizer.param_groups[0]["lr"] == 0.05
    run.detach()
    assert len(optimizer.param_groups) == 1


def returns(**options):
    """For every start of a dense phase: are the weights that come back all zero, do they keep their old values, are
    the logits zero?"""
    model = net()
    optimizer, run = begin(model, **options)
    raw, gate = model[0].parametrizations.weight.original, model[0].parametrizations.weight[0]
    seen, was = [], run.phase
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        off = ~run.masks["0.weight"]
        optimizer.step()
        if run.phase == "dense" != was:
            seen.append((bool((raw[off] == 0).all()), bool((raw[off] != 0).all()), not bool(gate.logits.any())))
            assert bool(off.any())
            assert bool((raw[~off] != 0).all())
        was = run.phase
    assert len(seen) == 6
    assert run.finish().density == pytest.approx(0.25, abs=0.02)
    (found,) = set(seen)
    return found


def test_blocks_come_back_with_their_weights_or_without():
    assert returns() == (False, True, False)
    assert returns(on_reactivate="zero") == (True, False, False)


def test_logits_may_begin_every_dense_phase_at_zero():
    assert returns(reset_logits=True) == (False, True, True)


@pytest.mark.parametrize("reset", [False, True])
def test_loading_zeroes_nothing(reset):
    """Also where the saved state has blocks alive that are off now."""
    state = None
    for loads in (False, True):
        model = net()
        optimizer, run = begin(model, on_reactivate="zero", reset_logits=reset)
        for step in range(15 if loads else 11):  # in a sparse phase, and in the dense phase before it
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert (run.density < 1) == loads
        if not loads:
            state = model.state_dict(), run.state_dict()
    model.load_state_dict(state[0])
    run.load_state_dict(state[1])
    assert all(torch.equal(v, state[0][n]) for n, v in model.state_dict().items())


def test_units_of_several_tensors_come_back_without_what_reads_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    structure = ow.channels(example=torch.zeros(1, 24))
    recipe = sequential_attention_pp(0.5, structure, steps=STEPS, on_reactivate="zero")
    run = ow.attach(model, recipe, optimizer)
    was, off, checked = run.phase, None, 0
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        off = {n: ~u for n, u in run.state_dict()["units"].items()}
        optimizer.step()
        if run.phase == "dense" != was:
            for gone, (writer, reader) in zip(off.values(), ((0, 2), (2, 4)), strict=True):
                assert bool((model[reader].parametrizations.weight.original[:, gone] == 0).all())
                weight = model[writer]
                rows = weight.parametrizations.weight.original if hasattr(weight, "parametrizations") else weight.weight
                assert bool((rows[gone] != 0).any())
                checked += int(gone.sum())
        was = run.phase
    assert checked > 0
    run.finish()
