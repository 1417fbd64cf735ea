"""The laws that every method of the index obeys. A new method is one row in ``cases.py``."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import yaml
from tests.contract.cases import CASES, STEPS, adam, adamw, batches, fingerprint, net, perform, same, sgd, train
from torch.nn import functional as F

import openwork as ow
from openwork import methods
from openwork.core.select import count_kept
from openwork.engine.cycle import Cycle
from openwork.errors import DensityMissed

every = pytest.mark.parametrize("case", CASES, ids=str)
attached = pytest.mark.parametrize("case", [c for c in CASES if c.drive == "attach"], ids=str)
one_shot = pytest.mark.parametrize("case", [c for c in CASES if c.drive == "prune"], ids=str)
STRUCTURES = [ow.Element(), ow.Block(3, 5), ow.Row(), ow.GroupOf(4), ow.NM(2, 4), ow.Kernel()]
ALL_BUT_CONV = ow.Select(exclude=("conv", "grouped"))


def where_for(structure):
    """The leaves of the net that a structure can take."""
    if isinstance(structure, ow.NM):
        return ow.Select(exclude=("conv",))
    return ALL_BUT_CONV if isinstance(structure, ow.GroupOf) else ow.Select()


def test_every_method_of_the_index_has_a_case():
    assert sorted(c.name for c in CASES) == sorted(methods.names())


@every
@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_density_is_exact(case, structure):
    if isinstance(structure, ow.NM) and not case.regions:
        pytest.skip("this method moves units over whole tensors")
    if not case.groups and not isinstance(structure, ow.Element | ow.NM):
        pytest.skip("this method removes single weights")
    for density in (0.5,) if isinstance(structure, ow.NM) else (0.3, 0.61):
        model = net()
        result = perform(case, case.recipe(density, structure, where=where_for(structure)), model)
        params = dict(model.named_parameters())
        kept = sum(int(u.sum()) for u in result.units.values())
        total = sum(u.numel() for u in result.units.values())
        low = sum(count_kept(density, u.numel(), "floor") for u in result.units.values())
        high = sum(count_kept(density, u.numel()) for u in result.units.values())
        assert min(low, math.floor(density * total)) <= kept <= high
        for name, mask in result.masks.items():
            assert (params[name][~mask] == 0).all()
        if isinstance(structure, ow.NM):
            for name in result.masks:
                assert set(result.units[name].view(-1, 4).sum(1).tolist()) == {2}


@every
def test_report_equals_a_recount(case):
    model = net()
    result = perform(case, case.recipe(0.3), model)
    kept = sum(int((p != 0).sum()) for n, p in model.named_parameters() if n in result.masks)
    targeted = sum(p.numel() for n, p in model.named_parameters() if n in result.masks)
    named = model.named_parameters()  # coupled units hold biases and norms as well
    weights = sum(p.numel() for n, p in named if n in result.masks or (n.endswith("weight") and p.ndim > 1))
    total = sum(p.numel() for p in model.parameters())
    assert result.counts.kept >= kept  # a kept weight may be zero, a pruned one may not
    assert result.counts.kept == sum(int(m.sum()) for m in result.masks.values())
    assert result.density == result.counts.kept / targeted
    assert result.counts.prunable == pytest.approx(1 - (targeted - result.counts.kept) / weights, abs=1e-12)
    assert result.counts.total == pytest.approx(1 - (targeted - result.counts.kept) / total, abs=1e-12)
    rows = {t["name"]: t for t in result.tensors}
    assert list(rows) == [n for n, _ in model.named_parameters()]
    assert sum(t["kept"] for t in rows.values() if t["units"]) == result.counts.kept
    assert all(t["skipped"] for t in rows.values() if not t["units"])
    assert f"{result.counts.kept:,}" in result.report()


@every
def test_same_seed_same_bits(case):
    runs = [net(), net()]
    results = [perform(case, case.recipe(0.3), m, seed=5) for m in runs]
    assert all(torch.equal(results[0].masks[n], results[1].masks[n]) for n in results[0].masks)
    assert same({**fingerprint(runs[0]), "identity": []}, {**fingerprint(runs[1]), "identity": []})


@pytest.mark.parametrize("name", ["random", "set", "rigl"])
def test_another_seed_another_mask(name):
    case = next(c for c in CASES if c.name == name)
    results = [perform(case, case.recipe(0.3), net(), seed=s) for s in (1, 2)]
    assert any(not torch.equal(results[0].masks[n], results[1].masks[n]) for n in results[0].masks)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_form_of_the_model_stays(case, dtype):
    model = net(dtype=dtype)
    model.norm.eval()  # a mixed train/eval state must survive too
    before = fingerprint(model)
    perform(case, case.recipe(0.3, dtype=dtype), model)
    after = fingerprint(model)
    for key in ("names", "identity", "grads", "hooks", "types"):
        assert after[key] == before[key], key
    assert list(after["tensors"]) == list(before["tensors"])
    assert all(t.dtype == before["tensors"][n].dtype for n, t in after["tensors"].items())
    if case.drive == "prune":
        assert after["modes"] == before["modes"]
        for name, value in before["tensors"].items():
            if "norm" in name or name.endswith("bias"):
                assert torch.equal(after["tensors"][name], value), name


@one_shot
def test_global_generator_is_left_alone(case):
    model = net()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    perform(case, case.recipe(0.3), model)
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_keeping_everything_changes_nothing(case):
    plain, model = net(), net()
    if case.drive == "prune":
        result = ow.prune(model, case.recipe(1.0))  # needs no data either
    elif case.drive == "attach":
        train(plain, sgd(plain), 0, STEPS)
        result = perform(case, case.recipe(1.0), model)
    else:
        options = {"rewind": "none"} if case.name in ("imp", "sap") else {}
        for _ in range(2):
            train(plain, sgd(plain), 0, 8)
        result = perform(case, case.recipe(1.0, **options), model)
    assert result.density == 1.0
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))


@attached
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 17, 40, 59, 60])
def test_stopping_and_going_on_equals_not_stopping(case, stop):
    straight = net()
    want = perform(case, case.recipe(0.3), straight)
    model = net()
    optimizer = sgd(model)
    run = ow.attach(model, case.recipe(0.3), optimizer)
    train(model, optimizer, 0, stop, run)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), run.state_dict()))
    again = net(seed=99)
    optimizer = sgd(again)
    run = ow.attach(again, case.recipe(0.3), optimizer)
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    run.load_state_dict(saved[2])
    train(again, optimizer, stop, STEPS, run)
    result = run.finish()
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert all(torch.equal(want.masks[n], result.masks[n]) for n in want.masks)
    assert result.log == want.log


@pytest.mark.parametrize("case", [c for c in CASES if c.drive == "cycle"], ids=str)
def test_rounds_can_stop_between(case):
    want_model = net()
    want = perform(case, case.recipe(0.3), want_model)
    model = net()
    point = copy.deepcopy(model.state_dict())
    rounds = Cycle(model, case.recipe(0.3), rewind_to=point, data=batches(), loss=F.cross_entropy)
    rounds.prune_round()
    with ow.hold(model, rounds.masks):
        train(model, sgd(model), 0, 8)
    saved = copy.deepcopy((model.state_dict(), rounds.state_dict()))
    again = net(seed=99)
    again.load_state_dict(saved[0])
    rounds = Cycle(again, case.recipe(0.3), rewind_to=point, data=batches(), loss=F.cross_entropy)
    rounds.load_state_dict(saved[1])
    rounds.prune_round()
    with ow.hold(again, rounds.masks):
        train(again, sgd(again), 0, 8)
    result = rounds.finish()
    assert all(
        torch.equal(a, b) for a, b in zip(want_model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert result.log == want.log


@every
def test_recipes_are_data(case):
    for structure in (ow.Element(), ow.Block(4, 2)) if case.groups else (ow.Element(),):
        recipe = case.recipe(0.3, structure, where=ow.Select(include=("h*",)))
        assert ow.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        assert ow.Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@attached
@pytest.mark.parametrize("optimise", [sgd, adam, adamw], ids=lambda f: f.__name__)
def test_no_step_revives_a_pruned_weight(case, optimise):
    model = net()
    optimizer = optimise(model)
    run = ow.attach(model, case.recipe(0.3), optimizer)

    def look(_):
        if not any("parametrizations" in n for n, _ in model.named_parameters()):
            params = dict(model.named_parameters())
            assert all((params[n][~m] == 0).all() for n, m in run.masks.items())

    train(model, optimizer, 0, STEPS, run, look)
    result = run.finish()
    params = dict(model.named_parameters())
    assert all((params[n][~m] == 0).all() for n, m in result.masks.items())


@pytest.mark.parametrize("optimise", [sgd, adam, adamw], ids=lambda f: f.__name__)
def test_held_masks_hold(optimise):
    model = net()
    result = ow.prune(model, methods.get("magnitude")(density=0.2))
    optimizer = optimise(model)
    with ow.hold(model, result.masks, optimizer):
        train(model, optimizer, 0, 10)
    params = dict(model.named_parameters())
    assert all((params[n][~m] == 0).all() for n, m in result.masks.items())
    train(model, optimizer, 10, 12)
    assert any((params[n][~m] != 0).any() for n, m in result.masks.items())  # and no hook is left


@attached
def test_finish_too_early_is_refused_and_can_be_repaired(case):
    model = net()
    optimizer = sgd(model)
    recipe = case.recipe(0.3)
    run = ow.attach(model, recipe, optimizer)
    if recipe.schedule.last > 0:
        train(model, optimizer, 0, 3, run)
        with pytest.raises(
            DensityMissed,
            match=rf"finish\(\) after 3 optimiser steps, but density 0.3 is reached at step {recipe.schedule.last}",
        ):
            run.finish()
        train(model, optimizer, 3, STEPS, run)
    result = run.finish()
    assert run.finish() is result


@attached
def test_a_copy_can_be_taken_during_a_run(case):
    model = net()
    optimizer = sgd(model)
    run = ow.attach(model, case.recipe(0.3), optimizer)
    train(model, optimizer, 0, 20, run)
    twin = copy.deepcopy(model)
    x = batches()[0][0]
    assert torch.equal(twin.eval()(x), model.eval()(x))


@attached
def test_gradients_may_be_accumulated(case):
    model = net()
    optimizer = sgd(model)
    run = ow.attach(model, case.recipe(0.3), optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        for x, y in batches(2):
            (F.cross_entropy(model(x), y) / 2 + run.penalty()).backward()
        optimizer.step()
        assert run.step == step + 1
    run.finish()
