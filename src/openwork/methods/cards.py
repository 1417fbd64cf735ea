"""What kind of method each one is, in the words of the handbook: when, from what, how the mask moves, what for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Found = Literal["before training", "during training", "between rounds", "after training"]
Start = Literal["trained", "initial"]
Moves = Literal["static", "shrinks", "drops and grows", "comes and goes"]
Gradients = Literal["none", "for scores", "at updates", "always"]
Goal = Literal["inference", "training and inference", "control"]


@dataclass(frozen=True)
class Card:
    """A method with its defaults, as its paper means it.

    Attributes:
        found: when the mask is found.
        start: the weights it begins with.
        dense: whether a dense network is trained first or on the way (dense-to-sparse); if not, never more weights are
            trained than the budget allows (sparse-to-sparse), and only then savings in training may be claimed.
        moves: what the mask does once it is there. ``static``: chosen at once; ``shrinks``: every mask is part of the
            one before; ``drops and grows``: as many return as go; ``comes and goes``: pruned units may return, their
            number changes.
        gradients: when gradients of pruned weights are looked at.
        goal: what becomes cheaper; a control exists for comparisons.
    """

    found: Found
    start: Start
    dense: bool
    moves: Moves
    gradients: Gradients
    goal: Goal

    @property
    def kind(self) -> str:
        """``dense-to-sparse`` or ``sparse-to-sparse``."""
        return "dense-to-sparse" if self.dense else "sparse-to-sparse"

    def lines(self) -> list[tuple[str, str]]:
        """The card in words: question and answer."""
        return [
            ("the mask is found", self.found),
            ("it begins with", f"{self.start} weights"),
            ("kind", self.kind),
            ("the mask", self.moves if self.moves != "static" else "is static"),
            ("gradients of pruned weights", self.gradients),
            ("goal", self.goal),
        ]

    def to_dict(self) -> dict[str, str]:
        """The fields as plain words."""
        return {"found": self.found, "start": self.start, "kind": self.kind, "moves": self.moves,
                "gradients": self.gradients, "goal": self.goal}  # fmt: skip


_AFTER = Card("after training", "trained", True, "static", "none", "inference")
_SCORED = Card("after training", "trained", True, "static", "for scores", "inference")
_BEFORE = Card("before training", "initial", False, "static", "none", "training and inference")
_SOFT = Card("during training", "initial", True, "static", "always", "inference")
_ROUNDS = Card("between rounds", "initial", True, "shrinks", "none", "inference")

CARDS = {
    "magnitude": _AFTER,
    "random": _BEFORE,
    "random_search": Card("before training", "initial", False, "static", "none", "control"),
    "global_mp": _AFTER,
    "gradual_magnitude": Card("during training", "initial", True, "shrinks", "none", "inference"),
    "taylor": _SCORED,
    "snip": Card("before training", "initial", False, "static", "for scores", "training and inference"),
    "grasp": Card("before training", "initial", False, "static", "for scores", "training and inference"),
    "synflow": Card("before training", "initial", False, "static", "for scores", "training and inference"),
    "spode": _SCORED,
    "spode_iterative": Card("between rounds", "trained", True, "comes and goes", "for scores", "inference"),
    "imp": _ROUNDS,
    "sap": _ROUNDS,
    "acdc": Card("during training", "initial", True, "comes and goes", "none", "training and inference"),
    "set": Card("during training", "initial", False, "drops and grows", "none", "training and inference"),
    "rigl": Card("during training", "initial", False, "drops and grows", "at updates", "training and inference"),
    "sequential_attention_pp": Card("during training", "initial", True, "comes and goes", "always", "inference"),
    "powerpropagation": _SOFT,
    "str": _SOFT,
    "probmask": _SOFT,
    "woodfisher": _SCORED,
    "wanda": _AFTER,
    "sparsegpt": _AFTER,
    "dsnot": _AFTER,
    "ecoflap": _AFTER,
    "icbs": _SCORED,
    "obspa": _AFTER,
    "beta_rank": _AFTER,
    "precrop": _BEFORE,
    "masksparsity": Card("during training", "initial", True, "static", "none", "inference"),
    "group_importance": _AFTER,
}
