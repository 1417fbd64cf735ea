"""Gradients added up over micro-batches: the same training, one step of a method for each step of the optimiser."""

from dataclasses import replace

import pytest
import torch
from tests.unit.processes import on_ranks
from torch import nn
from torch.nn import functional as F

from openwork.data import load_data
from openwork.errors import RecipeError
from openwork.lab import Budget, Job, Runner
from openwork.lab.accumulation import add_gradients, micro_batches, refuse_single_samples
from openwork.lab.ranks import together
from openwork.methods import probmask
from openwork.structure import Block

WHOLE = Budget(epochs=1, finetune_epochs=1, batch_size=60)
PARTS = replace(WHOLE, accumulate=4)
JOBS = {
    "spode": Job("mlp", "digits", "spode", 0.1, options={"steps": 5}),
    "rigl": Job("mlp", "digits", "rigl", 0.1, options={"every": 5}),
    "gradual_magnitude": Job("mlp", "digits", "gradual_magnitude", 0.1),
    "acdc": Job("mlp", "digits", "acdc", 0.1),
    "powerpropagation": Job("mlp", "digits", "powerpropagation", 0.1),
    "str": Job("mlp", "digits", "str", 0.1),
    "sequential_attention_pp": Job("mlp", "digits", "sequential_attention_pp", 0.25, Block(8, 8)),
    "imp": Job("mlp", "digits", "imp", 0.5),
}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def train(job, data):
    """A job in float64, and how many samples each forward pass of its training had."""
    runner, seen = Runner(job, data=data), []
    runner.model.double()

    def widen(model, inputs):
        if model.training:
            seen.append(len(inputs[0]))
        return (inputs[0].double(),)

    runner.model.register_forward_pre_hook(widen)
    model, result = runner.run()
    return model, result, seen


@pytest.mark.parametrize("name", JOBS)
def test_micro_batches_train_what_their_batch_trains(name, digits):
    model, result, _ = train(replace(JOBS[name], budget=WHOLE), digits)
    again, other, seen = train(replace(JOBS[name], budget=PARTS), digits)
    assert seen.count(15) > 4 * 20
    assert all(torch.equal(other.masks[n], m) for n, m in result.masks.items())
    for (n, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=n)
    assert len(other.log) == len(result.log)
    assert other.manifest["training_macs"] == result.manifest["training_macs"]
    assert [e["loss"] for e in other.curve] == pytest.approx([e["loss"] for e in result.curve], abs=1e-6)


def test_a_penalty_is_taken_once():
    weight = nn.Parameter(torch.tensor([2.0]))
    model = nn.ParameterList([weight])
    x = y = torch.arange(5.0)
    value = add_gradients(model, lambda a, b: (a * weight).mean(), lambda: weight.square().sum(), (x, y), 5, 2)
    assert value == pytest.approx(2 * 2.0 + 4.0)
    assert weight.grad.item() == pytest.approx(2.0 + 4.0)


def test_micro_batches_are_the_batch_and_never_single_samples():
    for total in range(1, 40):
        x = torch.arange(total)
        for size in range(1, 12):
            parts = micro_batches(x, -x, size)
            sizes = [len(a) for a, _ in parts]
            assert torch.equal(torch.cat([a for a, _ in parts]), x)
            assert all(torch.equal(a, -b) for a, b in parts)
            assert max(sizes) <= size + (size > 1)
            assert min(sizes) >= min(2, size, total)


def test_what_cannot_be_accumulated_is_refused(digits):
    draws = "probmask: accumulate must be 1, since every forward pass draws a mask of its own .* got 4; take smaller"
    for job in (Job("mlp", "digits", "probmask"), Job("mlp", "digits", recipe=probmask(steps=50))):
        with pytest.raises(RecipeError, match=draws):
            Runner(replace(job, budget=PARTS), data=digits)
    few = "micro-batches must have at least 2 samples for the batch norm bn1, got 1 .batch_size 60, 60 parts, 1 proc"
    single = replace(WHOLE, accumulate=60)
    with pytest.raises(RecipeError, match=few):
        Runner(Job("resnet8", "digits", density=0.5, budget=single), data=digits)
    Runner(Job("mlp", "digits", density=0.5, budget=single), data=digits)
    refuse_single_samples(nn.BatchNorm1d(3), batch_size=1, accumulate=1)


def step(rank, world, gates):
    """Gradients of one step on the parts of a batch of 10, and how often the ranks averaged them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    x, y = torch.randn(10, 4), torch.randint(2, (10,))
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for part in range(world):
        for a, b in micro_batches(x[part::world], y[part::world], 2):
            loss = F.cross_entropy(model(a), b) * len(b) / 10
            expected = [e + g for e, g in zip(expected, torch.autograd.grad(loss, model.parameters()), strict=True)]
    trained, rounds = together(model, gates), [0]

    def count(state, bucket):
        rounds[0] += 1
        done = torch.distributed.all_reduce(bucket.buffer().div_(world), async_op=True).get_future()
        return done.then(lambda found: found.value()[0])

    trained.register_comm_hook(None, count)
    add_gradients(
        trained, lambda a, b: F.cross_entropy(trained(a), b), lambda: 0.0, (x[rank::world], y[rank::world]), 10, 2
    )
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, e)
    return rounds[0]


@pytest.mark.parametrize("gates", [False, True])
def test_ranks_average_once_a_step(gates, tmp_path):
    assert on_ranks(2, tmp_path, step, gates) == [1, 1]
