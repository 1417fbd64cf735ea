"""Phase tables of AC/DC from four lengths."""

from __future__ import annotations

from openwork.errors import RecipeError
from openwork.schedules.phases import Kind, Stretch


def alternating(
    total: int, warmup: int, period: int, last_dense: int | None = None, final_sparse: int | None = None
) -> tuple[Stretch, ...]:
    """Dense, then sparse and dense in turn, ending sparse; lengths are in epochs, or in any one unit.

    Args:
        total: of the whole training.
        warmup: the first dense phase.
        period: every later phase but the last two.
        last_dense: the last dense phase; None is ``period``.
        final_sparse: the last sparse phase; None is ``period``.

    Raises:
        RecipeError: a length below 1, or lengths that do not add up to the total.

    Examples:
        >>> [round(10 * s.fraction) for s in alternating(10, warmup=1, period=2, final_sparse=5)]
        [1, 2, 2, 5]
    """
    last_dense = period if last_dense is None else last_dense
    final_sparse = period if final_sparse is None else final_sparse
    lengths = {"warmup": warmup, "period": period, "last_dense": last_dense, "final_sparse": final_sparse}
    short = next((n for n, v in {"total": total, **lengths}.items() if v < 1), None)
    if short is not None:
        raise RecipeError(f"alternating: {short} must be at least 1")
    between = total - warmup - last_dense - final_sparse
    count, rest = divmod(between, period)
    if rest or count < 1 or count % 2 == 0:
        raise RecipeError(
            f"alternating: what remains between warm-up and the last two phases must be an odd number of periods of "
            f"{period}, sparse first and last, got {between}; choose other lengths, or list the phases"
        )
    kinds: list[tuple[Kind, int]] = [("dense", warmup)]
    kinds += [(("sparse", "dense")[i % 2], period) for i in range(count)]
    kinds += [("dense", last_dense), ("sparse", final_sparse)]
    return tuple(Stretch(kind, length / total) for kind, length in kinds)
