"""SynFlow: data-free pruning that never disconnects a layer early (Tanaka et al., NeurIPS 2020)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Flow
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import Repeat, TopK
from openwork.schedules import OneShot
from openwork.stats import SynapticFlow
from openwork.structure import Element


def synflow(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    rounds: int = 100,
    input_shape: tuple[int, ...] | None = None,
    scope: Literal["auto", "layer", "global"] = "auto",
) -> Recipe:
    """Prune at initialisation by path strength, re-scored on an exponential path, without any data.

    score = |w| dR/d|w|, R = 1^T prod_l |W_l| 1, measured with an input of ones; density_k = density^(k / rounds).

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together.
        where: which parameters.
        rounds: scoring rounds; 1 loses the guarantee against layer collapse.
        input_shape: of one sample, e.g. ``(1, 28, 28)``; taken from ``data`` when it is not given.
        scope: ``auto`` is global, or layer for N:M and per-row structures.

    Differences:
        Everything is float64 and functional: no sign bookkeeping in the model, no overflow in deep networks.
        Normalisation layers run in eval mode on absolute statistics.

    Cost:
        ``rounds`` passes of one sample.

    When not to use it:
        On transformers, and under norms other than a batch norm: attention, softmax and norms by the values that run
        through them break the homogeneity the conservation law rests on, so they are refused.

    Examples:
        >>> import openwork as ow
        >>> model = ow.build_model("mlp")
        >>> ow.prune(model, synflow(density=0.25, rounds=10, input_shape=(1, 8, 8))).density
        0.25

    References:
        Tanaka, Kunin, Yamins, Ganguli. Pruning neural networks without any data. NeurIPS 2020, arXiv 2006.05467.
    """
    share = settle_density(density, structure, 0.1)
    rule = Repeat(TopK(Flow(SynapticFlow(input_shape)), allocation_of(scope, structure), connected=True), rounds)
    return Recipe("synflow", structure, rule, OneShot(share), None, where)
