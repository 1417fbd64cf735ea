"""Step -> Phase, at every edge."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.core.now import Phase
from openwork.errors import RecipeError
from openwork.schedules import Cubic, Exponential, Linear, OneShot, Periodic, Phases, Rounds, Stretch
from openwork.schedules.shapes import check_density


def test_one_shot():
    at = OneShot(0.2, at=3)
    assert at(2) == Phase(1.0, False, "dense")
    assert at(3) == Phase(0.2, True, "sparse")
    assert at(4) == Phase(0.2, False, "sparse")
    assert (at.last, at.drive, OneShot(0.2).drive, OneShot(0.2)(0).update) == (3, "attach", "prune", True)


def test_cubic_follows_zhu_and_gupta():
    # s_t = s_f + (s_i - s_f) (1 - p)^3 with s = 1 - share
    curve = Cubic(0.1, begin=10, end=30, every=5, initial=0.9)
    for step, p in ((10, 0), (15, 0.25), (20, 0.5), (25, 0.75)):
        assert curve(step).update
        assert 1 - curve(step).share == pytest.approx(0.9 + (0.1 - 0.9) * (1 - p) ** 3, rel=1e-12)
        assert curve(step + 4).share == curve(step).share
        assert not curve(step + 4).update
    assert curve(9) == Phase(1.0, False, "dense")
    assert curve(30) == Phase(0.1, True, "sparse")
    assert curve(31) == Phase(0.1, False, "sparse")


@pytest.mark.parametrize("kind", [Linear, Cubic, Exponential])
@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 60), st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_gradual_schedules_fall_and_end_exactly(kind, begin, length, every, density):
    schedule = kind(density, begin, begin + length, every)
    seen = [schedule(t) for t in range(begin + length + 5)]
    assert all(a.share >= b.share - 1e-12 for a, b in zip(seen, seen[1:], strict=False))
    assert all(density - 1e-12 <= p.share <= 1 for p in seen)
    assert seen[schedule.last] == Phase(density, True, "sparse")
    assert not any(p.update for p in seen[schedule.last + 1 :])
    # what is in force at a step is what the last update asked for
    updates = [(t, p.share) for t, p in enumerate(seen) if p.update]
    for t, p in enumerate(seen):
        asked = [s for u, s in updates if u <= t]
        assert p.share == (asked[-1] if asked else 1.0)


def test_shares_in_the_middle():
    assert Linear(0.2, 0, 10)(5).share == pytest.approx(0.6)
    assert Exponential(0.25, 0, 10)(5).share == pytest.approx(0.5)
    assert Exponential(0.25, 0, 10, initial=0.5)(0).share == pytest.approx(0.5)


def test_periodic():
    schedule = Periodic(0.3, every=4, end=9)
    assert [t for t in range(20) if schedule(t).update] == [0, 4, 8]
    assert {schedule(t).share for t in range(20)} == {0.3}
    assert [t for t in range(20) if Periodic(0.3, 4, 8)(t).update] == [0, 4]
    assert schedule.last == 0


def test_rounds():
    schedule = Rounds(0.25, 2)
    assert schedule(0) == Phase(1.0, False, "dense")
    assert schedule(1) == Phase(0.5, True, "sparsify")
    assert schedule(2) == Phase(0.25, True, "sparse")
    assert schedule(3) == Phase(0.25, False, "sparse")
    assert (schedule.last, schedule.drive) == (2, "cycle")


SA = (
    Stretch("dense", 0.2),
    Stretch("soften", 0.3),
    Stretch("sparse", 0.1),
    Stretch("dense", 0.1),
    Stretch("sparse", 0.3),
)


def test_phases_by_hand():
    schedule = Phases(0.1, 20, SA, exponent=4.0, every=2)
    assert schedule.bounds == ((0, 4), (4, 10), (10, 12), (12, 14), (14, 20))
    names = "dddd" + "ffffff" + "ss" + "dd" + "ssssss"
    assert [schedule(t).name for t in range(20)] == [{"d": "dense", "f": "soften", "s": "sparse"}[c] for c in names]
    assert [t for t in range(30) if schedule(t).restart] == [4, 10, 12, 14]
    assert [t for t in range(30) if schedule(t).update] == [6, 8, 10, 12, 14]
    for t in (6, 7):
        u = 2 / 6
        assert 1 - schedule(t).share == pytest.approx(0.9 * (1 - math.exp(-4 * u)) / (1 - math.exp(-4)), rel=1e-12)
    assert schedule(4).share == 1.0
    assert schedule(10).share == schedule(25).share == 0.1
    assert schedule(12).share == 1.0
    assert schedule.last == 14


@pytest.mark.parametrize(("restart", "steps"), [("all", [4, 10, 12, 14]), ("dense", [12]), ("none", [])])
def test_restarts(restart, steps):
    schedule = Phases(0.1, 20, SA, restart=restart)
    assert [t for t in range(30) if schedule(t).restart] == steps


@given(st.integers(60, 20_000))
@settings(max_examples=60, deadline=None)
def test_bounds_cover_all_steps_whatever_the_rounding(steps):
    third = 0.1 / 3
    stretches = (
        *(Stretch(k, third) for _ in range(9) for k in ("soften", "sparse", "dense")),
        Stretch("sparse", 0.0999999),
    )
    bounds = Phases(0.1, steps, stretches).bounds
    assert bounds[0][0] == 0
    assert bounds[-1][1] == steps
    assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:], strict=False))
    assert all(abs((b - a) - s.fraction * steps) <= 1.01 for s, (a, b) in zip(stretches, bounds, strict=True))


@pytest.mark.parametrize("bad", [0, -0.1, 1.0001, 50, math.nan, math.inf, True, "0.5", None, 10**400])
def test_densities_that_are_none(bad):
    with pytest.raises(RecipeError, match=r"x: density must be a kept share in \(0, 1\], got "):
        check_density(bad, "x")


def test_percent_slips_are_explained():
    with pytest.raises(RecipeError, match="got 50; 50 % is 0.5"):
        OneShot(50)


def test_curves_must_fall():
    with pytest.raises(RecipeError, match="Cubic: power must be positive, got 0"):
        Cubic(0.5, 0, 9, power=0)
    with pytest.raises(RecipeError, match="Phases: needs every >= 1 and exponent > 0, got 1 and nan"):
        Phases(0.5, 10, (Stretch("sparse", 1.0),), exponent=math.nan)
    with pytest.raises(RecipeError, match="Phases: 0 steps give the sparse phase of 1.000 no step; train longer"):
        Phases(0.5, 0, (Stretch("sparse", 1.0),))
