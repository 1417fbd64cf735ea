"""Laws about training loops: copies, skipped steps, accumulation, other optimisers, refusals, composed rules."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from tests.contract.cases import CASES, STEPS, Case, adam, adamw, batches, fingerprint, net, perform, same, sgd, train
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.allocation import Uniform
from openwork.core.now import Update
from openwork.core.protocols import Rule
from openwork.criteria import Random
from openwork.errors import DensityMissed, OpenworkError, RecipeError
from openwork.relax import Masking, SoftmaxAttention
from openwork.rules.drop_grow import DropGrow
from openwork.schedules import OneShot, Periodic

every = pytest.mark.parametrize("case", CASES, ids=str)
KEPT = [
    Case("acdc", {"steps": STEPS, "on_decompress": "keep"}),
    Case("gradual_magnitude", {"begin": 5, "end": 40, "every": 7, "masked": "freeze"}),
]
"""The same methods with masks in the forward pass instead of zeros in the weights."""
ATTACHED = [c for c in CASES if c.drive == "attach"]
attached = pytest.mark.parametrize("case", ATTACHED, ids=str)
any_gate = pytest.mark.parametrize(
    "case", ATTACHED + KEPT, ids=[str(c) for c in ATTACHED] + [f"{c}-gate" for c in KEPT]
)


def equal(a, b):
    """Whether two models hold the same bits."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def begin(case, model, optimise=sgd, density=0.3):
    optimizer = optimise(model)
    return optimizer, ow.attach(model, case.recipe(density), optimizer)


@any_gate
@pytest.mark.parametrize("end", ["finish", "detach"])
def test_a_copy_taken_during_a_run_outlives_it(case, end):
    model = net()
    optimizer, run = begin(case, model)
    train(model, optimizer, 0, 20, run)
    twin, x = copy.deepcopy(model).eval(), batches()[0][0]
    want = twin(x)
    train(model, optimizer, 20, STEPS, run)
    getattr(run, end)()
    assert torch.equal(twin(x), want)


@any_gate
def test_detaching_gives_the_model_and_the_optimiser_back(case):
    model = net()
    before = fingerprint(model)
    optimizer, run = begin(case, model)
    groups = [[id(p) for p in g["params"]] for g in sgd(model).param_groups]
    train(model, optimizer, 0, 20, run)
    run.detach()
    after = fingerprint(model)
    assert all(before[key] == after[key] for key in ("names", "identity", "grads", "hooks", "types"))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, 20, 22)
    assert run.step == 20
    named = dict(zip(before["identity"], before["names"], strict=True))
    found = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(named[i] for i in found) == sorted(before["names"])
    assert len(groups) == len(optimizer.param_groups)


@any_gate
@pytest.mark.parametrize("stop", [6, 40])
@pytest.mark.parametrize("optimise", [adam, adamw], ids=lambda f: f.__name__)
def test_going_on_with_other_optimisers(case, stop, optimise):
    straight, model, again = net(), net(), net(seed=99)
    optimizer, run = begin(case, straight, optimise)
    train(straight, optimizer, 0, STEPS, run)
    run.finish()
    optimizer, run = begin(case, model, optimise)
    train(model, optimizer, 0, stop, run)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), run.state_dict()))
    optimizer, run = begin(case, again, optimise)
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    run.load_state_dict(saved[2])
    train(again, optimizer, stop, STEPS, run)
    run.finish()
    assert equal(straight, again)


@any_gate
@pytest.mark.parametrize("optimise", [adam, adamw], ids=lambda f: f.__name__)
def test_density_one_is_plain_training_under_other_optimisers(case, optimise):
    plain, model = net(), net()
    train(plain, optimise(plain), 0, STEPS)
    optimizer, run = begin(case, model, optimise, density=1.0)
    train(model, optimizer, 0, STEPS, run)
    assert run.finish().density == 1.0
    assert equal(plain, model)


@attached
def test_steps_that_a_scaler_skips_do_not_count(case):
    """Scales are powers of two, so a scaled run with overflows equals an unscaled one without those steps."""
    plain, model = net(), net()
    skipped = {3, 17, 18, 44}
    optimizer, run = begin(case, plain)
    for step in range(STEPS + len(skipped)):
        if step not in skipped:
            train(plain, optimizer, step, step + 1, run)
    want = run.finish()
    optimizer, run = begin(case, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=10**6)
    for step in range(STEPS + len(skipped)):
        if step in skipped:  # the batch is not looked at, so that BatchNorm sees what the plain run sees
            for p in model.parameters():
                p.grad = torch.full_like(p, float("inf"))
            scaler.scale(torch.zeros(()))
        else:
            x, y = batches()[step % 4]
            torch.manual_seed(step)
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y) + run.penalty()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert run.step == STEPS
    assert run.finish().masks.distance(want.masks) == 0
    assert equal(plain, model)


@attached
def test_accumulated_gradients_are_the_gradient(case):
    """Two halves of a batch against the whole, in float64; also what RigL grows by."""
    if case.name == "probmask":
        pytest.skip("this method draws a mask at every forward pass, so two halves see two masks")
    if case.coupled:
        pytest.skip("this method needs norms, whose statistics differ between a batch and its halves")
    made = []
    for cut in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4)).double()
        optimizer, run = begin(case, model)
        for step in range(STEPS):
            x, y = batches(dtype=torch.float64)[step % 4]
            optimizer.zero_grad()
            for part, target in zip(x.chunk(cut), y.chunk(cut), strict=True):
                (F.cross_entropy(model(part), target) / cut + run.penalty()).backward()
            optimizer.step()
        made.append((model, run.finish()))
    assert made[0][1].masks.distance(made[1][1].masks) == 0
    # gates are float32 whatever the weights are: 60 steps of its rounding; else float64 with room for 60 steps
    tol = 60 * torch.finfo(torch.float64 if run.recipe.relaxation is None else torch.float32).eps * 100
    for a, b in zip(made[0][0].parameters(), made[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize(
    "relaxation", [None, Masking(), SoftmaxAttention(), SoftmaxAttention(learning_rate=0.5)], ids=repr
)
def test_a_refused_attach_leaves_model_and_optimiser_untouched(relaxation):
    model = net()
    optimizer = sgd(model)
    train(model, optimizer, 0, 3)
    before = fingerprint(model)
    state = copy.deepcopy(optimizer.state_dict())
    groups = [list(map(id, g["params"])) for g in optimizer.param_groups]
    rule = DropGrow(Random(), allocation=Uniform())
    recipe = ow.Recipe("made", ow.NM(2, 4), rule, Periodic(0.5, 5, 50), relaxation, ow.Select(include=("h*",)))
    with pytest.raises(RecipeError, match="DropGrow moves units over the whole tensor"):
        ow.attach(model, recipe, optimizer)
    assert same(fingerprint(model), before)
    assert [list(map(id, g["params"])) for g in optimizer.param_groups] == groups
    assert str(optimizer.state_dict()) == str(state)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@attached
def test_an_optimiser_that_does_not_train_a_target_is_refused(case):
    model = net()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    before = fingerprint(model)
    lost = r"conv.weight \(\d of \d+" if case.coupled else r"conv.weight \(3 of 4"
    with pytest.raises(OpenworkError, match=rf"the optimiser does not train {lost} targets\)"):
        ow.attach(model, case.recipe(0.3), optimizer)
    assert same(fingerprint(model), before)


class Noisy(torch.optim.SGD):
    """Moves every weight at every step, whatever its gradient and its momentum."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.add_(0.01 * torch.randn_like(p))


@attached
def test_an_optimiser_that_moves_every_weight_revives_none(case):
    model = net()
    optimizer = Noisy(model.parameters(), lr=0.02)
    run = ow.attach(model, case.recipe(0.3), optimizer)
    for step in range(STEPS):
        train(model, optimizer, step, step + 1, run)
        if not any("parametrizations" in n for n, _ in model.named_parameters()):
            params = dict(model.named_parameters())
            assert all(bool((params[n][~m] == 0).all()) for n, m in run.masks.items())
    result = run.finish()
    params = dict(model.named_parameters())
    assert all(bool((params[n][~m] == 0).all()) for n, m in result.masks.items())
    with ow.hold(model, result.masks, optimizer):
        train(model, optimizer, 0, 3)
    assert all(bool((params[n][~m] == 0).all()) for n, m in result.masks.items())


class Lazy(Rule):
    """Prunes only from its second update on."""

    def init(self, now):
        return 0

    def update(self, now, phase, state):
        units = dict(now.units)
        if state:
            units = {n: torch.arange(u.numel()) < round(phase.share * u.numel()) for n, u in units.items()}
        return Update(units, state=state + 1)


def test_a_missed_promise_leaves_the_run_going():
    model = net()
    optimizer = sgd(model)
    recipe = ow.Recipe("lazy", ow.Element(), Lazy(), Periodic(0.5, 4, 50))
    run = ow.attach(model, recipe, optimizer)
    train(model, optimizer, 0, 2, run)
    with pytest.raises(DensityMissed, match=r"lazy: density 0.5 promises .* the rule did not follow it"):
        run.finish()
    train(model, optimizer, 2, 6, run)
    assert run.step == 6
    assert run.finish().density == pytest.approx(0.5, abs=1e-3)


@every
@pytest.mark.parametrize(
    "wrap",
    [lambda r: ow.Chain((r,)), lambda r: ow.On("*", r), lambda r: ow.On("re:.*", ow.Chain((r,)))],
    ids=["chain", "on", "both"],
)
def test_a_composed_rule_is_the_rule(case, wrap):
    plain, model = net(), net()
    recipe = case.recipe(0.3)
    want = perform(case, recipe, plain)
    got = perform(case, replace(recipe, rule=wrap(recipe.rule)), model)
    assert got.masks.distance(want.masks) == 0
    assert equal(plain, model)


@pytest.mark.parametrize(
    "wrap", [lambda r: r, lambda r: ow.Chain((r,)), lambda r: ow.On("*", r)], ids=["plain", "chain", "on"]
)
def test_units_that_return_under_a_gate_start_without_momentum(wrap):
    """Gates zero no weights, so only ``Update.fresh`` can make the optimiser forget."""
    model = net()
    optimizer = sgd(model)
    rule = wrap(DropGrow(Random(), allocation=Uniform()))
    recipe = ow.Recipe("made", ow.Element(), rule, Periodic(0.5, 5, 50), Masking(), ow.Select(include=("hidden",)))
    run = ow.attach(model, recipe, optimizer)
    train(model, optimizer, 0, 4, run)
    before = run.masks["hidden.weight"]
    train(model, optimizer, 4, 5, run)
    grown = run.masks["hidden.weight"] & ~before
    momentum = optimizer.state[model.hidden.parametrizations.weight.original]["momentum_buffer"]
    assert bool(grown.any())
    assert bool((momentum[grown] == 0).all())
    assert bool((momentum[before & run.masks["hidden.weight"]] != 0).any())


@every
def test_results_are_data(case):
    """Everything a result says goes to JSON and back, without NaN."""
    said = perform(case, case.recipe(0.3), net()).to_dict()
    assert json.loads(json.dumps(said, allow_nan=False)) == said


@pytest.mark.parametrize("case", [c for c in CASES if c.drive == "cycle"], ids=str)
def test_rounds_of_another_model_or_recipe_are_refused(case):
    given = {"data": batches(), "loss": F.cross_entropy}
    model = net()
    rounds = ow.Cycle(model, case.recipe(0.3), rewind_to=model.state_dict(), **given)
    state = rounds.state_dict()
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    foreign = ow.Cycle(other, case.recipe(0.3), rewind_to=other.state_dict(), **given)
    with pytest.raises(RecipeError, match="the saved state does not fit this model"):
        foreign.load_state_dict(state)
    later = ow.Cycle(model, case.recipe(0.2), rewind_to=model.state_dict(), **given)
    with pytest.raises(RecipeError, match="the saved state belongs to another recipe"):
        later.load_state_dict(state)
    with pytest.raises(DensityMissed, match=r"finish\(\) after 0 of 2 rounds"):
        rounds.finish()


def test_a_state_from_before_an_option_is_the_default_of_it():
    made = []
    for old in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = ow.attach(model, ow.methods.probmask(density=0.3, steps=20), optimizer)
        state = run.state_dict()
        if old:
            assert state["recipe"]["relaxation"].pop("samples") == 1
        run.load_state_dict(state)
        made.append(run.recipe)
        state["recipe"]["relaxation"]["samples"] = 2
        with pytest.raises(RecipeError, match="the saved state belongs to another recipe"):
            run.load_state_dict(state)
        state["recipe"] = None
        with pytest.raises(RecipeError, match="the saved state belongs to another recipe"):
            run.load_state_dict(state)
        run.detach()
    assert made[0] == made[1]


def test_one_shot_at_a_later_step():
    """A one-shot rule inside a training: dense before, sparse from its step on."""
    model = net()
    optimizer = sgd(model)
    case = CASES[0]
    run = ow.attach(model, replace(case.recipe(0.3), schedule=OneShot(0.3, at=10)), optimizer)
    train(model, optimizer, 0, 9, run)
    assert (run.density, run.phase) == (1.0, "dense")
    train(model, optimizer, 9, 12, run)
    assert run.phase == "sparse"
    assert run.finish().density == run.density < 0.31
