"""The formulas of training costs, and their limits."""

import pytest

from openwork.errors import RecipeError
from openwork.metrics import drop_grow_macs, step_macs


def test_a_step_is_three_forward_passes():
    assert step_macs(100) == 300
    assert step_macs(10, 100) == 120


def test_the_mean_step_of_rigl_has_its_two_limits():
    sparse, dense = 7.0, 100.0
    assert drop_grow_macs(sparse, dense, 1) == pytest.approx((5 * sparse + dense) / 2)
    assert drop_grow_macs(sparse, dense, 1e12) == pytest.approx(3 * sparse)
    assert drop_grow_macs(sparse, dense, 99) == pytest.approx((3 * sparse * 99 + 2 * sparse + dense) / 100)
    assert drop_grow_macs(sparse, dense, 0) == 2 * sparse + dense


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: step_macs(-1), "step_macs: forward must be >= 0 and gradients at least as many, got -1, None"),
        (lambda: step_macs(10, 5), "step_macs: forward must be >= 0 and gradients at least as many, got 10, 5"),
        (lambda: drop_grow_macs(1, 2, -1), "drop_grow_macs: every must not be negative, got -1"),
    ],
)
def test_impossible_costs_are_refused(act, message):
    with pytest.raises(RecipeError, match=message):
        act()
