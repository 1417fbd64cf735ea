"""Polarisers: their values, exact counts with ties, and their gradients against autograd."""

import math
from statistics import NormalDist

import pytest
import torch

from openwork.core.select import count_kept, keep_top
from openwork.errors import RecipeError
from openwork.rules.polarise import KINDS, polarise

F64 = torch.float64


def soft(n=200):
    m = torch.randn(n, dtype=F64) + 1
    return m, torch.rand(n, dtype=F64) + 0.01


@pytest.mark.parametrize("kind", ["ohh", "ohm", "oh"])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.33, 0.01])
def test_hard_polarisers_are_exact_with_ties(kind, density):
    m = torch.full((30,), 0.5)
    forward, _ = polarise(kind, m, m.abs(), density)
    kept = count_kept(density, 30)
    assert (forward != 0).tolist() == [True] * kept + [False] * (30 - kept)
    assert forward[:kept].unique().tolist() == [0.5 if kind == "ohm" else 1.0]


def expected(kind, m, w, density):
    """The forward mask written with autograd, from the paper's code."""
    a = (m * w).abs()
    fixed = a.detach()
    hard = keep_top(fixed, count_kept(density, len(m))).to(m.dtype)
    if kind == "ohm":
        return m * hard
    if kind == "oh":
        return m * hard / m.detach()
    if kind == "id":
        return m * 1
    q, last = 1 - density, len(m) - 1
    if kind == "gau":
        inner = NormalDist(float(fixed.mean()), float(fixed.std()))
        low, high = inner.inv_cdf(0.9 * q), inner.inv_cdf(q)
    else:
        ordered = fixed.sort().values
        low, high = ordered[int(0.9 * q * last)], ordered[int(q * last)]
    top = math.log(0.9 / 0.1)
    value = torch.sigmoid(-top + (a - low) / (high - low) * 2 * top)
    return value.detach() * m if kind == "qtm" else value


@pytest.mark.parametrize("density", [0.9, 0.3, 0.05])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ohh"])
def test_values_and_gradients_agree_with_autograd(kind, density):
    m, w = soft()
    leaf = m.clone().requires_grad_()
    reference = expected(kind, leaf, w, density)
    upstream = torch.randn(len(m), dtype=F64)
    gradient = torch.autograd.grad(reference, leaf, upstream)[0]
    forward, back = polarise(kind, m, m.abs() * w, density)
    torch.testing.assert_close(forward, reference.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(back(upstream), gradient, rtol=1e-9, atol=1e-12)


def test_ohh_passes_every_gradient_straight_through():
    m, w = soft()
    forward, back = polarise("ohh", m, m.abs() * w, 0.1)
    upstream = torch.randn(len(m), dtype=F64)
    assert int(forward.sum()) == 20
    assert set(forward.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(back(upstream), upstream)


def test_qt_is_nearly_binary_outside_its_quantiles():
    m, w = soft(1000)
    a = m.abs() * w
    forward, _ = polarise("qt", m, a, 0.25)
    ordered = a.sort().values
    assert float(forward[a <= ordered[int(0.9 * 0.75 * 999)]].max()) == pytest.approx(0.1)
    assert float(forward[a >= ordered[int(0.75 * 999)]].min()) == pytest.approx(0.9)


@pytest.mark.parametrize("kind", ["qt", "gau", "qtm"])
def test_sigmoids_end_as_steps_where_their_quantiles_meet(kind):
    """Half of the contexts are zero, as after a binary start, or nothing is to be removed."""
    m, upstream = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]), torch.ones(6)
    same = torch.full((6,), 0.7)
    for density, context in ((1.0, same), (0.5, same)):
        forward, back = polarise(kind, m, context, density)
        kept = count_kept(density, 6)
        assert forward.tolist() == [(v if kind == "qtm" else 1.0) for v in m[:kept].tolist()] + [0.0] * (6 - kept)
        assert bool(torch.isfinite(back(upstream)).all())


def test_zero_masks_give_finite_gradients():
    m = torch.zeros(8)
    for kind in KINDS:
        forward, back = polarise(kind, m, m, 0.5)
        assert bool(torch.isfinite(forward).all())
        assert bool(torch.isfinite(back(torch.ones(8))).all())


@pytest.mark.parametrize("kind", ["ohh", "ohm", "oh"])
def test_a_choice_made_elsewhere_is_used(kind):
    m, alive = torch.ones(4), torch.tensor([False, True, False, True])
    assert polarise(kind, m, torch.tensor([9.0, 1.0, 9.0, 1.0]), 0.5, alive)[0].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_an_unknown_polariser_is_refused():
    with pytest.raises(RecipeError, match="polariser must be one of ohh, ohm, oh, qt, qtm, gau, id, got 'ohho'"):
        polarise("ohho", torch.ones(3), torch.ones(3), 0.5)
