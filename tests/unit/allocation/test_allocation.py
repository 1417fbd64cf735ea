"""Counts: hand computed, exact in total, refused when impossible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.allocation import ErdosRenyi, FixedEnds, Global, Uniform, erk_densities
from openwork.allocation.uniform import keep_in
from openwork.core import views
from openwork.core.now import Now
from openwork.core.select import count_kept
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of
from openwork.structure import Element, Tiles


def now(**shapes):
    parts = {n: Tiles(n, views.linear_view(s)) for n, s in shapes.items()}
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    return Now(parts, units, {n: torch.zeros(s) for n, s in shapes.items()})


def scored(here, **values):
    return here, {n: torch.tensor(values[n], dtype=torch.float32) for n in here.parts}


def test_one_ranking_over_all():
    here, scores = scored(now(a=(1, 4), b=(1, 2)), a=[1, 9, 2, 8], b=[5, 5])
    assert Global()(here, scores, 0.5) == {"a": 2, "b": 1}
    assert Global()(here, scores, 4 / 6) == {"a": 2, "b": 2}
    tied = {n: torch.zeros_like(s) for n, s in scores.items()}
    assert Global()(here, tied, 0.5) == {"a": 3, "b": 0}


def test_floors_are_kept_first_and_the_total_stays_exact():
    here, scores = scored(now(a=(1, 4), b=(1, 3)), a=[7, 9, 6, 8], b=[1, 2, 3])
    assert Global(floor=1)(here, scores, 3 / 7) == {"a": 2, "b": 1}
    assert Global(floor=5)(here, scores, 1.0) == {"a": 4, "b": 3}
    assert Global(floor_share=0.3)(here, scores, 4 / 7) == {"a": 2, "b": 2}
    with pytest.raises(
        RecipeError, match="a floor of 2 units in each of 2 tensors needs 4 units, but the budget is 3 of 7"
    ):
        Global(floor=2)(here, scores, 3 / 7)


def test_uniform():
    here, scores = scored(now(a=(1, 4), b=(1, 3)), a=[0] * 4, b=[0] * 3)
    assert Uniform()(here, scores, 0.5) == {"a": 2, "b": 2}
    assert Uniform("floor")(here, scores, 0.5) == {"a": 2, "b": 1}
    assert Uniform("floor", at_least=1)(here, scores, 0.1) == {"a": 1, "b": 1}
    assert Uniform("floor", at_least=9)(here, scores, 0.1) == {"a": 4, "b": 3}


def test_regions_and_quotas():
    view = views.linear_view((2, 6))
    assert keep_in(Tiles("w", view, run=6), 0.4, "ceil") == 3
    nm = Tiles("w", view, run=3, quota=(1, 3))
    assert [keep_in(nm, s, "floor") for s in (1.0, 0.9, 0.5, 1 / 3, 0.1)] == [3, 3, 2, 1, 1]

    class Ids(Tiles):
        def scope(self):
            return torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1])

    assert keep_in(Ids("w", view), 0.5, "ceil", 4).tolist() == [4, 4]
    assert keep_in(Ids("w", view), 0.5, "floor").tolist() == [2, 3]


def test_erk_by_hand():
    # p = (out + in + kh + kw) / (out in kh kw): a 18/36 = 1/2, b 12/32 = 3/8 -> eps from 0.25 * 68 = eps (18 + 12)
    d = erk_densities({"a": (12, 3), "b": (8, 4)}, 0.25)
    eps = 0.25 * 68 / 27
    assert d == pytest.approx({"a": eps * 15 / 36, "b": eps * 12 / 32})
    er = erk_densities({"a": (4, 4, 3, 3), "b": (8, 8)}, 0.2, kernel=False)
    assert er["a"] / er["b"] == pytest.approx((8 / 16) / (16 / 64))
    assert erk_densities({"a": (2, 2), "b": (100, 100)}, 0.05)["a"] == 1.0
    assert erk_densities({"a": (2, 2)}, 1.0) == {"a": 1.0}
    uniform = erk_densities({"a": (4, 9), "b": (8, 8)}, 0.3, power=0.0)
    assert uniform == pytest.approx({"a": 0.3, "b": 0.3})


SHAPES = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=5)


@given(SHAPES, st.floats(0.01, 1.0))
@settings(max_examples=150, deadline=None)
def test_erk_meets_its_mean_and_its_total(shapes, density):
    named = {f"t{i}": s for i, s in enumerate(shapes)}
    d = erk_densities(named, density)
    sizes = {n: a * b for n, (a, b) in named.items()}
    total = sum(sizes.values())
    assert all(0 < v <= 1 + 1e-12 for v in d.values())
    assert sum(d[n] * sizes[n] for n in d) == pytest.approx(density * total, rel=1e-9)
    here = now(**named)
    scores = {n: torch.zeros(sizes[n]) for n in sizes}
    counts = ErdosRenyi(at_least=0)(here, scores, density)
    assert sum(counts.values()) == count_kept(density, total)
    assert all(0 <= counts[n] <= sizes[n] for n in counts)
    assert all(abs(counts[n] - d[n] * sizes[n]) <= 1 + 1e-6 for n in counts)
    if count_kept(density, total) >= len(named):
        floored = ErdosRenyi(at_least=1)(here, scores, density)
        assert sum(floored.values()) == count_kept(density, total)
        assert min(floored.values()) >= 1


def test_impossible_shares_are_refused():
    here, scores = scored(now(a=(1, 4), b=(1, 4)), a=[0] * 4, b=[0] * 4)
    with pytest.raises(RecipeError, match="ErdosRenyi: 2 units cannot be shared with at_least=2 in every tensor"):
        ErdosRenyi(at_least=2)(here, scores, 0.25)
    three, of_three = scored(now(a=(1, 4), b=(1, 4), c=(1, 4)), a=[0] * 4, b=[0] * 4, c=[0] * 4)
    with pytest.raises(RecipeError, match="FixedEnds: 3 units cannot be shared with at_least=2 in every tensor"):
        FixedEnds(last=0.25, at_least=2)(three, of_three, 0.25)
    rows = Tiles("a", views.linear_view((2, 3)), run=3)
    there = Now({"a": rows}, {"a": torch.ones(6, dtype=torch.bool)}, {"a": torch.zeros(2, 3)})
    for allocation, message in ((Global(), "cannot be ranked over the whole model"), (ErdosRenyi(), "use Uniform")):
        with pytest.raises(RecipeError, match=message):
            allocation(there, {"a": torch.zeros(6)}, 0.5)


def test_the_floor_asked_for_reaches_every_scope():
    assert allocation_of("layer", Element()) == Uniform()
    assert allocation_of("layer", Element(), at_least=2) == Uniform(at_least=2)
    assert allocation_of("erk", Element()) == ErdosRenyi()
    assert allocation_of("erk", Element(), at_least=0) == ErdosRenyi(at_least=0)
    assert allocation_of("erk", Element(), "floor", at_least=3) == ErdosRenyi(rounding="floor", at_least=3)
