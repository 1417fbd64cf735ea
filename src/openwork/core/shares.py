"""Whole numbers in proportion to others: every count by its share, the seats left over by the largest remainders."""

from __future__ import annotations

from collections.abc import Sequence


def apportioned(
    exact: Sequence[float], total: int, least: Sequence[int] | None = None, most: Sequence[int] | None = None
) -> list[int]:
    """Whole numbers near ``exact`` that add up to ``total``, as far as the bounds allow.

    Shares are rounded down; what is missing goes to the largest remainders, one each, and what is too much comes from
    the smallest, round after round. Equal remainders go by their order.

    Args:
        exact: the shares.
        total: what the counts must add up to.
        least: a lower bound for each count; 0.
        most: an upper bound for each count; none.

    Examples:
        >>> apportioned([1.5, 2.25, 0.25], 4)
        [2, 2, 0]
        >>> apportioned([1.5, 2.25, 0.25], 4, least=[0, 0, 1])
        [1, 2, 1]
        >>> apportioned([9.0, 1.0], 10, most=[5, 4])
        [5, 4]
    """
    low = list(least) if least is not None else [0] * len(exact)
    high = list(most) if most is not None else [max(0, total)] * len(exact)
    counts = [min(h, max(lo, int(e + 1e-9))) for e, lo, h in zip(exact, low, high, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    while missing := total - sum(counts):
        if missing > 0:
            room = [i for i in order if counts[i] < high[i]]
        else:
            room = [i for i in reversed(order) if counts[i] > low[i]]
        if not room:
            break
        for i in room[: abs(missing)]:
            counts[i] += 1 if missing > 0 else -1
    return counts
