"""The direction of SpODE against its closed form, its optimality conditions and random competitors; the curves."""

import math
from itertools import pairwise

import pytest
import torch

from openwork.errors import OpenworkError, RecipeError
from openwork.rules.path import PIECE, Measure, densities, direction, dot, hess_step, norm, radius_at

F64 = torch.float64
PROBLEMS = [(d, seed, radius) for d in (3, 8, 40) for seed in range(20) for radius in (1.01, 1.1, 3.0)]


def problem(d, seed):
    generator = torch.Generator().manual_seed(1000 * d + seed)
    return torch.randn(d, generator=generator, dtype=F64), torch.randn(d, generator=generator, dtype=F64)


def direction_reference(e, g, radius):
    """``x e + y g`` as in the paper's code, with the bracket in its right place."""
    ee, gg, ge = e @ e, g @ g, g @ e
    x = ((radius**2 - 1) / (gg * ee - ge**2)).sqrt()
    return x * e + (1 - x * ge) / gg * g


@pytest.mark.parametrize(("d", "seed", "radius"), PROBLEMS)
def test_direction_is_the_optimum(d, seed, radius):
    e, g = problem(d, seed)
    f = direction(e, g, radius)
    assert float(g @ f) == pytest.approx(1, abs=1e-12)
    assert float(f.norm() * g.norm()) == pytest.approx(radius, rel=1e-12)
    torch.testing.assert_close(f, direction_reference(e, g, radius), rtol=1e-10, atol=1e-12)
    # stationarity: e = mu g + 2 nu F with nu > 0
    both = torch.stack([g, f], dim=1)
    mu_nu = torch.linalg.lstsq(both, e[:, None]).solution
    assert float((both @ mu_nu - e[:, None]).norm()) < 1e-11 * float(e.norm())
    assert float(mu_nu[1]) > 0


@pytest.mark.parametrize("d", [3, 8, 40])
def test_no_feasible_point_is_better(d):
    e, g = problem(d, 7)
    best = float(e @ direction(e, g, 1.5))
    sideways = torch.randn(5000, d, dtype=F64)
    sideways -= (sideways @ g / (g @ g))[:, None] * g
    reach = math.sqrt(1.5**2 - 1) / g.norm() * torch.rand(5000, 1, dtype=F64) ** 0.1
    points = g / (g @ g) + reach * sideways / sideways.norm(dim=1, keepdim=True)
    assert float((points @ g - 1).abs().max()) < 1e-12
    assert float(points.norm(dim=1).max()) <= 1.5 / float(g.norm()) * (1 + 1e-12)
    assert float((points @ e).max()) <= best + 1e-12


@pytest.mark.parametrize("mix", [1e-3, 1e-6, 1e-9])
def test_direction_stays_exact_when_e_is_nearly_parallel_to_g(mix):
    noise, g = problem(40, 3)
    f = direction(5 * g + mix * noise, g, 1.1)
    assert float(g @ f) == pytest.approx(1, abs=1e-12)
    assert float(f.norm() * g.norm()) == pytest.approx(1.1, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("factor", [0.0, 3.0, -0.7])
def test_parallel_or_zero_e_gives_the_shortest_answer(dtype, factor):
    g = problem(40, 1)[1].to(dtype)
    torch.testing.assert_close(direction(factor * g, g, 2.0), g / norm(g) ** 2)


def test_only_the_direction_of_e_matters():
    e, g = problem(8, 0)
    torch.testing.assert_close(direction(1e-8 * e, g, 1.3), direction(e, g, 1.3), rtol=1e-12, atol=0)


def test_radius_one_ignores_e():
    e, g = problem(8, 0)
    assert torch.equal(direction(e, g, 1.0), g / norm(g) ** 2)


def test_tensors_lists_and_dicts_are_one_vector():
    e, g = problem(40, 5)
    whole = direction(e, g, 1.2)
    listed = direction(list(e.split([7, 33])), list(g.split([7, 33])), 1.2)
    named = direction({"a": e[:7], "b": e[7:].view(3, 11)}, {"a": g[:7], "b": g[7:].view(3, 11)}, 1.2)
    torch.testing.assert_close(torch.cat(listed), whole, rtol=1e-13, atol=0)
    assert list(named) == ["a", "b"]
    torch.testing.assert_close(torch.cat([named["a"], named["b"].flatten()]), whole, rtol=1e-13, atol=0)


def test_sums_are_float64_and_cut_into_pieces():
    a, b = torch.full((2 * PIECE + 3,), 0.1), torch.full((2 * PIECE + 3,), 3.0)
    exact_a, exact_b = float(a[0].double()), float((a[0] * b[0]).double())
    assert dot(a, b) == pytest.approx(exact_b * len(a), rel=1e-12)
    assert norm(a) == pytest.approx(exact_a * math.sqrt(len(a)), rel=1e-12)
    a[-1] = math.nan
    assert math.isnan(norm(a))


def test_arguments_are_not_changed():
    e, g = problem(8, 0)
    kept = e.clone(), g.clone()
    direction(e, g, 1.2)
    assert torch.equal(e, kept[0])
    assert torch.equal(g, kept[1])


@pytest.mark.parametrize("radius", [0.99, -1.1, math.nan, math.inf])
def test_a_radius_below_one_is_refused(radius):
    e, g = problem(3, 0)
    with pytest.raises(
        OpenworkError, match=rf"direction: the radius must be at least 1 and finite, got {radius}; below"
    ):
        direction(e, g, radius)


def test_a_zero_gradient_of_the_density_is_refused():
    with pytest.raises(OpenworkError, match="the gradient of the density must not be zero; every mask entry is zero"):
        direction(torch.ones(3), torch.zeros(3), 1.1)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_measure_and_its_gradient(kind):
    m = torch.randn(12, dtype=F64, requires_grad=True)
    cost = torch.arange(1, 13, dtype=F64)
    total = cost.sum()
    value = (cost * m.abs()).sum() / total if kind == "l1" else ((cost * m**2).sum() / total).sqrt()
    slope = torch.autograd.grad(value, m)[0]
    found, grad = Measure(kind, cost).value_and_grad(m.detach())
    assert found == pytest.approx(float(value.detach()), rel=1e-14)
    assert Measure(kind, cost).value(m.detach()) == found
    torch.testing.assert_close(grad, slope, rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_measure_at_binary_masks(kind):
    cost = torch.tensor([1.0, 2.0, 3.0, 10.0])
    binary = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert Measure(kind, cost).value(torch.ones(4)) == pytest.approx(1)
    assert Measure(kind, cost).value(binary) == pytest.approx(0.25 if kind == "l1" else 0.5)
    assert Measure(kind, cost).value_and_grad(torch.zeros(4))[1].tolist() == [0.0] * 4


def test_an_unknown_measure_is_refused():
    with pytest.raises(RecipeError, match="measure must be one of l1, l2, got 'l0'"):
        Measure("l0", torch.ones(3))


def euler(kind, radius, steps, cost, dt=0.01):
    generator, m = torch.Generator().manual_seed(0), torch.ones_like(cost)
    measure, values = Measure(kind, cost), []
    for _ in range(steps):
        value, grad = measure.value_and_grad(m)
        values.append(value)
        e = torch.randn(len(cost), generator=generator, dtype=F64)
        m = m + dt * direction(e, -grad, radius)
    return m, [*values, measure.value(m)]


@pytest.mark.parametrize("radius", [1.0, 1.1, 2.0])
def test_recursion_of_the_l2_density(radius):
    _, values = euler("l2", radius, 50, torch.ones(200, dtype=F64))
    for now, then in pairwise(values):
        assert then**2 == pytest.approx((now - 0.01) ** 2 + (radius**2 - 1) * 0.01**2, abs=1e-12)


def test_l1_falls_by_dt_exactly_while_no_sign_changes():
    m, values = euler("l1", 1.1, 5, torch.arange(1, 201, dtype=F64))
    assert float(m.min()) > 0
    assert values == pytest.approx([1 - 0.01 * k for k in range(6)], abs=1e-12)


def test_radius_one_only_rescales_the_mask():
    m, values = euler("l2", 1.0, 50, torch.ones(200, dtype=F64))
    assert float(m.std()) < 1e-13
    assert values[-1] == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("start", [1.0, 0.3])
def test_densities(start):
    n, end = 20, 0.02
    curves = {kind: densities(kind, start, end, n) for kind in ("exp", "lin", "invexp")}
    for curve in curves.values():
        assert len(curve) == n + 1
        assert curve[0] == pytest.approx(start, abs=1e-15)
        assert curve[-1] == end
        assert all(a > b for a, b in pairwise(curve))
    exp, lin, invexp = ([a - b for a, b in pairwise(c)] for c in curves.values())
    assert exp == pytest.approx(
        [start ** (1 - k / n) * end ** (k / n) * (1 - (end / start) ** (1 / n)) for k in range(n)]
    )
    assert lin == pytest.approx([(start - end) / n] * n)
    assert invexp == pytest.approx(exp[::-1])
    with pytest.raises(RecipeError, match="path must be one of exp, lin, invexp to be planned, got 'cosine'"):
        densities("cosine", 1.0, 0.1, 3)


def walk(steepness, distance=0.9):
    steps, remaining = [], distance
    for k in range(len(steepness)):
        steps.append(hess_step(remaining, steepness[: k + 1], len(steepness) - k))
        remaining -= steps[-1]
    return steps, remaining


def test_hess_steps_cover_the_distance():
    for steepness in ([2.0] * 5, [1.0, 4.0, 0.5, 9.0, 3.0], [0.0, 1.0, 0.0, 2.0], [0.0, 0.0], [1e-30, 1.0, 1.0]):
        steps, rest = walk(steepness)
        assert rest == pytest.approx(0, abs=1e-12)
        assert all(0 <= s <= 0.9 for s in steps)
    assert walk([2.0] * 6)[0] == pytest.approx([0.15] * 6)
    assert walk([1.0, 4.0, 0.5, 9.0])[0] == pytest.approx(walk([10.0, 40.0, 5.0, 90.0])[0])


def test_hess_steps_are_short_where_the_loss_is_steep():
    even, steep = hess_step(0.5, [1.0, 1.0], 50), hess_step(0.5, [1.0, 4.0], 50)
    assert even == pytest.approx(0.01)
    # a quarter of the speed: 0.25 / (0.25 + 49 * mean(1, 0.25)) of the way
    assert steep == pytest.approx(0.5 * 0.25 / (0.25 + 49 * 0.625))


def test_radii():
    assert radius_at("fixed", 1.1, 3, 10, 5.0) == 1.1
    curve = [radius_at("invexp", 1.1, k, 10, 5.0) for k in range(10)]
    assert curve == pytest.approx([4 * (1.1 / 4) ** (1 - (k + 1) / 10) for k in range(10)])
    assert curve[-1] == 4
    assert radius_at("hess", 1.1, 0, 10, 0.01) == 1.1
    assert radius_at("hess", 1.1, 0, 10, 0.5) == 2.5
    with pytest.raises(RecipeError, match="radius_path must be one of fixed, invexp, hess, search, got 'wide'"):
        radius_at("wide", 1.1, 0, 10, 0.0)
