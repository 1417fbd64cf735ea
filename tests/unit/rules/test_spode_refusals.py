"""What SpODE refuses, and the gradients it can do without."""

from dataclasses import replace

import pytest
import torch
from tests.unit.rules.paths import prune, situation, toy

from openwork.core.now import Now, Phase
from openwork.core.select import count_kept, keep_top
from openwork.errors import DivergedError, OpenworkError, RecipeError
from openwork.rules.spode import SpODE, integrate
from openwork.structure import NM


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 0}, "SpODE: steps must be an integer of at least 1, got 0"),
    ({"steps": 2.5}, r"SpODE: steps must be an integer of at least 1, got 2\.5"),
    ({"radius": 1.0}, r"must be above 1 and finite, got 1\.0; at 1 it is global magnitude pruning, use magnitude"),
    ({"radius": 0.5}, r"SpODE: radius must be above 1 and finite, got 0\.5"),
    ({"radius": float("nan")}, "SpODE: radius must be above 1 and finite, got nan"),
    ({"radius": float("inf")}, "SpODE: radius must be above 1 and finite, got inf"),
    ({"momentum": 1.0}, r"SpODE: momentum must be in \[0, 1\), got 1\.0"),
    ({"floor": -1}, "SpODE: floor must not be negative, got -1"),
    ({"polariser": "hard"}, "SpODE: polariser must be one of ohh, ohm, oh, qt, qtm, gau, id, got 'hard'"),
    ({"measure": "l0"}, "SpODE: measure must be one of l1, l2, got 'l0'"),
    ({"path": "cosine"}, "SpODE: path must be one of exp, lin, invexp, hess, got 'cosine'"),
    ({"radius_path": "exp"}, "SpODE: radius_path must be one of fixed, invexp, hess, search, got 'exp'"),
    ({"scope": "layer"}, "SpODE: scope must be one of global, local, got 'layer'"),
    ({"field_scope": "layer"}, "SpODE: field_scope must be one of global, local, got 'layer'"),
    ({"density_from": "G"}, "SpODE: density_from must be one of schedule, measure, got 'G'"),
], ids=str)  # fmt: skip
def test_bad_fields_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        SpODE(**options)


@pytest.mark.parametrize("share", [0.0, -0.1, 5.0, float("nan")])
def test_bad_shares_are_refused(share):
    model, batches = toy()
    rule = SpODE(steps=2)
    with pytest.raises(RecipeError, match=r"SpODE: density must be a kept share in \(0, 1\]"):
        rule.update(situation(model, rule, batches), Phase(share, True), None)


def test_a_rising_density_is_refused():
    model, batches = toy()
    half = prune(model, SpODE(steps=2), batches, 0.5)[1]
    with pytest.raises(
        RecipeError, match=r"can only fall along the path, but 0\.5 of the units are alive and 0\.8 is asked"
    ):
        prune(model, SpODE(steps=2), batches, 0.8, units=half)


def test_refusals_come_before_the_first_batch():
    model, _ = toy()
    with pytest.raises(
        RecipeError, match=r"0\.weight: SpODE cannot rank a structure with its own regions .* scope='local'"
    ):
        prune(model, SpODE(steps=2), None, 0.5, NM(keep=2, of=4))
    with pytest.raises(RecipeError, match="Global: a floor of 40 units in each of 2 tensors needs 80 units"):
        prune(model, SpODE(steps=2, floor=40), None, 0.1)
    with pytest.raises(RecipeError, match="SpODE: there is nothing to prune; no partition was given"):
        integrate(SpODE(), Now({}, {}, {}), 0.5, 1.1)


def test_a_nan_loss_names_its_step():
    model, batches = toy()
    bad = (torch.full_like(batches[0][0], float("nan")), batches[0][1])
    with pytest.raises(DivergedError, match="the loss is nan at step 2"):
        prune(model, SpODE(steps=5), [*batches[:2], bad], 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_gradient_names_its_step(value):
    model, batches = toy()
    rule = SpODE(steps=5)
    now = situation(model, rule, batches)

    def energy(masks, step, again=False):
        return 1.0, {n: torch.full_like(m, value if step == 3 else 1.0) for n, m in masks.items()}

    with pytest.raises(
        DivergedError, match="gradient of the loss is NaN or infinite at step 3 of the path; check the model"
    ):
        integrate(rule, replace(now, stats={rule.energy: energy}), 0.5, 1.1)


def test_a_zero_gradient_follows_magnitude():
    model, batches = toy()
    rule = SpODE(steps=5)
    now = situation(model, rule, batches)
    flat = replace(
        now, stats={rule.energy: lambda masks, step, again: (0.0, {n: torch.zeros_like(m) for n, m in masks.items()})}
    )
    units, rows = integrate(rule, flat, 0.3, 1.1)
    scores = torch.cat([now.weights[n].abs().flatten() for n in now.parts])
    assert torch.equal(torch.cat(list(units.values())), keep_top(scores, count_kept(0.3, 144)))
    assert [r["cos_Fe"] for r in rows] == [0.0] * 5


def test_a_dead_tensor_has_no_field_of_its_own():
    model, batches = toy()
    dead = {"0.weight": torch.ones(96, dtype=torch.bool), "2.weight": torch.zeros(48, dtype=torch.bool)}
    with pytest.raises(OpenworkError, match="the gradient of the density must not be zero; every mask entry is zero"):
        prune(model, SpODE(steps=3, field_scope="local"), batches, 0.3, units=dead)
