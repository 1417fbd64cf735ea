"""``TopK`` and ``Repeat`` on scores written by hand."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from openwork.allocation import ErdosRenyi, Global, Uniform
from openwork.core import views
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Rule
from openwork.criteria import Magnitude
from openwork.errors import DivergedError
from openwork.rules.topk import Repeat, TopK
from openwork.structure import Tiles


@dataclass(frozen=True)
class Given:
    """Scores as given."""

    scores: dict
    needs = frozenset()

    def __call__(self, part, now):
        return self.scores[part.member]


def now(units=None, **more):
    parts = {n: Tiles(n, views.linear_view((1, 4))) for n in "ab"}
    full = {n: torch.ones(4, dtype=torch.bool) for n in parts}
    return Now(parts, {**full, **(units or {})}, {n: torch.zeros(1, 4) for n in parts}, **more)


SCORES = {"a": torch.tensor([4.0, 3, 2, 1]), "b": torch.tensor([1.0, 2, 3, 4])}


def kept(step):
    return {n: u.nonzero().flatten().tolist() for n, u in step.units.items()}


def test_the_top_of_every_partition():
    assert kept(TopK(Given(SCORES)).update(now(), Phase(0.5, True), None)) == {"a": [0, 1], "b": [2, 3]}


def test_dropped_units_stay_off_when_nested():
    dead = {"a": torch.tensor([False, True, True, True])}
    step = TopK(Given(SCORES), nested=True).update(now(dead), Phase(0.5, True), None)
    assert kept(step) == {"a": [1, 2], "b": [2, 3]}
    assert kept(TopK(Given(SCORES)).update(now(dead), Phase(0.5, True), None))["a"] == [0, 1]


@pytest.mark.parametrize("allocation", [Uniform("floor"), Global("floor")], ids=repr)
def test_nested_holds_when_every_layer_rounds_down(allocation):
    # many small layers lose up to a unit each to rounding, so their sum may fall short of the share;
    parts = {f"t{i}": Tiles(f"t{i}", views.linear_view((1, 10))) for i in range(12)}
    alive = {n: torch.arange(10) >= 7 for n in parts}  # 3 of 10
    scores = {n: -torch.arange(10.0) for n in parts}  # the dropped ones would win
    here = Now(parts, alive, {n: torch.zeros(1, 10) for n in parts})
    step = TopK(Given(scores), allocation, nested=True).update(
        here, Phase(0.30 if allocation != Uniform("floor") else 0.39, True), None
    )
    assert not any(bool((u & ~alive[n]).any()) for n, u in step.units.items())


def test_unequal_shares_stay_nested_where_rounding_would_give_a_unit_back():
    """Largest remainders: with 14 units in all a layer may be due more than with 15."""
    shapes = {"a": (7, 8), "b": (1, 6), "c": (9, 9)}
    parts = {n: Tiles(n, views.linear_view(s)) for n, s in shapes.items()}
    weights = {n: torch.zeros(s) for n, s in shapes.items()}
    sizes = {n: s[0] * s[1] for n, s in shapes.items()}
    scores = {n: -torch.arange(float(k)) for n, k in sizes.items()}
    rule = TopK(Given(scores), ErdosRenyi(rounding="floor"), nested=True)
    units = {n: torch.ones(k, dtype=torch.bool) for n, k in sizes.items()}
    due, last = [], None
    for total in range(143, 6, -1):
        share = min(1.0, total / sum(sizes.values()) + 1e-9)
        here = Now(parts, units, weights)
        due.append(rule.allocation(here, scores, share))
        step = rule.update(here, Phase(share, True), None)
        assert sum(int(u.sum()) for u in step.units.values()) == total
        assert last is None or not any(bool((u & ~last[n]).any()) for n, u in step.units.items())
        units = last = step.units
    assert any(b[n] > a[n] for a, b in itertools.pairwise(due) for n in shapes)  # the shares alone are not nested


def test_when_the_share_rises_all_units_compete_again():
    few = {n: torch.tensor([False, False, False, True]) for n in "ab"}
    for allocation in (Uniform(), Global()):
        step = TopK(Given(SCORES), allocation, nested=True).update(now(few), Phase(0.5, True), None)
        assert kept(step) == {"a": [0, 1], "b": [2, 3]}


def test_scores_must_be_finite():
    bad = {**SCORES, "b": torch.tensor([1.0, float("nan"), float("inf"), 4])}
    with pytest.raises(DivergedError, match="b: 2 of 4 scores are NaN or infinite in the soften phase"):
        TopK(Given(bad)).update(now(), Phase(0.5, True, "soften"), None)


class Halve(Rule):
    """Notes each share, drops the last living unit, adds one to the weights."""

    def update(self, now, phase, state):
        units = {n: u.clone() for n, u in now.units.items()}
        for u in units.values():
            u[u.nonzero().max()] = False
        edits = {n: w + 1 for n, w in now.weights.items()}
        return Update(units, edits, [*(state or []), phase.share], log={"rounds": len(state or []) + 1})


@pytest.mark.parametrize(("linear", "shares"), [(False, [0.4, 0.16, 0.064]), (True, [1 - 0.312, 1 - 0.624, 0.064])])
def test_repeat_walks_down_and_carries_everything_along(linear, shares):
    step = Repeat(Halve(), 3, linear).update(now(), Phase(0.064, True), None)
    assert step.state == pytest.approx(shares)
    assert step.state[-1] == 0.064
    assert kept(step) == {"a": [0], "b": [0]}
    assert all((w == 3).all() for w in step.edits.values())
    assert step.log == {"rounds": 3}


def test_repeat_keeps_the_edit_of_a_round_that_others_do_not_touch():
    class Once(Rule):
        def update(self, now, phase, state):
            edits = {} if state else {"a": torch.ones(1, 4)}
            return Update(now.units, edits, True)

    step = Repeat(Once(), 3).update(now(), Phase(0.5, True), None)
    assert (step.edits["a"] == 1).all()


def test_units_of_ties_go_to_the_lower_index():
    same = {n: torch.ones(4) for n in "ab"}
    assert kept(TopK(Given(same), Global()).update(now(), Phase(5 / 8, True), None)) == {"a": [0, 1, 2, 3], "b": [0]}
    assert TopK(Magnitude()).needs == frozenset()
