"""The algebra of axes: products, concatenations, and what follows when two of them are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwork.graph.axes import (
    Axis,
    cat,
    cut,
    entries,
    factors,
    find,
    freeze,
    is_frozen,
    leaves,
    measured,
    prod,
    same,
    show,
    tag,
)


def test_same_twice_is_once():
    a, b = Axis(6), Axis(6)
    same(a, b)
    same(b, a)
    assert find(a) is find(b)


def test_two_reshapes_of_one_axis_share_their_factors():
    whole, h, d = Axis(24), Axis(4), Axis(6)
    same(whole, prod(h, d))
    x, y = Axis(8), Axis(3)
    same(whole, prod(x, y))
    assert show(whole) == "(4*(2*3))"
    assert show(x) == "(4*2)"
    assert find(y) is find(factors(d, "prod")[1])


def test_pieces_are_refined_to_common_ends():
    a, b, c, d = Axis(4), Axis(6), Axis(7), Axis(3)
    same(cat(a, b), cat(c, d))
    assert show(c) == "(4+3)"
    assert find(leaves(c)[0]) is find(a)


def test_a_concatenation_of_products_is_a_product():
    """Fused queries, keys and values seen as three pieces and as (3, heads, width)."""
    q, k, v, h, d = Axis(20), Axis(20), Axis(20), Axis(5), Axis(4)
    same(prod(Axis(3), h, d), cat(q, k, v))
    assert find(factors(q, "prod")[0]) is find(factors(v, "prod")[0]) is find(h)
    assert not is_frozen(h)


def test_reshapes_that_do_not_match_freeze_what_they_touch():
    a = Axis(12)
    same(a, prod(Axis(4), Axis(3)))
    same(a, prod(Axis(3), Axis(4)))
    assert is_frozen(a)
    assert "places that do not match" in leaves(a)[0].frozen


def test_a_piece_that_ends_inside_a_block_freezes():
    a = prod(Axis(4), Axis(3))
    same(a, cat(Axis(5), Axis(7)))
    assert all("inside a reshaped block" in leaf.frozen for leaf in leaves(a))


def test_axes_of_different_sizes_freeze():
    a, b = Axis(3), Axis(4)
    same(a, b)
    assert a.frozen == b.frozen == "axes of different sizes meet"


def test_marks_travel_to_parts_and_partners():
    a, h, d = Axis(12), Axis(3), Axis(4)
    tag(a, "heads")
    measured(a, "a norm")
    same(a, prod(h, d))
    freeze(find(h), "first")
    freeze(a, "second")
    assert (find(h).frozen, find(d).frozen) == ("first", "second")
    assert find(d).over == "a norm"
    assert find(h).tags == {"heads", "locked"}


def test_cuts_of_frozen_axes_stay_frozen():
    a = Axis(5, "input")
    assert [p.frozen for p in cut(a, [2, 3])] == ["input", "input"]


def test_entries_of_a_product_cannot_be_told_apart():
    assert entries(prod(Axis(2), Axis(3))) is None
    units = entries(Axis(3))
    assert [u.size for u in units] == [1, 1, 1]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_concatenations_always_align(xs, ys):
    total = min(sum(xs), sum(ys))

    def clipped(sizes):
        out, left = [], total
        for n in sizes:
            out.append(min(n, left))
            left -= out[-1]
        return [n for n in out if n]

    a, b = [Axis(n) for n in clipped(xs)], [Axis(n) for n in clipped(ys)]
    same(cat(*a), cat(*b))
    assert [id(x) for p in a for x in leaves(p)] == [id(x) for p in b for x in leaves(p)]
    assert sum(leaf.size for p in a for leaf in leaves(p)) == total


@pytest.mark.parametrize(("a", "b"), [((2, 3, 4), (6, 4)), ((2, 12), (24,)), ((2, 3, 4), (2, 3, 4)), ((8, 6), (4, 12))])
def test_products_share_leaves(a, b):
    first, second = prod(*map(Axis, a)), prod(*map(Axis, b))
    same(first, second)
    assert [id(x) for x in leaves(first)] == [id(x) for x in leaves(second)]
