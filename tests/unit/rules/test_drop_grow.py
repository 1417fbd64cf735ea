"""``DropGrow`` on tensors whose answer is known."""

import math

import pytest
import torch

from openwork.allocation import Uniform
from openwork.core import views
from openwork.core.now import Now, Phase
from openwork.criteria import Magnitude, Random, StepGradient
from openwork.errors import RecipeError
from openwork.rules.drop_grow import ConstantFraction, CosineFraction, DropGrow
from openwork.structure import Tiles


def now(alive, weights, grads=None, step=5, block=(1, 1)):
    n = len(weights)
    part = Tiles("w", views.linear_view((1, n)), block)
    units = torch.tensor(alive, dtype=torch.bool)
    grads = {"w": torch.tensor([grads], dtype=torch.float32)} if grads is not None else {}
    return Now({"w": part}, {"w": units}, {"w": torch.tensor([weights], dtype=torch.float32)}, grads=grads, step=step)


STARTED = {"ever": {"w": torch.zeros(6, dtype=torch.bool)}, "started": True}
PHASE = Phase(0.5, True)


def test_smallest_weights_leave_and_largest_gradients_come():
    here = now([1, 1, 1, 1, 0, 0], [4, 1, 3, 2, 0, 0], [0, 0, 0, 0, 1, -9])
    step = DropGrow(fraction=ConstantFraction(0.25)).update(here, PHASE, STARTED)
    assert step.units["w"].tolist() == [True, False, True, True, False, True]
    assert step.fresh["w"].tolist() == [[False] * 5 + [True]]
    assert step.log == {"drop_fraction": 0.25, "grown": 1, "ever_active": 4 / 6}
    assert step.state["ever"]["w"].tolist() == step.units["w"].tolist()


def test_a_dropped_unit_may_return_at_once_and_keeps_its_moments():
    here = now([1, 1, 1, 1, 0, 0], [4, 1, 3, 2, 0, 0], [0, 9, 0, 0, 1, 1])
    step = DropGrow(fraction=ConstantFraction(0.25)).update(here, PHASE, STARTED)
    assert step.units["w"].tolist() == [True, True, True, True, False, False]
    assert not bool(step.fresh["w"].any())
    assert step.log["grown"] == 0


def test_drop_more_than_is_free():
    here = now([1, 1, 1, 1, 1, 0], [6, 5, 4, 3, 2, 0], [0, 0, 0, 7, 8, 9])
    step = DropGrow(fraction=ConstantFraction(0.9)).update(here, PHASE, STARTED)
    assert int(step.units["w"].sum()) == 5
    assert bool(step.units["w"][3:].all())


@pytest.mark.parametrize(("alive", "share"), [([1] * 6, 0.9), ([0] * 6, 0.9), ([1, 1, 1, 0, 0, 0], 0.3)])
def test_nothing_moves_when_nothing_can(alive, share):
    here = now(alive, [1] * 6, [1] * 6)
    step = DropGrow(fraction=ConstantFraction(share)).update(here, PHASE, STARTED)
    assert step.units["w"].tolist() == [bool(a) for a in alive]


def test_the_first_update_draws_a_random_mask():
    rule = DropGrow(allocation=Uniform())
    here = now([1] * 6, [1] * 6, step=0)
    state = rule.init(here)
    assert state["started"] is False
    step = rule.update(here, PHASE, state)
    assert int(step.units["w"].sum()) == 3
    assert step.state["started"]
    assert not step.fresh
    assert step.log["ever_active"] == 0.5


def test_blocks_move_whole():
    here = now([1, 1, 0], [1, 1, 5, 5, 0, 0], [0, 0, 0, 0, 1, 1], block=(1, 2))
    state = {"ever": {"w": torch.tensor([True, True, False])}, "started": True}
    step = DropGrow(fraction=ConstantFraction(0.5)).update(here, PHASE, state)
    assert step.units["w"].tolist() == [False, True, True]
    assert step.fresh["w"].tolist() == [[False] * 4 + [True] * 2]
    assert step.log["ever_active"] == 1.0


def test_fractions():
    cosine = CosineFraction(0.3, 100, floor=0.1)
    assert cosine(0) == pytest.approx(0.3)
    assert cosine(50) == pytest.approx(0.2)
    assert cosine(100) == cosine(500) == 0.1
    assert CosineFraction(0.3, 100)(25) == pytest.approx(0.15 * (1 + math.cos(math.pi / 4)))
    with pytest.raises(RecipeError, match="CosineFraction: floor must be between 0 and alpha 0.3, got 0.4"):
        CosineFraction(0.3, 100, floor=0.4)


def test_needs_follow_the_criteria():
    assert DropGrow().needs_grads
    assert DropGrow(Random(), StepGradient()).needs_grads
    assert not DropGrow(Random(), Magnitude()).needs_grads
