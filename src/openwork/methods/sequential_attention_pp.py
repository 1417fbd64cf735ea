"""SequentialAttention++: differentiable attention over blocks, phases of search (Yasuda et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Learned
from openwork.errors import RecipeError
from openwork.methods._common import allocation_of, settle_density
from openwork.relax import SoftmaxAttention
from openwork.rules.topk import TopK
from openwork.schedules import Phases, Stretch
from openwork.schedules.phases import Kind
from openwork.structure import Block, Coupling, Depth

_CYCLE: tuple[Kind, ...] = ("soften", "sparse", "dense")
IMAGENET = (
    Stretch("dense", 0.10),
    *(Stretch(kind, 0.10 / 3) for _ in range(6) for kind in _CYCLE),
    Stretch("soften", 0.15),
    Stretch("sparse", 0.15),
)
"""10 % dense, six cycles of 10 % in thirds, one long sparsification of 15 %, 15 % sparse."""
CRITEO = (
    Stretch("dense", 0.20),
    *(Stretch(kind, 0.06 / 3) for _ in range(10) for kind in _CYCLE),
    Stretch("sparse", 0.20),
)
"""20 % dense, ten cycles over the middle 60 %, 20 % sparse."""


def sequential_attention_pp(
    density: float | None = None,
    structure: Structure = Block(8, 8),
    where: Select = Select(),
    steps: int = 1000,
    min_blocks: int | None = None,
    schedule: Literal["imagenet", "criteo"] | tuple[Stretch, ...] = "imagenet",
    exponent: float = 4.0,
    every: int = 1,
    clip: bool = True,
    sparsification: bool = True,
    decay_logits: bool = True,
    scope: Literal["layer", "erk"] = "layer",
    learning_rate: float = 1.0,
    on_reactivate: Literal["keep", "zero"] = "keep",
    reset_logits: bool = False,
) -> Recipe:
    """Train once from scratch; a softmax over the blocks of each layer learns which ones stay.

    Effective weight = W * expand(A) * expand(mask), A = T softmax(L) over all T blocks of the layer (Algorithm 1), so
    that mean(A) = 1. Phases: dense; soften, sparsity(u) = s (1 - e^(-c u)) / (1 - e^(-c)), the blocks with smallest A
    drop and stay off; sparse. Every phase change resets the optimiser. At the end A is folded into W.

    Args:
        density: kept share of the blocks of every pruned layer (k = floor(density T)); default 0.1.
        structure: blocks; any structure without regions works. Coupled units (channels, heads, ...) are scaled where
            they are read.
        where: which parameters.
        steps: optimiser steps of the whole training.
        min_blocks: layers with fewer blocks stay dense, unless ``where`` sets its own ``min_units``. None is 100 as in
            the paper, and 1 for coupled units, of which a layer has few.
        schedule: phase table of the paper's ImageNet or Criteo runs, or stretches of your own.
        exponent: c.
        every: steps between updates inside a soften phase.
        clip: keep A in [density, 1 / density] with the density of its layer.
        sparsification: False replaces soften phases by dense and sparse halves (the paper's ablation), each one phase
            with what stands beside it of its kind.
        decay_logits: False keeps the optimiser's weight decay off the logits (an ablation; the paper decays them).
        scope: ``layer`` keeps the same share in every pruned layer (the paper), ``erk`` Erdos-Renyi-Kernel shares
            whose total is floor(density T) over all pruned layers.
        learning_rate: that of the logits as a multiple of that of their weights.
        on_reactivate: ``keep`` lets blocks come back with the weights they left with (the paper), ``zero`` without.
        reset_logits: True sets the logits to zero at the start of every dense phase, so that each search begins anew.

    Differences:
        The paper prints the clipping range as [n density, n / density], which does not fit mean(A) = 1; thirds inside a
        cycle and logits that start at zero are our choice, the paper is silent.

    Cost:
        One logit per block, one elementwise product per forward pass; dense compute.

    When not to use it:
        On a finished network that cannot be trained again.

    Examples:
        >>> recipe = sequential_attention_pp(density=0.1, structure=Block(8, 8), steps=300)
        >>> recipe.schedule.bounds[0], recipe.schedule.bounds[-1], recipe.where.min_units
        ((0, 30), (255, 300), 100)

    References:
        Yasuda, Axiotis, Fu, Bateni, Mirrokni. SequentialAttention++ for Block Sparsification. NeurIPS 2024,
        arXiv 2402.17902.
    """
    share = settle_density(density, structure, 0.1)
    tables = {"imagenet": IMAGENET, "criteo": CRITEO}
    if isinstance(schedule, str) and schedule not in tables:
        raise RecipeError(
            f"sequential_attention_pp: schedule must be 'imagenet', 'criteo' or stretches, got {schedule!r}"
        )
    stretches = tables[schedule] if isinstance(schedule, str) else tuple(schedule)
    if not sparsification:
        stretches = _merged(half for s in stretches for half in _without(s))
    if min_blocks is None:
        min_blocks = 1 if isinstance(structure, Coupling | Depth) else 100
    if where.min_units == 1:
        where = replace(where, min_units=min_blocks)
    if scope not in ("layer", "erk"):  # a softmax over one layer says nothing about another, so not global
        raise RecipeError(f"sequential_attention_pp: scope must be 'layer' or 'erk', got {scope!r}")
    rule = TopK(Learned(), allocation_of(scope, structure, "floor", at_least=1), nested=True)
    phases = Phases(share, steps, stretches, exponent, every, "all")
    attention = SoftmaxAttention(clip, learning_rate, decay_logits, on_reactivate, reset_logits)
    return Recipe("sequential_attention_pp", structure, rule, phases, attention, where)


def _without(stretch: Stretch) -> tuple[Stretch, ...]:
    """A soften phase as a dense and a sparse one of half the length."""
    if stretch.phase != "soften":
        return (stretch,)
    return (Stretch("dense", stretch.fraction / 2), Stretch("sparse", stretch.fraction / 2))


def _merged(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """Neighbours of one kind as one phase: nothing changes between them, so nothing may restart there."""
    return tuple(
        Stretch(kind, min(1.0, sum(s.fraction for s in run))) for kind, run in groupby(stretches, lambda s: s.phase)
    )
