"""GraSP: preserve the gradient flow (Wang et al., ICLR 2020)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Grasp
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.topk import TopK
from openwork.schedules import OneShot
from openwork.stats import GradientFlow
from openwork.structure import Element


def grasp(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    batches: int = 1,
    temperature: float = 200.0,
    scope: Literal["auto", "layer", "global"] = "auto",
    mode: Literal["train", "eval"] = "eval",
) -> Recipe:
    """Prune, before training, what hurts the norm of the gradient least.

    S = -w (H g) (eq. 8); removing weight q changes |g|^2 by about 2 S_q, so the largest S are pruned. The loss sees
    logits / temperature.

    Args:
        density: kept share; default 0.1.
        structure: what lives and dies together; S is summed over a unit, with its sign.
        where: which parameters.
        batches: scoring batches; each is cut into two halves.
        temperature: of the logits; without it large logits saturate and H g vanishes.
        scope: ``auto`` is global, or layer for N:M and per-row structures.
        mode: train/eval mode while scoring.

    Differences:
        Linear layers are not re-initialised before scoring (the official code does so on a copy). Exact counts.
        One round; later work scores in several.

    Cost:
        Two gradients and one Hessian-vector product; memory of a double-backward graph. Where an operation has no
        second derivative, H g is a central difference of two more gradients along g.

    When not to use it:
        On a trained network: the paper scores initial weights, and magnitude is ahead on trained ones. Where the
        samples are fitted so well that the scores are noise, a warning says so.

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> ow.prune(model, grasp(density=0.25), data=[batch], loss=F.cross_entropy).density
        0.25

    References:
        Wang, Zhang, Grosse. Picking Winning Tickets Before Training by Preserving Gradient Flow. ICLR 2020,
        arXiv 2002.07376.
    """
    share = settle_density(density, structure, 0.1)
    rule = TopK(Grasp(GradientFlow(batches, temperature, mode)), allocation_of(scope, structure))
    return Recipe("grasp", structure, rule, OneShot(share), None, where)
