"""MaskSparsity as a rule: choose the units early, penalise their scales alone, remove them later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from openwork.allocation import Uniform
from openwork.core.now import EMPTY, Now, Phase, Update
from openwork.core.partition import Partition
from openwork.core.protocols import Allocation, Rule
from openwork.core.select import keep_top
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.rules.scale_penalty import Kind, MaskedScalePenalty, check_penalty

SMALL = 0.01
"""The threshold of the paper: scales below it count as gone."""


def scales_of(part: Partition) -> dict[str, Tensor]:
    """The scales that stand on the units of a coupled partition: parameter name -> the unit of every entry, or -1.

    A scale is a vector called ``weight`` beside a vector called ``bias`` (PReLU has none), both along the units.
    """
    sites = [s for s in getattr(part, "sites", ()) if not s.consumes]
    shapes = dict(getattr(part, "shapes", ()))
    vectors = {s.tensor: s.labels for s in sites if len(shapes[s.tensor]) == 1}
    pairs = [(n, n.rpartition(".")) for n in vectors]
    return {n: vectors[n] for n, (path, dot, last) in pairs if last == "weight" and f"{path}{dot}bias" in vectors}


def units_of(values: Tensor, labels: Tensor, n_units: int) -> Tensor:
    """Values along an axis, summed over the entries of each unit ``[n_units]``."""
    own = labels >= 0
    return torch.zeros(n_units, dtype=values.dtype, device=values.device).index_add(0, labels[own], values[own])


@dataclass(frozen=True)
class MaskedScales(Rule):
    """Slim, choose, penalise, remove; made for the schedule ``Announced``.

    In the phase ``slim`` the penalty acts on all scales (Network Slimming). At ``choose`` the units that will go are
    those with the smallest ``|gamma|``, and with ``restart`` the weights of the groups return to what they were before
    slimming. Until they are removed, the penalty acts on their scales alone. Groups without a scale are chosen by the
    norm of their units and not penalised; the log names them.

    ``vote``: every norm of a residual stream marks the units that it would remove, most marks go first, ``|gamma|``
    decides among equals. Without, ``|gamma|`` is summed over the norms.
    """

    allocation: Allocation = field(default_factory=lambda: Uniform(at_least=1))
    lam: float = 5e-4
    norm: Kind = "l1"
    lr: float = 0.0
    vote: bool = False
    restart: bool = True

    def __post_init__(self) -> None:
        check_penalty("MaskedScales", self.lam, self.norm)

    def init(self, now: Now) -> Any:
        if not any(scales_of(p) for p in now.parts.values()):
            raise RecipeError(
                f"{next(iter(now.parts))}: no unit has a normalisation scale (BatchNorm with affine=True), and "
                "MaskedScales penalises nothing else; use ow.channels(example=x) on a network with norms"
            )

    def on_grad(self, now: Now, state: Any) -> Mapping[str, Tensor]:
        if state is None or now.phase not in ("slim", "choose", "masked"):
            return EMPTY
        masks = self._marked(now, state["gone"] if now.phase != "slim" else None)
        penalty = MaskedScalePenalty(masks, self.lam, self.norm)
        return {
            n: now.grads[n] + penalty.gradient(n, now.weights[n], self.lr)
            for n, mask in masks.items()
            if n in now.grads and bool(mask.any())
        }

    def _marked(self, now: Now, gone: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Scale -> bool, True = penalised; all of them without ``gone``."""
        found: dict[str, Tensor] = {}
        for name, part in now.parts.items():
            for scale, labels in scales_of(part).items():
                at = labels.to(now.weights[scale].device)
                mask = at >= 0 if gone is None else (at >= 0) & gone[name][at.clamp(min=0)]
                found[scale] = found[scale] | mask if scale in found else mask
        return found

    def update(self, now: Now, phase: Phase, state: Any) -> Update:
        if phase.name == "slim":
            return Update(dict(now.units), state={"dense": {n: w.clone() for n, w in now.weights.items()}})
        if phase.name == "choose":
            scores = {n: self._score(n, p, now, phase.share) for n, p in now.parts.items()}
            counts = self.allocation(now, scores, phase.share)
            gone = {n: ~keep_top(scores[n], counts[n]) for n in scores}
            back = state["dense"] if state and self.restart else {}
            plain = [n for n, p in now.parts.items() if not scales_of(p)]
            return Update(dict(now.units), back, {"gone": gone}, log={"chosen_by_norm": plain}, scores=scores)
        if state is None or "gone" not in state:
            raise RecipeError("MaskedScales removes what it chose before; use the schedule Announced")
        units = {n: ~gone for n, gone in state["gone"].items()}
        return Update(units, log=self._told(now, state["gone"]))

    def chosen(self, update: Update) -> Mapping[str, Tensor] | None:
        if update.state is None or "gone" not in update.state:
            return None
        return {n: ~gone for n, gone in update.state["gone"].items()}

    def settled(self, now: Now, update: Update, units: Mapping[str, Tensor]) -> Update:
        gone = {n: ~u for n, u in units.items()}
        return replace(update, units=dict(now.units), state={**update.state, "gone": gone})

    def _score(self, name: str, part: Partition, now: Now, share: float) -> Tensor:
        sizes = [units_of(now.weights[s].abs(), at, part.n_units) for s, at in scales_of(part).items()]
        if not sizes:
            return Magnitude()(part, now)
        total = torch.stack(sizes).sum(0)
        if not self.vote or len(sizes) == 1:
            return total
        keep = int(self.allocation(now, {name: total}, share)[name])
        votes = torch.stack([~keep_top(size, keep) for size in sizes]).sum(0)
        return total / (2 * total.max().clamp_min(1e-12)) - votes  # below one vote apart: decides among equals only

    def _told(self, now: Now, gone: Mapping[str, Tensor]) -> dict[str, Any]:
        """How far the penalty has come: mean ``|gamma|`` that stays, largest that goes, and how many are not small."""
        stay, go = [], []
        for scale, mask in self._marked(now, gone).items():
            size = now.weights[scale].abs()
            stay.append(size[~mask])
            go.append(size[mask])
        kept, left = torch.cat(stay), torch.cat(go)
        return {
            "scale_kept": float(kept.mean()) if len(kept) else 0.0,
            "scale_removed": float(left.max()) if len(left) else 0.0,
            "not_small": int((left > SMALL).sum()),
        }
