"""Do the chosen weights matter? Every method against its own mask shuffled, and on weights drawn anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from openwork.lab.suite import RENEWED, SHUFFLED, Suite

STUDENT = {2: 6.31, 3: 2.92, 4: 2.35, 5: 2.13, 6: 2.02, 7: 1.94, 8: 1.89, 9: 1.86, 10: 1.83}
"""Seeds -> the 95 % point of Student's distribution, one-sided."""
MANY = 1.83


def sanity_of(suite: Suite, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What every method gains over its two sanity controls, seed by seed; empty unless the suite asks for them."""
    if not suite.sanity:
        return []
    runs = {(r["setting"], r["method"], r["density"], r["seed"]): _accuracy(r) for r in records if r["kind"] == "run"}
    told = []
    for setting in suite.settings:
        for contestant in suite.taking_part(setting):
            for density in suite.densities:
                place = {"setting": setting.name, "method": contestant.name, "density": density}
                own = {s: runs.get((setting.name, contestant.name, density, s)) for s in suite.seeds}
                for check, tail in (("mask shuffled", SHUFFLED), ("weights drawn anew", RENEWED)):
                    other = {s: runs.get((setting.name, contestant.name + tail, density, s)) for s in suite.seeds}
                    told.append({**place, "check": check, **_against(own, other)})
    return told


def _against(own: Mapping[int, float | None], other: Mapping[int, float | None]) -> dict[str, Any]:
    pairs = [(a, b) for s, a in own.items() if a is not None and (b := other.get(s)) is not None]
    if not pairs:
        return {"own": None, "control": None, "gain": None, "std": None, "seeds": 0, "verdict": "no result"}
    gains = [a - b for a, b in pairs]
    deviation = stdev(gains) if len(gains) > 1 else None
    return {
        "own": mean(a for a, _ in pairs),
        "control": mean(b for _, b in pairs),
        "gain": mean(gains),
        "std": deviation,
        "seeds": len(gains),
        "verdict": verdict(mean(gains), deviation, len(gains)),
    }


def verdict(gain: float, deviation: float | None, seeds: int) -> str:
    """``better``, ``not better`` or ``one seed``: better means beyond the noise of paired seeds at 95 %.

    Examples:
        >>> verdict(0.02, 0.005, 3), verdict(0.02, 0.02, 3), verdict(-0.1, 0.001, 3), verdict(0.1, None, 1)
        ('better', 'not better', 'not better', 'one seed')
    """
    if deviation is None:
        return "one seed"
    return "better" if gain > STUDENT.get(seeds, MANY) * deviation / math.sqrt(seeds) else "not better"


def _accuracy(record: Mapping[str, Any]) -> float | None:
    found = (record.get("metrics") or {}).get("finetuned")
    return None if record["status"] == "failed" or found is None else float(found["accuracy"])
