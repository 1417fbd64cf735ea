"""Laws about measuring: loaders, seeds, modes, dtypes, dry runs."""

import pytest
import torch
from tests.contract.cases import CASES, batches, fingerprint, net, perform, same
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import openwork as ow
from openwork import methods
from openwork.errors import DataError

every = pytest.mark.parametrize("case", CASES, ids=str)
one_shot = pytest.mark.parametrize("case", [c for c in CASES if c.drive == "prune"], ids=str)


def shuffled():
    """A loader without a generator of its own: its order comes from whoever seeds torch."""
    x, y = (torch.cat(t) for t in zip(*batches(), strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)


@one_shot
def test_a_shuffling_loader_follows_the_seed_and_moves_no_global_state(case):
    results = []
    for seed in (1, 2):
        model = net()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(ow.prune(model, case.recipe(0.3), data=shuffled(), loss=F.cross_entropy, seed=3))
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0].masks.distance(results[1].masks) == 0


@one_shot
def test_a_dry_run_decides_the_same_and_writes_nothing(case):
    model = net()
    before = fingerprint(model)
    given = {"data": batches(), "loss": F.cross_entropy}
    dry = ow.prune(model, case.recipe(0.3), dry_run=True, **given)
    assert same(fingerprint(model), before)
    assert dry.masks.distance(ow.prune(model, case.recipe(0.3), **given).masks) == 0


@one_shot
def test_gradients_are_measured_even_where_they_are_switched_off(case):
    given = {"data": batches(), "loss": F.cross_entropy}
    want = ow.prune(net(), case.recipe(0.3), **given)
    model = net()
    with torch.no_grad():
        got = ow.prune(model, case.recipe(0.3), **given)
    assert want.masks.distance(got.masks) == 0
    assert all(p.grad is None for p in model.parameters())


@one_shot
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_scoring_moves_no_running_statistic(case, training):
    model = net().train(training)
    before = fingerprint(model)
    ow.prune(model, case.recipe(0.3), data=batches(), loss=F.cross_entropy)
    after = fingerprint(model)
    assert after["modes"] == before["modes"]
    for name, _ in model.named_buffers():
        assert torch.equal(after["tensors"][name], before["tensors"][name]), name


@every
def test_half_precision_keeps_its_type_and_its_counts(case):
    half, full = net(dtype=torch.bfloat16), net()
    got = perform(case, case.recipe(0.3, dtype=torch.bfloat16), half)
    want = perform(case, case.recipe(0.3), full)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert got.counts == want.counts


def test_an_iterable_that_can_be_read_once_only_is_refused():
    class Once:
        def __init__(self):
            self.batches = iter(batches(2))

        def __iter__(self):
            return self.batches

    with pytest.raises(DataError, match="the data gave 2 batches and none when it was read again"):
        ow.prune(net(), methods.snip(0.3, batches=3), data=Once(), loss=F.cross_entropy)


def test_a_short_loader_is_read_again():
    few, many = batches(2), batches(2) * 3
    got = [ow.prune(net(), methods.spode(0.3, steps=6), data=d, loss=F.cross_entropy) for d in (few, many, iter(many))]
    assert got[0].masks.distance(got[1].masks) == 0
    assert got[0].masks.distance(got[2].masks) == 0
