"""A random mask with the counts of a real method."""

import pytest
import torch

import openwork as ow
from openwork.allocation import Borrowed
from openwork.core.recipe import Recipe
from openwork.criteria import Random, Saliency
from openwork.errors import RecipeError
from openwork.methods import magnitude
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import LossGradient
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


def test_a_criterion_with_statistics_is_refused():
    with pytest.raises(RecipeError, match="the criterion must need no statistics, got Saliency"):
        Borrowed(Saliency(LossGradient()))
