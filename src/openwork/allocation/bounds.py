"""Floors and multiples that a partition asks for, met inside the selection and not after it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from openwork.core.now import Now

Counts = dict[str, int | Tensor]


def rounded(now: Now, counts: Mapping[str, int | Tensor]) -> Counts:
    """Counts at the nearest ``multiple`` of every partition (halves go up), and never below its ``at_least``."""
    found: Counts = dict(counts)
    for name, count in counts.items():
        part = now.parts[name]
        multiple, floor = getattr(part, "multiple", 1), getattr(part, "at_least", 0)
        if isinstance(count, int) and (multiple, floor) != (1, 0) and count < part.n_units:
            least = -(-max(floor, 1) // multiple) * multiple
            found[name] = min(part.n_units, max(least, (2 * count + multiple) // (2 * multiple) * multiple))
    return found


def bounded(now: Now, counts: Mapping[str, int | Tensor]) -> Counts:
    """Counts that respect ``at_least`` and ``multiple`` of every partition, with a total as near as they allow.

    Counts go down to a multiple first; what is lost is given back in whole multiples, to the partitions that lost most.
    """
    found: Counts = dict(counts)
    lost: dict[str, int] = {}
    for name, count in counts.items():
        part = now.parts[name]
        multiple, floor = getattr(part, "multiple", 1), getattr(part, "at_least", 0)
        if isinstance(count, Tensor) or (multiple, floor) == (1, 0):
            continue
        least = min(part.n_units, -(-max(floor, 1) // multiple) * multiple)
        down = count // multiple * multiple if count < part.n_units else count
        found[name] = max(least, down)
        lost[name] = count - int(found[name])
    spare = sum(lost.values())
    for name in sorted(lost, key=lambda n: -lost[n]):
        step = min(getattr(now.parts[name], "multiple", 1), now.parts[name].n_units - int(found[name]))
        if 2 * spare >= step > 0 and lost[name] > 0:
            found[name] = int(found[name]) + step
            spare -= step
    for name in sorted(lost, key=lambda n: lost[n]):  # floors have taken more than was given: others pay
        part, multiple = now.parts[name], getattr(now.parts[name], "multiple", 1)
        least = min(part.n_units, -(-max(getattr(part, "at_least", 0), 1) // multiple) * multiple)
        while -2 * spare > multiple and int(found[name]) - multiple >= least:
            found[name] = int(found[name]) - multiple
            spare += multiple
    return found
