"""Which controls a curve needs before it may be drawn, and which of them a comparison lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
            for control, at in (("random", _random(have, structure, starts)), ("small", _small(here))):
                gaps = [d for d in suite.densities if d not in at]
                if gaps:
                    found.append({**place, "control": control, "what": WORDS[control], "densities": gaps})
    return found


def _random(have: Rows, structure: str, starts: Iterable[bool]) -> set[float]:
    """The densities at which there are random masks of every start."""
    mine = [r for r in have if is_random(r) and r["structure"] == structure]
    return set.intersection(*({r["density"] for r in mine if bool(r["pretrained"]) == s} for s in starts))


def _small(here: Rows) -> set[float]:
    return {r["density"] for r in here if r["method"] == SMALL and (r["finetuned"] or r["missing"])}
