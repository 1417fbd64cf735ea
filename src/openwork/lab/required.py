"""Which controls a curve needs before it may be drawn, and which of them a comparison lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openwork.lab.controls import NEAR
from openwork.lab.suite import DENSE, EXTRA, LONG, RANDOM, RENEWED, SHUFFLED, SMALL, Suite

Rows = Sequence[Mapping[str, Any]]
WORDS = {
    "dense": "the dense network",
    "extra": "the dense network with the extra budget",
    "random": "random masks with fair layer shares",
    "small": "a small dense network of as many parameters",
}
"""What a name in ``controls`` stands for."""


def is_random(row: Mapping[str, Any]) -> bool:
    """Whether a row is a random mask that the comparison added, not one that a method's sanity check made."""
    name = str(row["method"])
    return row["role"] == "control" and name.startswith(RANDOM) and not name.endswith((SHUFFLED, RENEWED))


def is_small(row: Mapping[str, Any]) -> bool:
    """Whether a row is a small dense control, of one structure or of all."""
    name = str(row["method"])
    return row["role"] == "control" and (name == SMALL or name.startswith(f"{SMALL} "))


def too_small(rows: Rows) -> list[dict[str, Any]]:
    """Where the nearest small dense network of a method has less than ``NEAR`` of its parameters that are not zero.

    One entry for every setting, density and small network, with the largest such method.

    Returns:
        ``{"setting", "structure", "density", "small", "method"}``, the last two in parameters.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["role"] != "method" or not row["parameters"]:
            continue
        sizes = [r["parameters"] for r in _of(rows, row) if r["density"] == row["density"] and r["parameters"]]
        nearest = min(sizes, key=lambda n: abs(n - row["parameters"]), default=None)
        if nearest is not None and nearest < NEAR * row["parameters"]:
            place = {"setting": row["setting"], "structure": row["structure"], "density": row["density"]}
            told = {**place, "small": nearest, "method": row["parameters"]}
            key = (*place.values(), nearest)
            found[key] = max(told, found.get(key, told), key=lambda t: t["method"])
    return list(found.values())


def _of(rows: Rows, row: Mapping[str, Any]) -> Rows:
    """The small dense networks that stand for the structure of a row."""
    return [
        r for r in rows if is_small(r) and r["setting"] == row["setting"] and r["structure"] in ("-", row["structure"])
    ]


def missing_controls(suite: Suite, rows: Rows) -> list[dict[str, Any]]:
    """One entry for every control that a curve of one setting and structure needs and has no result of.

    A method that starts from a trained network needs the dense network and random masks, both fine-tuned as long; one
    that trains from scratch needs both trained from scratch. A small dense network that cannot exist, because
    the model has no width option, is no gap: its row says why there is none.

    Returns:
        ``{"setting", "structure", "control", "what", "densities"}``; no densities where the control has none.
    """
    found = []
    for setting in suite.settings:
        here = [r for r in rows if r["setting"] == setting.name]
        have = [r for r in here if r["finetuned"]]
        for structure in dict.fromkeys(r["structure"] for r in here if r["role"] == "method"):
            mine = [r for r in here if r["structure"] == structure and r["role"] == "method"]
            starts = {bool(r["pretrained"]) for r in mine}
            place = {"setting": setting.name, "structure": structure}
            for control, names in (("dense", [DENSE]), ("extra", [EXTRA if s else LONG for s in sorted(starts)])):
                if not all(any(r["method"] == n for r in have) for n in names):
                    found.append({**place, "control": control, "what": WORDS[control], "densities": []})
            for control, at in (("random", _random(have, structure, starts)), ("small", _small(here, structure))):
                gaps = [d for d in suite.densities if d not in at]
                if gaps:
                    found.append({**place, "control": control, "what": WORDS[control], "densities": gaps})
    return found


def _random(have: Rows, structure: str, starts: Iterable[bool]) -> set[float]:
    """The densities at which there are random masks of every start."""
    mine = [r for r in have if is_random(r) and r["structure"] == structure]
    return set.intersection(*({r["density"] for r in mine if bool(r["pretrained"]) == s} for s in starts))


def _small(here: Rows, structure: str) -> set[float]:
    mine = [r for r in here if is_small(r) and r["structure"] in ("-", structure)]
    return {r["density"] for r in mine if r["finetuned"] or r["missing"]}
