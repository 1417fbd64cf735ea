"""Whole numbers by the largest remainders: exact totals, bounds, nobody two seats off."""

from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.core.shares import apportioned


@settings(deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=8), st.data())
def test_totals_are_exact_and_counts_near_their_shares(weights, data):
    total = data.draw(st.integers(0, 60))
    exact = [w * total / sum(weights) if sum(weights) else total / len(weights) for w in weights]
    counts = apportioned(exact, total)
    assert sum(counts) == total
    assert all(abs(c - e) < 1 + 1e-6 for c, e in zip(counts, exact, strict=True))
    up = [e - int(e + 1e-9) for c, e in zip(counts, exact, strict=True) if c > e + 1e-9]
    down = [e - int(e + 1e-9) for c, e in zip(counts, exact, strict=True) if c <= e + 1e-9]
    assert not up or not down or min(up) >= max(down) - 1e-6


def test_bounds_and_ties():
    assert apportioned([0.5, 0.5, 0.5, 0.5], 2) == [1, 1, 0, 0]
    assert apportioned([3 * 0.1 * 10, 7 * 0.1 * 10], 10) == [3, 7]
    assert apportioned([10.0, 1.0, 1.0], 12, most=[4, 9, 9]) == [4, 4, 4]
    assert apportioned([0.2, 0.2, 5.6], 6, least=[1, 1, 0]) == [1, 1, 4]
    assert apportioned([2.0, 2.0], 2, least=[2, 2]) == [2, 2]  # as near as the bounds allow
    assert apportioned([], 0) == []
