"""What stands around a training step: scaled losses, averaged weights, accumulation, compiled models."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import openwork as ow
from openwork.errors import OpenworkError
from openwork.methods import acdc, gradual_magnitude, powerpropagation, rigl, set_

STEPS = 24
RECIPES = {
    "gradual": gradual_magnitude(0.3, end=16, every=2),
    "rigl": rigl(0.3, steps=STEPS, every=3),
    "set": set_(0.3, steps=STEPS, every=3),
    "acdc": acdc(0.3, steps=STEPS),
    "power": powerpropagation(0.3, steps=STEPS, prune_at=0.5),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8))


def batch(step, rows=16):
    rng = torch.Generator().manual_seed(step)
    return torch.randn(rows, 16, generator=rng), torch.randint(0, 8, (rows,), generator=rng)


def plain(recipe):
    """The ordinary loop, for comparison."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model, recipe, optimizer)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, run.finish()


@pytest.mark.parametrize("name", RECIPES)
def test_averaged_weights_hold_the_masks(name):
    model = net()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model, RECIPES[name], optimizer)
    soft = name == "power"  # its weights lie under a parametrisation until finish
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if not soft:
            average.update_parameters(model)
    result = run.finish()
    if soft:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for _ in range(3):
            with ow.hold(model, result.masks, optimizer):
                optimizer.step()
            average.update_parameters(model)
    with ow.hold(average.module, result.masks):
        pass
    for tensor, mask in result.masks.items():
        weight = average.module.get_parameter(tensor)
        assert not weight[~mask].any()
        assert weight[mask].any()
    update_bn([batch(0)[0]], average)
    assert average(batch(0)[0]).isfinite().all()


def test_the_average_is_saved_like_any_model(tmp_path):
    model, result = plain(RECIPES["rigl"])
    average = AveragedModel(model)
    with ow.hold(average.module, result.masks):
        pass
    ow.save(average.module, result, tmp_path / "r")
    assert ow.load(tmp_path / "r", net())[1].density == result.density
    with pytest.raises(OpenworkError, match="0.weight: the masks name it but AveragedModel has no such parameter"):
        ow.hold(average, result.masks).__enter__()


@pytest.mark.parametrize("name", RECIPES)
def test_mixed_precision_with_a_gradient_scaler(name):
    """An overflow makes the scaler skip a step; the clock stands still and the masks hold."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model, RECIPES[name], optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    skipped = 0
    for step in range(STEPS + 2):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        overflow = step in (3, 9)
        before = run.step
        scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        skipped += run.step == before
    assert skipped == 2
    result = run.finish()
    for tensor, mask in result.masks.items():
        weight = model.get_parameter(tensor)
        assert weight.isfinite().all()
        assert not weight[~mask].any()


def test_accumulated_micro_batches_are_one_step():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model.eval(), RECIPES["rigl"], optimizer)
    whole = net().eval()
    other = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    again = ow.attach(whole, RECIPES["rigl"], other)
    model.double(), whole.double()
    for step in range(STEPS):
        x, y = batch(step)
        x = x.double()
        for part in (slice(0, 8), slice(8, 16)):
            (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        other.zero_grad()
        F.cross_entropy(whole(x), y).backward()
        other.step()
    assert run.step == again.step == STEPS
    assert all(torch.equal(mask, again.masks[n]) for n, mask in run.masks.items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_compiled_model_ends_with_the_masks_of_the_plain_one(name):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = ow.attach(model, RECIPES[name], optimizer)  # before compiling: gates are part of what is compiled
    forward = torch.compile(model, backend="eager")
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()
    result = run.finish()
    want = plain(RECIPES[name])[1]
    assert all(torch.equal(mask, want.masks[n]) for n, mask in result.masks.items())
