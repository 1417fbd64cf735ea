"""A random mask with the counts of a real method."""

import pytest
import torch
from tests.contract.cases import batches, fingerprint, net, same
from torch.nn import functional as F

import openwork as ow
from openwork.allocation import Borrowed
from openwork.core.recipe import Recipe
from openwork.criteria import Random, StepGradient
from openwork.errors import MissingStatistic, RecipeError
from openwork.methods import grasp, magnitude, random, snip
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.structure import Block, Element


@pytest.mark.parametrize("structure", [Element(), Block(8, 8)])
def test_the_counts_are_those_of_global_magnitude(structure):
    where = ow.Select(min_units=4)
    models = [ow.build_model("mlp") for _ in range(2)]
    with torch.no_grad():
        models[0][1].weight.mul_(3)
    models[1].load_state_dict(models[0].state_dict())
    recipe = Recipe("random", structure, TopK(Random(), Borrowed()), OneShot(0.1), None, where)
    theirs = ow.prune(models[0], magnitude(0.1, structure, where, scope="global"))
    ours = ow.prune(models[1], Recipe.from_dict(recipe.to_dict()), seed=3)
    assert [t["kept"] for t in ours.tensors] == [t["kept"] for t in theirs.tensors]
    assert any(not torch.equal(ours.masks[n], m) for n, m in theirs.masks.items())


@pytest.mark.parametrize(("scope", "method"), [("snip", snip), ("grasp", grasp)])
def test_shares_of_snip_and_grasp_without_their_places(scope, method):
    given = {"data": batches(), "loss": F.cross_entropy}
    models = [net() for _ in range(3)]
    theirs = ow.prune(models[0], method(0.2, batches=2), **given)
    recipe = random(0.2, scope=scope, batches=2)
    ours = ow.prune(models[1], Recipe.from_dict(recipe.to_dict()), **given)
    other = ow.prune(models[2], recipe, seed=1, **given)
    counts = [{t["name"]: t["kept"] for t in r.tensors} for r in (theirs, ours, other)]
    assert counts[0] == counts[1] == counts[2]
    assert len({c / m.numel() for c, m in zip(counts[0].values(), theirs.masks.values(), strict=False)}) > 1
    small = {n for n, m in theirs.masks.items() if m.all()}  # a tensor that stays whole has only one mask
    for one, two in ((theirs, ours), (ours, other)):
        assert all(torch.equal(one.masks[n], m) == (n in small) for n, m in two.masks.items())


def test_borrowed_shares_leave_no_tensor_empty():
    model = ow.build_model("mlp")
    with torch.no_grad():
        model[3].weight.mul_(1e-6)
    kept = [t["kept"] for t in ow.prune(model, random(0.02, scope="magnitude")).tensors if t["units"]]
    assert kept[1] == 1
    assert sum(kept) == 518


def test_shares_that_need_data_say_so_before_anything_is_done():
    model = net()
    before = fingerprint(model)
    with pytest.raises(MissingStatistic, match="data"):
        ow.prune(model, random(0.2, scope="snip"))
    with pytest.raises(RecipeError, match="batches must be at least 1, got 0"):
        random(0.2, scope="snip", batches=0)
    with pytest.raises(RecipeError, match="has quotas of its own|scope must be 'layer', 'global' or 'erk', got 'snip'"):
        random(structure=ow.NM(2, 4), scope="snip")
    assert same(fingerprint(model), before)


def test_a_criterion_of_training_steps_is_refused():
    with pytest.raises(RecipeError, match="Borrowed: StepGradient reads the gradients of a training step, which a"):
        Borrowed(StepGradient())
