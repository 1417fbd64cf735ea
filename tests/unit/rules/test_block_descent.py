"""iCBS: the quadratic is the change of the loss, density stays, fixed weights stay, and the loss falls."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import DataError, DivergedError, RecipeError
from openwork.methods import icbs, magnitude
from openwork.rules.block_descent import BlockDescent, quadratic
from openwork.rules.cardinality import energy
from openwork.stats import LayerGradients

F64 = torch.float64


def test_the_quadratic_is_the_change_of_a_quadratic_loss():
    rng = torch.Generator().manual_seed(0)
    w0, grad = torch.randn(7, generator=rng, dtype=F64), torch.randn(7, generator=rng, dtype=F64)
    a = torch.randn(7, 7, generator=rng, dtype=F64)
    hessian = a @ a.T
    w = w0 * (torch.rand(7, generator=rng) < 0.5)
    for slope, ridge in ((1.0, 0.0), (0.75, 0.1)):
        q, const = quadratic(w0, w, grad, hessian, slope, ridge)
        for x in torch.cartesian_prod(*[torch.tensor([False, True])] * 7):
            d = w0 * ~x - w
            change = slope * grad @ d + 0.5 * d @ hessian @ d + ridge * d @ d
            torch.testing.assert_close(torch.tensor(energy(q, x) + const, dtype=F64), change, rtol=1e-9, atol=1e-9)


def test_for_a_linear_model_with_squared_loss_it_is_the_loss_itself():
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 6, generator=rng, dtype=F64), torch.randn(50, generator=rng, dtype=F64)
    w0 = torch.randn(6, generator=rng, dtype=F64)
    w = w0 * torch.tensor([1, 0, 1, 0, 0, 1])

    def loss(v):
        return 0.5 * (x @ v - y).square().mean()

    q, const = quadratic(w0, w, x.T @ (x @ w - y) / 50, x.T @ x / 50)
    for pruned in torch.cartesian_prod(*[torch.tensor([False, True])] * 6):
        real = float(loss(w0 * ~pruned) - loss(w))
        assert energy(q, pruned) + const == pytest.approx(real, abs=1e-9)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 3))


def data(n=96):
    x = torch.randn(n, 10, generator=torch.Generator().manual_seed(2))
    return x, (x[:, :3] * x[:, 3:6]).argmax(1)


def trained():
    model, (x, y) = net(), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


OPTIONS = {"block": 32, "samples": 48, "groups": 2}


@pytest.mark.parametrize(
    ("start", "solver"), [("magnitude", "annealing"), ("wanda", "swap"), ("gradient", "swap"), ("random", "swap")]
)
def test_the_loss_falls_at_the_same_density_and_kept_weights_are_the_old_ones(start, solver):
    model, (x, y) = trained(), data()
    first, old = copy.deepcopy(model), copy.deepcopy(model)
    options = {**OPTIONS, "start": start, "solver": solver, "restarts": 2}
    begun = ow.prune(first, icbs(0.3, steps=0, **options), data=[(x, y)], loss=F.cross_entropy)
    result = ow.prune(model, icbs(0.3, steps=12, **options), data=[(x, y)], loss=F.cross_entropy)
    with torch.no_grad():
        assert float(F.cross_entropy(model(x), y)) < 0.8 * float(F.cross_entropy(first(x), y))
    for name, mask in result.masks.items():
        assert int(mask.sum()) == int(begun.masks[name].sum())
        assert torch.equal(model.get_parameter(name), old.get_parameter(name) * mask)
    told = result.log[0]["descent"]
    assert told["steps"] == 12
    assert told["moved"] > 0
    assert told["predicted"] < 0


def test_the_start_is_the_host_and_fixed_weights_stay():
    model, (x, y) = trained(), data()
    weight = model[0].weight.detach().abs().flatten()
    one = ow.prune(copy.deepcopy(model), magnitude(0.3), dry_run=True).masks["0.weight"].flatten()
    nothing = ow.prune(copy.deepcopy(model), icbs(0.3, steps=0, **OPTIONS), data=[(x, y)], loss=F.cross_entropy)
    assert torch.equal(nothing.masks["0.weight"].flatten(), one)
    some = ow.prune(model, icbs(0.3, steps=20, solver="swap", **OPTIONS), data=[(x, y)], loss=F.cross_entropy)
    mask = some.masks["0.weight"].flatten()
    pruned, kept = (~one).nonzero().flatten(), one.nonzero().flatten()
    low = pruned[weight[pruned].argsort()[: int(0.42 * len(pruned))]]
    high = kept[weight[kept].argsort(descending=True)[: int(0.35 * len(kept))]]
    assert not bool(mask[low].any())
    assert bool(mask[high].all())
    assert not torch.equal(mask, one)


def test_per_row_ranks_rows_apart_and_counts_exactly():
    model, (x, y) = trained(), data()
    recipe = icbs(0.33, start="wanda", per_row=True, steps=0, **OPTIONS)
    result = ow.prune(model, recipe, data=[(x, y)], loss=F.cross_entropy)
    rows = result.masks["0.weight"].sum(1)
    assert int(rows.max() - rows.min()) <= 1
    assert int(rows.sum()) == 80  # of 240, a third rounded up


@pytest.mark.parametrize("pick", ["magnitude", "random"])
def test_other_ways_to_pick_a_block(pick):
    model, (x, y) = trained(), data()
    recipe = icbs(0.3, steps=8, pick=pick, solver="swap", **OPTIONS)
    found = ow.prune(model, recipe, data=[(x, y)], loss=F.cross_entropy)
    assert found.log[0]["descent"]["steps"] == 8


def test_batches_may_be_mappings():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, inputs, labels):
            return self.inner(inputs)

    x, y = data()
    recipe = icbs(0.3, steps=2, solver="swap", **OPTIONS)

    def loss(out, batch):
        return F.cross_entropy(out, batch["labels"])

    named, plain = Named(), net()
    one = ow.prune(named, recipe, data=[{"inputs": x, "labels": y}], loss=loss)
    other = ow.prune(plain, recipe, data=[(x, y)], loss=F.cross_entropy)
    assert torch.equal(one.masks["inner.0.weight"], other.masks["0.weight"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: icbs(start="snip"), RecipeError, "icbs: start must be one of magnitude, wanda, gradient, random"),
        (lambda: icbs(solver="qubo"), RecipeError, "icbs: solver must be one of annealing, swap, exhaustive"),
        (lambda: icbs(block=1), RecipeError, "epochs at least 1 and block at least 2, got 100, 1 and 1"),
        (lambda: icbs(tabu=1.0), RecipeError, r"shares must lie in \[0, 1\) and exchange above 0, got {'tabu': 1.0}"),
        (lambda: BlockDescent(exchange=0.0), RecipeError, "and exchange above 0"),
        (lambda: icbs(ridge=-1.0), RecipeError, "slope and ridge must not be negative"),
        (lambda: icbs(pick="wanda"), RecipeError, "BlockDescent: pick must be 'gradient', 'magnitude' or 'random'"),
        (lambda: LayerGradients(samples=0), RecipeError, "LayerGradients: samples and groups must be at least 1"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_structures_and_data():
    x, y = data()
    for structure in (ow.Element(per="row"), ow.Block(2, 2)):
        with pytest.raises(RecipeError, match="BlockDescent exchanges single weights over a tensor; use Element"):
            ow.prune(net(), icbs(0.5, structure, **OPTIONS), data=[(x, y)], loss=F.cross_entropy)
    with pytest.raises(DataError, match="LayerGradients cuts batches into rows, so they must be tuples or mappings"):
        ow.prune(net(), icbs(0.5, **OPTIONS), data=["text"], loss=F.cross_entropy)

    def root(out, target):  # its slope at zero is infinite
        return out.sub(out.detach()).abs().sqrt().sum()

    with pytest.raises(DivergedError, match="a gradient at step 0 is NaN or infinite; check the data"):
        ow.prune(net(), icbs(0.5, **OPTIONS), data=[(x, y)], loss=root)
