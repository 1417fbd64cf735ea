"""Scores by hand, on tensors of a few numbers."""

import pytest
import torch

import openwork as ow
from openwork.core import views
from openwork.core.now import Now
from openwork.criteria import Flow, Grasp, Lamp, Learned, Magnitude, Random, Saliency, StepGradient, WeightTimesInput
from openwork.errors import DivergedError, MissingStatistic
from openwork.stats import InputSquares
from openwork.structure import Tiles

W = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])
G = torch.tensor([[1.0, 1.0, -1.0], [0.5, 0.0, 1.0]])
ONE = Tiles("w", views.linear_view((2, 3)))
BLOCK = Tiles("w", views.linear_view((2, 3)), (2, 2))  # the second block is two weights only


def now(part=ONE, stats=None, units=None, **more):
    units = torch.ones(part.n_units, dtype=torch.bool) if units is None else units
    return Now({"w": part}, {"w": units}, {"w": W}, stats or {}, **more)


def test_magnitude():
    assert Magnitude()(ONE, now()).tolist() == [1, 2, 3, 4, 5, 6]
    assert Magnitude("l1")(BLOCK, now(BLOCK)).tolist() == [12, 9]
    assert Magnitude()(BLOCK, now(BLOCK)).tolist() == pytest.approx([46**0.5, 45**0.5])
    assert Magnitude("l1", mean=True)(BLOCK, now(BLOCK)).tolist() == [3, 4.5]
    assert Magnitude("l2", mean=True)(BLOCK, now(BLOCK)).tolist() == pytest.approx([11.5**0.5, 22.5**0.5])


def test_lamp():
    """Over the squares of all that are no smaller: 1 / 91, 4 / 90, 9 / 86, 16 / 77, 25 / 61, 36 / 36."""
    wanted = [1 / 91, 4 / 90, 9 / 86, 16 / 77, 25 / 61, 1]
    assert Lamp()(ONE, now()).tolist() == pytest.approx(wanted, rel=1e-12)
    assert Lamp("l1")(BLOCK, now(BLOCK)).tolist() == pytest.approx([1, 81 / 225], rel=1e-12)
    flat = Now({"w": ONE}, {"w": torch.ones(6, dtype=torch.bool)}, {"w": torch.tensor([[0.0, 2, 2], [0, 2, 0]])}, {})
    assert Lamp()(ONE, flat).tolist() == pytest.approx([0, 1, 1 / 2, 0, 1 / 3, 0])
    empty = Now({"w": ONE}, {"w": torch.ones(6, dtype=torch.bool)}, {"w": torch.zeros(2, 3)}, {})
    assert Lamp()(ONE, empty).tolist() == [0] * 6


def test_random_draws_from_the_recipe_generator_only():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    draws = [Random()(ONE, now(rng=torch.Generator().manual_seed(s))) for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_saliency():
    stat = Saliency().gradient
    seen = now(BLOCK, {stat: lambda masks: {"w": G}})
    assert Saliency()(BLOCK, seen).tolist() == pytest.approx([abs(1 - 2 - 2 + 0), abs(-3 - 6)])
    with pytest.raises(DivergedError, match="w: no gradient reaches it, so its connections cannot be scored"):
        Saliency()(ONE, now(ONE, {stat: lambda masks: {"w": torch.zeros(2, 3)}}))


def test_grasp_keeps_its_sign():
    stat = Grasp().flow
    assert Grasp()(ONE, now(ONE, {stat: lambda masks: ({"w": W}, {"w": G})})).tolist() == (W * G).flatten().tolist()


def test_flow_is_zero_where_masked():
    units = torch.tensor([True, False, True, True, True, False])
    seen = now(ONE, {Flow().flow: lambda masks: {"w": torch.full((2, 3), 2.0).double()}}, units)
    assert Flow()(ONE, seen).tolist() == [2, 0, 6, 8, 10, 0]


def test_step_gradient_and_learned():
    assert StepGradient()(BLOCK, now(BLOCK, grads={"w": G})).tolist() == pytest.approx([2.25**0.5, 2**0.5])
    assert StepGradient.needs_grads
    with pytest.raises(MissingStatistic, match="w: no gradient at step 5; this rule reads the gradients"):
        StepGradient()(ONE, now(step=5))
    learned = torch.arange(6.0)
    assert Learned()(ONE, now(learned={"w": learned})) is learned
    with pytest.raises(MissingStatistic, match="w: no gate was learned"):
        Learned()(ONE, now())


def test_weight_times_input():
    squares = {"w": torch.tensor([[4.0, 9.0, 1.0]]).expand(2, 3)}
    score = WeightTimesInput()(ONE, now(ONE, {InputSquares(): squares}))
    assert score.tolist() == pytest.approx([2, 6, 3, 8, 15, 6])


@pytest.mark.parametrize("dead", [[0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
def test_weights_whose_input_never_fired_rank_last_by_their_size(dead):
    score = WeightTimesInput()(ONE, now(ONE, {InputSquares(): {"w": torch.tensor([dead]).expand(2, 3)}}))
    silent = [i for i in range(6) if dead[i % 3] == 0]
    order = sorted(silent, key=lambda i: float(score[i]))
    assert order == sorted(silent, key=lambda i: float(W.flatten()[i].abs()))
    assert len(silent) == 6 or float(score[silent].max()) < float(score[[1, 4]].min())


def test_functions_of_masks_are_computed_once_for_all_partitions():
    calls = []
    stat = Saliency().gradient

    def gradient(masks):
        calls.append(sorted(masks))
        return {"w": G, "v": G}

    other = Tiles("v", views.linear_view((2, 3)))
    units = {n: torch.ones(6, dtype=torch.bool) for n in "wv"}
    seen = Now({"w": ONE, "v": other}, units, {"w": W, "v": W}, {stat: gradient})
    Saliency()(ONE, seen)
    Saliency()(other, seen)
    assert calls == [["v", "w"]]


def test_step_gradients_are_refused_where_there_are_no_steps():
    from openwork.rules.topk import Repeat, TopK
    from openwork.schedules import OneShot

    rule = Repeat(TopK(StepGradient()), 2)
    assert rule.needs_grads
    model = torch.nn.Linear(3, 3)
    recipe = ow.Recipe("made", ow.Element(), rule, OneShot(0.5))
    with pytest.raises(MissingStatistic, match="made reads the gradients of training steps; use ow.attach"):
        ow.prune(model, recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = ow.attach(model, ow.Recipe("made", ow.Element(), TopK(StepGradient()), OneShot(0.34, at=1)), optimizer)
    (model(torch.tensor([[1.0, 2.0, 3.0]])) * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    optimizer.step()
    assert run.masks["weight"].tolist() == [[False] * 3, [False] * 3, [True] * 3] or run.density == pytest.approx(4 / 9)
    assert bool(run.masks["weight"][2].all())
