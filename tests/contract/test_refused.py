"""Laws about refusals: a clear error, and a model that nobody touched."""

from __future__ import annotations

import math

import pytest
import torch
from tests.contract.cases import CASES, batches, fingerprint, net, perform, same, sgd
from torch.nn import functional as F

import openwork as ow
from openwork.errors import DataError, DivergedError, MissingStatistic, RecipeError, StructureError

every = pytest.mark.parametrize("case", CASES, ids=str)
one_shot = pytest.mark.parametrize("case", [c for c in CASES if c.drive == "prune"], ids=str)


REFUSED = [
    (dict(density=0.0), RecipeError, r"density must be a kept share in \(0, 1\], got 0.0"),
    (dict(density=-0.1), RecipeError, r"density must be a kept share in \(0, 1\], got -0.1"),
    (dict(density=1.5), RecipeError, r"density must be a kept share in \(0, 1\], got 1.5"),
    (dict(density=50), RecipeError, r"got 50; 50 % is 0.5"),
    (dict(density=float("nan")), RecipeError, r"density must be a kept share in \(0, 1\], got nan"),
    (dict(density=True), RecipeError, r"density must be a kept share in \(0, 1\], got True"),
    (dict(where=ow.Select(include=("decoder*",))), StructureError, r"include pattern 'decoder\*' matches no parameter"),
    (
        dict(where=ow.Select(exclude=("hiden",))),
        StructureError,
        r"exclude pattern 'hiden' matches no parameter; did you mean 'hidden",
    ),
    (dict(structure=ow.Block(500, 500)), StructureError, r"Block\(500, 500\) must fit into the 8 x 9 matrix"),
]


@every
@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=lambda v: str(v)[:30])
def test_what_cannot_be_done_is_refused_and_nothing_is_touched(case, change, error, message):
    if "structure" in change and case.name == "sequential_attention_pp":
        message = "fits none of the 4 selected tensors"  # its layers may be small: they are left out, with a reason
    if "structure" in change and case.name == "str":
        error, message = RecipeError, "thresholds single weights"
    model = net()
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        perform(case, case.recipe(**change), model)
    assert same(fingerprint(model), before)


@every
def test_n_of_m_must_divide(case):
    if not case.regions:
        pytest.skip("this method moves units over whole tensors")
    model = net()
    before = fingerprint(model)
    with pytest.raises(StructureError, match=r"conv.weight: 2 of 4 needs dimension 1 divisible by 4, but it is 1"):
        perform(case, case.recipe(0.5, ow.NM(2, 4)), model)
    with pytest.raises(RecipeError, match=r"keeps 0.5 by definition, but density 0.3 was asked"):
        case.recipe(0.3, ow.NM(2, 4))
    assert same(fingerprint(model), before)


@every
def test_meta_and_frozen_models_are_refused(case):
    with torch.device("meta"):
        model = type(net())()
    with pytest.raises(StructureError, match="parameters must hold values, got the meta device"):
        perform(case, case.recipe(0.3), model)
    model = net().requires_grad_(False)
    with pytest.raises(StructureError, match=r"nothing to prune .*frozen \(requires_grad is False\)"):
        ow.engine.prune(model, case.recipe(0.3))
    model = net()
    model.hidden.weight.requires_grad_(False)
    before = fingerprint(model)
    message = r"'hidden.weight' names no group" if case.coupled else r"hidden.weight: cannot be pruned: frozen"
    with pytest.raises(StructureError, match=message):
        perform(case, case.recipe(0.3, where=ow.Select(include=("hidden.weight",))), model)
    assert same(fingerprint(model), before)


@one_shot
def test_missing_data_is_refused(case):
    recipe, model = case.recipe(0.3), net()
    if not recipe.rule.needs:
        pytest.skip("this method needs no data")
    before = fingerprint(model)
    with pytest.raises(MissingStatistic, match="needs data|input shape"):
        ow.prune(model, recipe, loss=F.cross_entropy)
    if any(stat.needs_loss for stat in recipe.rule.needs):
        with pytest.raises(MissingStatistic, match="needs a loss; pass loss="):
            ow.prune(model, recipe, data=batches())
    if case.name != "synflow":
        for empty in ([], iter(())):
            with pytest.raises(DataError, match="the data is empty"):
                ow.prune(model, recipe, data=empty, loss=F.cross_entropy)
    assert same(fingerprint(model), before)


@pytest.mark.parametrize("name", ["taylor", "snip", "spode"])
def test_a_one_way_loader_must_be_long_enough(name):
    case, model = next(c for c in CASES if c.name == name), net()
    before = fingerprint(model)
    with pytest.raises(DataError, match="the data ended after 1 batches but more are needed"):
        ow.prune(model, case.recipe(0.3), data=iter(batches(1)), loss=F.cross_entropy)
    assert same(fingerprint(model), before)


@pytest.mark.parametrize("name", ["taylor", "snip", "spode", "grasp"])
def test_a_loss_that_is_not_finite_is_refused(name):
    case, model = next(c for c in CASES if c.name == name), net()
    before = fingerprint(model)
    for bad in (math.nan, math.inf):
        with pytest.raises(DivergedError, match=rf"the loss is {bad} at step 0"):
            ow.prune(
                model, case.recipe(0.3), data=batches(), loss=lambda out, y, bad=bad: F.cross_entropy(out, y) * bad
            )
    assert same(fingerprint(model), before)


@every
def test_weights_that_are_not_finite_are_refused(case):
    model = net()
    with torch.no_grad():
        model.hidden.weight[0, 0] = math.nan
    before = fingerprint(model)
    with pytest.raises(DivergedError, match="hidden.weight: weights must be finite"):
        perform(case, case.recipe(0.3), model)
    assert same(fingerprint(model), before)


@every
def test_the_wrong_engine_is_refused(case):
    model = net()
    optimizer = sgd(model)
    before = fingerprint(model)
    if case.drive != "prune":
        with pytest.raises(RecipeError, match=rf"{case.name} works .*use ow.{case.drive}"):
            ow.prune(model, case.recipe(0.3), data=batches(), loss=F.cross_entropy)
    if case.drive == "cycle":
        with pytest.raises(RecipeError, match="works in rounds of training; use ow.cycle"):
            ow.attach(model, case.recipe(0.3), optimizer, data=batches(), loss=F.cross_entropy)
    if case.drive != "cycle":
        with pytest.raises(RecipeError, match="cycle needs a Rounds schedule"):
            ow.cycle(model, case.recipe(0.3), lambda m, r: None, data=batches(), loss=F.cross_entropy)
    assert same(fingerprint(model), before)
    assert len(optimizer.param_groups) == 1
    assert not optimizer._optimizer_step_pre_hooks


@every
def test_tied_weights_count_once(case):
    model = net()
    model.twin = model.hidden
    result = perform(case, case.recipe(0.5), model)
    assert result.counts.total_numel == sum(p.numel() for p in net().parameters())
