"""Optimal brain surgery: the inverse, single removals, limits, and the network it is for."""

import pytest
import torch
from tests.unit.methods.scoring import situation
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.machine import free_memory
from openwork.errors import DataError, DivergedError, RecipeError
from openwork.methods import woodfisher
from openwork.rules.obs import BrainSurgeon, InverseFisher
from openwork.stats import FisherDiagonal, SampleGradients, samples

G = torch.randn(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DAMP = 1e-2
FISHER = DAMP * torch.eye(12, dtype=torch.float64) + G.T @ G / 7


@pytest.mark.parametrize("columns", [12, 5])  # more entries than gradients, and fewer
def test_the_inverse_is_the_inverse_and_the_recursion(columns):
    fisher, rows = FISHER[:columns, :columns], G[:, :columns]
    inverse, direct = InverseFisher(rows, DAMP), torch.linalg.inv(fisher)
    recursion = eye = torch.eye(columns, dtype=torch.float64)
    recursion = recursion / DAMP
    for g in rows:
        h = recursion @ g
        recursion = recursion - torch.outer(h, h) / (7 + g @ h)
    some = torch.arange(columns) % 2 == 0
    for got, want in (
        (inverse.times(eye), direct),
        (recursion, direct),
        (inverse.times(eye), recursion),
        (inverse.diagonal, direct.diagonal()),
        (inverse.within(some), direct[some][:, some]),
    ):
        assert float((got - want).norm()) <= 1e-13 * float(want.norm())


class Linear(nn.Module):
    """A model with twelve weights, to be scored with hand-made gradients."""

    def __init__(self, weight):
        super().__init__()
        self.fc = nn.Linear(12, 1, bias=False)
        self.fc.weight = nn.Parameter(weight.reshape(1, 12).clone())

    def forward(self, x):
        return self.fc(x)


def surgery(weight, density, **options):
    """The rows of ``G`` as inputs of a linear loss are its gradients."""
    model = Linear(weight)
    recipe = woodfisher(density=density, samples=7, damp=DAMP, **options)
    result = ow.prune(model, recipe, data=[(G, torch.zeros(7))], loss=lambda out, y: out.mean())
    return model.fc.weight.detach()[0], result.masks["fc.weight"][0]


WEIGHT = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_one_removal_is_the_constrained_minimum():
    new, mask = surgery(WEIGHT, 11 / 12)
    gone = int((~mask).nonzero())
    inverse = torch.linalg.inv(FISHER)
    costs = WEIGHT**2 / (2 * inverse.diagonal())
    assert gone == int(costs.argmin())
    delta = new - WEIGHT
    assert float(delta @ FISHER @ delta / 2) == pytest.approx(float(costs[gone]), rel=1e-5)
    others = [i for i in range(12) if i != gone]
    want = torch.linalg.solve(FISHER[others][:, others], FISHER[others, gone] * WEIGHT[gone])
    torch.testing.assert_close(delta[others], want, rtol=1e-4, atol=1e-6)


def test_joint_removal_is_the_constrained_minimum_and_the_sum_is_not():
    for joint in (True, False):
        new, mask = surgery(WEIGHT, 0.5, joint=joint)
        delta, keep = new - WEIGHT, mask.nonzero().flatten()
        gone = (~mask).nonzero().flatten()
        want = torch.linalg.solve(FISHER[keep][:, keep], FISHER[keep][:, gone] @ WEIGHT[gone])
        assert torch.allclose(delta[keep], want, rtol=1e-4, atol=1e-6) is joint


def test_limits():
    """A Fisher close to a multiple of the identity is magnitude; blocks of one entry are the diagonal."""
    model = Linear(WEIGHT)
    recipe = woodfisher(density=0.5, samples=7, damp=1e9)
    mask = ow.prune(model, recipe, data=[(G, torch.zeros(7))], loss=lambda o, y: o.mean()).masks["fc.weight"][0]
    assert torch.equal(mask, WEIGHT.abs() >= WEIGHT.abs().sort().values[6])
    _, mask = surgery(WEIGHT, 0.5, block=1)
    cost = WEIGHT**2 * (DAMP + G.square().mean(0))
    assert torch.equal(mask, cost >= cost.sort().values[6])
    new, mask = surgery(WEIGHT, 0.5, update=False)
    assert torch.equal(new, WEIGHT * mask)


def test_rounds_measure_anew_on_the_corrected_weights():
    once, _ = surgery(WEIGHT, 0.5)
    twice, mask = surgery(WEIGHT, 0.5, rounds=3)
    assert int(mask.sum()) == 6
    assert not torch.equal(once, twice)


def test_the_update_helps_a_trained_network():
    data = ow.load_data("digits")
    torch.manual_seed(0)
    model = ow.build_model("mlp", data.input_shape, data.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(300):
        x, y = data.x_train[step % 11 :: 11], data.y_train[step % 11 :: 11]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    losses = {}
    for update in (True, False):
        pruned = ow.build_model("mlp", data.input_shape, data.classes)
        pruned.load_state_dict(model.state_dict())
        batches = [(data.x_train, data.y_train)]
        recipe = woodfisher(density=0.15, samples=200, block=500, damp=1e-4, update=update)
        ow.prune(pruned, recipe, data=batches, loss=F.cross_entropy)
        with torch.no_grad():
            losses[update] = float(F.cross_entropy(pruned(data.x_train), data.y_train))
    assert losses[True] < losses[False]


def test_refusals():
    with pytest.raises(RecipeError, match="BrainSurgeon: damp must be positive, got 0"):
        woodfisher(damp=0)
    with pytest.raises(RecipeError, match="BrainSurgeon: block must be at least 1 entry, got 0"):
        woodfisher(block=0)
    with pytest.raises(RecipeError, match="FisherDiagonal: samples and batch must be at least 1, got 4 and 0"):
        FisherDiagonal(4, 0)
    with pytest.raises(RecipeError, match="SampleGradients: samples and batch must be at least 1, got 0 and 1"):
        woodfisher(samples=0)
    model, loss = Linear(WEIGHT), lambda out, y: out.mean()
    with pytest.raises(RecipeError, match="fc.weight: BrainSurgeon removes single weights; use Element or an N:M"):
        ow.prune(model, woodfisher(0.5, ow.Block(1, 2), samples=2), data=[(G, torch.zeros(7))], loss=loss)
    with pytest.raises(DataError, match="batches must hold at least 9 inputs, got 7"):
        ow.prune(model, woodfisher(0.5, samples=2, batch=9), data=[(G, torch.zeros(7))], loss=loss)
    with pytest.raises(DataError, match="cuts batches into rows, so they must be tuples or mappings of tensors"):
        ow.prune(model, woodfisher(0.5, samples=2), data=[(G, ["a"])], loss=loss)

    def explodes(out, y):
        return (out.double() * 1e200).square().mean().sqrt() * 1e200

    with pytest.raises(DivergedError, match=r"fc.weight: the gradient of sample 0 is NaN or infinite|the loss is"):
        ow.prune(model, woodfisher(0.5, samples=2), data=[(G, torch.zeros(7))], loss=explodes)
    assert torch.equal(model.fc.weight[0].detach(), WEIGHT)


def test_samples_are_rows_of_the_batch():
    stat = SampleGradients(5, 2)
    recipe = ow.Recipe("obs", ow.Element(), BrainSurgeon(stat), woodfisher(0.5).schedule)
    assert ow.Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("options", "free", "said"),
    [
        (
            {},
            3 * 2**30,
            r"block of 2,000 take 4.0 GiB, of which 3.0 are free; take fewer samples, smaller blocks, or f",
        ),
        ({"samples": 10, "block": 2**20}, 2**28, "block of 1,048,576 take 0.4 GiB, of which 0.2 are free"),
        ({"samples": 10, "joint": True, "block": 2**14}, 2**30, "block of 16,384 take 6.0 GiB"),
    ],
    ids=str,
)
def test_what_does_not_fit_into_memory_is_refused_before_any_gradient(monkeypatch, options, free, said):
    monkeypatch.setattr(samples, "free_memory", lambda: free)
    model, options = nn.Linear(1024, 1024), {"samples": 1000} | options
    said = rf"BrainSurgeon: {options['samples']} gradients of 1,048,576 weights and the inverse of a {said}"
    with pytest.raises(RecipeError, match=said):
        ow.prune(model, woodfisher(**options), data=iter(()), loss=F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match=said):
        ow.attach(model, woodfisher(end=10, **options), optimizer, data=iter(()), loss=F.cross_entropy)


def test_rows_alone_that_do_not_fit_are_refused(monkeypatch):
    """As a rule meets them that asks for rows only."""
    monkeypatch.setattr(samples, "free_memory", lambda: 3 * 2**30)
    with pytest.raises(
        RecipeError,
        match=r"SampleGradients: 1000 gradients of 1,048,576 weights take 3.9 GiB, of which 3.0 are free; take fewer",
    ):
        situation(nn.Linear(1024, 1024), woodfisher(samples=1000), iter(()), F.cross_entropy)


def test_free_memory_is_some_of_the_machine():
    assert 2**20 < free_memory() < 2**50
