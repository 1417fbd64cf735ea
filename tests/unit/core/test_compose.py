"""Composers forward every moment of the protocol."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.compose import Chain, During, On
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Rule
from openwork.core.recipe import Recipe
from openwork.core.stat import Stat
from openwork.criteria import Magnitude
from openwork.errors import RecipeError, StructureError
from openwork.rules.topk import Repeat, TopK
from openwork.schedules import Phases, Stretch
from openwork.structure import Element, partition

OFFERS = ("recut", "chosen", "settled")
"""What a rule may decline, as composed ones do: then budgets count the units of the update."""
MOMENTS = sorted(n for n, f in vars(Rule).items() if inspect.isfunction(f) and n not in OFFERS)
"""What a driver asks of every rule."""


class Probe(Rule):
    """Writes down which moment was called with what it saw; frozen fields are not needed here."""

    needs_grads = True

    def __init__(self, weight=1.0):
        self.weight, self.seen = weight, []
        self.needs = frozenset({Stat()})

    def init(self, now):
        self.seen.append(("init", sorted(now.parts)))
        return 0

    def penalty(self, now, state):
        self.seen.append(("penalty", state))
        return torch.tensor(self.weight)

    def on_grad(self, now, state):
        self.seen.append(("on_grad", state))
        return {n: g + self.weight for n, g in now.grads.items()}

    def update(self, now, phase, state):
        self.seen.append(("update", state))
        units = {n: u & (torch.arange(u.numel()) % 2 == 0) for n, u in now.units.items()}
        edits = {n: now.weights[n] + self.weight for n in now.parts}
        fresh = {n: torch.ones_like(now.weights[n], dtype=torch.bool) for n in now.parts}
        return Update(units, edits, state + 1, fresh, {"weight": self.weight})


def now(phase="sparse", **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    parts, _ = partition(model, Element(), ow.Select())
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    weights = {n: torch.zeros(p.view.shape) for n, p in parts.items()}
    return Now(parts, units, weights, grads={n: torch.zeros(p.view.shape) for n, p in parts.items()}, phase=phase)


WRAPS = {
    "chain": lambda r: Chain((r,)),
    "on": lambda r: On("*", r),
    "during": lambda r: During("sparse", r),
    "repeat": lambda r: Repeat(r, 1),
    "nested": lambda r: Chain((During("sparse", On("*", Repeat(r, 1))),)),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_every_moment_reaches_the_rule_and_comes_back(wrap):
    assert MOMENTS == ["init", "on_grad", "penalty", "update"]
    plain, wrapped = Probe(), Probe()
    rule = wrap(wrapped)
    assert rule.needs == wrapped.needs
    assert rule.needs_grads
    here = now()
    own, state = plain.init(here), rule.init(here)
    for _ in range(2):
        assert float(rule.penalty(here, state)) == float(plain.penalty(here, own))
        a, b = rule.on_grad(here, state), plain.on_grad(here, own)
        assert all(torch.equal(a[n], b[n]) for n in b)
        got, want = rule.update(here, Phase(0.5, True), state), plain.update(here, Phase(0.5, True), own)
        for field in ("units", "edits", "fresh"):
            a, b = getattr(got, field), getattr(want, field)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[n], b[n]) for n in b)
        assert got.log == want.log
        state, own = got.state, want.state
    assert plain.seen == wrapped.seen


def test_a_chain_adds_penalties_and_passes_weights_units_and_gradients_on():
    one, two = Probe(1.0), Probe(10.0)
    chain, here = Chain((one, two)), now()
    state = chain.init(here)
    assert float(chain.penalty(here, state)) == 11.0
    assert all((g == 11.0).all() for g in chain.on_grad(here, state).values())
    step = chain.update(here, Phase(0.5, True), state)
    assert all((w == 11.0).all() for w in step.edits.values())
    assert step.state == [1, 1]
    assert step.log == {"weight": 10.0}


def test_on_restricts_what_a_rule_sees_and_leaves_the_rest():
    probe = Probe()
    rule, here = On("0", probe), now()
    state = rule.init(here)
    assert probe.seen == [("init", ["0.weight"])]
    step = rule.update(here, Phase(0.5, True), state)
    assert set(step.units) == set(here.units)
    assert bool(step.units["1.weight"].all())
    assert not bool(step.units["0.weight"].all())


def test_during_follows_the_phase_in_every_moment():
    # a phase that keeps everything asks for no update, so the phase must come with `now`
    rule = During("soften", Probe())
    state = rule.init(now())
    for name, acts in (("dense", False), ("soften", True), ("sparse", False), ("soften", True)):
        here = now(name)
        assert float(rule.penalty(here, state)) == float(acts)
        assert bool(rule.on_grad(here, state)) == acts
        step = rule.update(here, Phase(0.5, True, name), state)
        assert (step.units is not here.units) == acts
        state = step.state
    assert state == 2


class Pull(Rule):
    """A penalty of one, and gradients counted."""

    def penalty(self, now, state):
        return 1.0


def test_penalties_stop_in_a_dense_phase_of_a_real_run():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kinds = ("dense", "soften", "dense", "sparse")
    schedule = Phases(0.5, 8, tuple(Stretch(k, 0.25) for k in kinds))
    run = ow.attach(
        model, Recipe("m", Element(), Chain((TopK(Magnitude()), During("soften", Pull()))), schedule), optimizer
    )
    seen = []
    for _ in range(8):
        seen.append((run.phase, float(run.penalty())))
        F.mse_loss(model(torch.ones(1, 4)), torch.zeros(1, 4)).backward()
        optimizer.step()
    assert seen == [(k, float(k == "soften")) for k in kinds for _ in range(2)]


def test_refused_compositions():
    with pytest.raises(RecipeError, match="Chain: every part must be a rule, got Magnitude"):
        Chain((Magnitude(),))
    with pytest.raises(
        RecipeError, match="On: every part must be a rule, got TopK|On: every part must be a rule, got None"
    ):
        On("*", None)
    with pytest.raises(StructureError, match="On: a pattern must be a string, got 3"):
        On(3, TopK(Magnitude()))
    with pytest.raises(
        RecipeError, match="During: phase must be 'dense', 'soften', 'sparsify' or 'sparse', got 'sofen'"
    ):
        During("sofen", TopK(Magnitude()))
    with pytest.raises(RecipeError, match="On: pattern 'x' matches none of the pruned tensors: 0.weight, 1.weight"):
        On("x", TopK(Magnitude())).init(now())
