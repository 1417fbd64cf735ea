"""Never slower than dense: layers go back until the whole is as fast as the faster dense model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

from torch import nn

from openwork.runtime.baseline import fastest_dense
from openwork.runtime.fold import replace_module
from openwork.runtime.fuse import Fusions, fuse, unfuse
from openwork.runtime.inputs import call
from openwork.runtime.layers import Packed
from openwork.runtime.plan import DENSE, Choice
from openwork.runtime.prepacked import Prepacked, prepacked
from openwork.runtime.stand_in import stand_in
from openwork.runtime.timing import interleaved
from openwork.runtime.turn import turn

SLOWER = 1.02  # end to end, a packed model needs at most this share of the dense time


@dataclass(frozen=True)
class Made:
    """What is decided for a layer, the module that takes its place, and the errors of all candidates."""

    choice: Choice
    module: nn.Module | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def free(self) -> bool:
        """Whether the layer may be decided anew."""
        return self.choice.reason != "override" and bool(self.choice.times)


@dataclass
class Packing:
    """A packed copy, and what it takes to put its layers back.

    Attributes:
        model: the copy, with the modules of ``made`` in it.
        made: layer -> what was decided.
        originals: layer -> the layer itself, norms folded into it.
        taken: layer -> name and module of the activation that it took over.
        last: whether images are turned to channels last.
        fold: whether forwards are fused.
        inside: what was fused.
    """

    model: nn.Module
    made: dict[str, Made]
    originals: Mapping[str, nn.Module]
    taken: dict[str, tuple[str, nn.Module]]
    last: bool
    fold: bool
    inside: dict[str, Fusions] = field(default_factory=dict)

    def finish(self) -> None:
        """Turn images where they are to be turned, and fuse."""
        if self.last:
            turn(self.model)
        self.inside = fuse(self.model) if self.fold else {}

    def put_back(self, kinds: Mapping[str, str], why: str = "slower end to end") -> None:
        """Layer -> ``dense`` or ``onednn``, the form that takes the place of the one it has, and the reason."""
        unfuse(self.model)
        for name, kind in kinds.items():
            old, original = self.made[name], self.originals[name]
            module = prepacked(original) if kind == "onednn" else None
            reason = old.choice.reason or ("" if kind == old.choice.chosen else why)
            choice = replace(old.choice, chosen=kind, error=old.errors[kind], reason=reason)
            self.made[name] = replace(old, choice=choice, module=module)
            self.model = replace_module(self.model, name, module or original)
            if name in self.taken:
                replace_module(self.model, *self.taken.pop(name))
        self.finish()


def keep_promise(packing: Packing, model: nn.Module, example: Any) -> None:
    """Put the layers that gain least back until the whole is slower than neither dense model, torch's and oneDNN's.

    Packed layers go back to the faster of their dense forms, half of them at a time. Without any, images go back to
    the order they had and every layer to oneDNN, whose layers hand images on in an order that one alone does not gain
    by. Where torch's own model is faster still, these go too.

    Args:
        packing: the copy; changed in place.
        model: as it was given.
        example: an input of it.
    """
    dense, (fast, wide) = copy.deepcopy(model).eval(), fastest_dense(model, example)
    whole = not any(m.free and "onednn" in m.choice.times for m in packing.made.values())
    while True:
        free = [m.choice for m in packing.made.values() if m.free]
        changed, packed = [c for c in free if c.chosen != "dense"], [c for c in free if c.packed]
        if whole and not changed:
            return
        new = stand_in(packing.model, shared=(Packed, Prepacked))
        calls = {"dense": partial(call, dense, example), "new": partial(call, new, example)}
        if not whole:
            calls["onednn"] = partial(call, fast, wide)
        times = {n: median(t) for n, t in interleaved(calls, rounds=7).items()}
        if times.pop("new") <= SLOWER * min(times.values()):
            return
        if packed:
            least = sorted(packed, key=_gain)[: max(1, len(packed) // 2)]
            packing.put_back({c.name: min(_known(c), key=_known(c).__getitem__) for c in least})
        elif not whole:
            whole = True
            if packing.last:
                packing.last = False
                turn(packing.model, last=False)
            packing.put_back({c.name: "onednn" for c in free if "onednn" in c.times}, "faster end to end")
        else:
            least = sorted(changed, key=_gain)[: max(1, len(changed) // 2)]
            packing.put_back({c.name: "dense" for c in least})


def _known(choice: Choice) -> dict[str, float]:
    """Milliseconds of the dense forms of a layer."""
    return {n: t for n, t in choice.times.items() if n in DENSE}


def _gain(choice: Choice) -> float:
    """Milliseconds that a layer saves over its fastest dense form."""
    return min(_known(choice).values()) - choice.times[choice.chosen]
