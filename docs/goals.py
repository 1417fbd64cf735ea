"""What the kernels were meant to reach before they were written, beside what they reach."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

Goals = Mapping[str, Mapping[float, float]]
RESULTS = Path(__file__).parent.parent / "bench" / "results"
LONG, TWICE = 0.1, 1.85  # milliseconds from which a second thread is judged, and how much faster it should make a call
KINDS = {"cold": "cold weights", "linear 16,": "16 tokens", "linear": "linear", "3x3": "3 x 3", "1x1": "1 x 1"}
_TOKENS: Goals = {
    "64x64": {0.9: 8.8},
    "2:4 shared by 4": {0.5: 1.9},
    "32x32": {0.5: 1.95, 0.7: 3.2, 0.8: 4.6, 0.9: 8.4, 0.95: 14.5},
    "16x16": {0.5: 1.9, 0.8: 4.4, 0.9: 7.5, 0.95: 13},
    "4x1": {0.5: 1.9, 0.8: 4.2, 0.9: 7.2, 0.95: 11.5},
    "unstructured": {0.5: 1.22, 0.7: 1.9, 0.8: 2.6, 0.9: 4.5, 0.95: 7.2},
}
_THREE: Goals = {"64x64": {0.9: 8}, "32x32": {0.9: 7}, "4x1": {0.9: 6}, "unstructured": {0.9: 3.6}}
_ONE: Goals = {"32x32": {0.9: 6.8}, "4x1": {0.9: 6.2}, "unstructured": {0.9: 4.0}}
GOALS: Mapping[str, Goals] = {
    "linear 1024,1024,4096": {**_TOKENS, "32x32": {**_TOKENS["32x32"], 0.9: 8.5}},
    "linear 512,768,768": _TOKENS,
    "linear 128,768,3072": _TOKENS,
    "linear 16,4096,4096": {"32x32": {0.9: 13}, "16x16": {0.9: 9.5}, "4x1": {0.9: 7.5}},
    "linear 16,4096,4096, cold": {"32x32": {0.9: 7.5}},
    "linear 1024,1024,4096, bfloat16": {"32x32": {0.9: 8.2}},
    "linear 1024,1024,4096, int8 times int8": {"32x32": {0.9: 30}},
    "decode 4096, cold, float32": {"32x32": {0.5: 3.2, 0.9: 17}, "unstructured": {0.5: 2.3, 0.7: 3.4, 0.9: 6.2}},
    "decode 4096, cold, bfloat16": {"32x32": {0.9: 28}},
    "decode 4096, cold, int8": {"32x32": {0.9: 54}},
    **{f"conv 3x3 256-256 at 14, batch {n}{last}": _THREE for n in (1, 8) for last in ("", ", channels last")},
    **{f"conv 1x1 1024-256 at 14, batch 1{last}": _ONE for last in ("", ", channels last")},
}
"""Case -> pattern -> share of zeros -> times the fastest dense product; decoding over PyTorch's in float32."""


def goal_of(row: Mapping[str, Any]) -> str:
    """The goal of a row of ``kernels.py`` in words; empty where none was set."""
    goal = GOALS.get(row["case"], {}).get(row["pattern"], {}).get(row["sparsity"])
    if goal is None:
        return ""
    return f"{goal:g}" + (
        "" if round(row["over_torch" if "decode" in row["case"] else "over_fastest"], 2) >= goal else ", missed"
    )


def with_goals(rows: list[dict[str, Any]]) -> str:
    """How many goals are met, in words; writes the goal of each row into it."""
    for row in rows:
        row["goal"] = goal_of(row)
    goals = [row["goal"] for row in rows if row["goal"]]
    missed = sum("missed" in goal for goal in goals)
    return (
        f"The goals were set beforehand on a Zen 5 (AVX-512, 4.1 GHz, 39 GB/s for one thread); {len(goals) - missed} of {len(goals)} are "
        "met here. Where memory is the limit (decoding, and 1,024 tokens at 95 %) they move with what others on the machine leave of it."
    )


def with_threads(found: Mapping[str, Any]) -> str:
    """How much faster the calls of a two-thread result are than those of the one-thread result, in words."""
    path = RESULTS / f"{found['bench'].removesuffix('_2')}.json"
    if found["machine"]["threads"] != 2 or not path.is_file():
        return ""
    one = {_place(r): r["ms"] for r in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    gains: dict[str, list[float]] = {}
    for row in found["rows"]:
        before = one.get(_place(row), 0.0)
        if before >= LONG:
            kind = next(name for part, name in KINDS.items() if part in row["case"])
            gains.setdefault(kind, []).append(before / row["ms"])
    words = [f"{kind} {median(g):.2f} ({sum(x >= TWICE for x in g)} of {len(g)})" for kind, g in gains.items()]
    return (
        f"Over one thread, calls that take it {LONG:g} ms or more, in the median (how many reach the goal of {TWICE:g}): "
        f"{', '.join(words)}."
    )


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["case"], row["pattern"], row["sparsity"]
