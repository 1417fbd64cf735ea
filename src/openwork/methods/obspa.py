"""OBSPA: coupled units by layer-wise optimal brain surgery, with or without data (Wang et al., SPA, 2024)."""

from __future__ import annotations

from typing import Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.errors import RecipeError
from openwork.graph.example import Example
from openwork.methods._common import allocation_of, settle_density
from openwork.rules.group_surgeon import GroupSurgeon, Scale
from openwork.rules.topk import Repeat
from openwork.schedules import OneShot
from openwork.stats import NoiseGram, ReaderGram
from openwork.structure import InputChannel


def obspa(
    density: float | None = None,
    structure: Structure = InputChannel(),
    where: Select = Select(),
    calibration: Literal["data", "noise"] = "data",
    scope: Literal["global", "layer"] = "global",
    damp: float = 0.01,
    scale: Scale = "mean",
    rounds: int = 1,
    batches: int | None = None,
    draws: int = 32,
    spectrum: float = 0.0,
    correct: bool = True,
) -> Recipe:
    """Remove the coupled units that their readers can best do without, and refit the readers at once.

    H = X X^T + damp mean(diag) I of a layer's inputs; the unit with input columns p costs
    tr(W_p ([H^-1]_pp)^-1 W_p^T), summed over all layers that read it; the columns K that stay become
    W_K + W_P H_PK H_KK^-1.

    Args:
        density: kept share of the units; default 0.5.
        structure: ``ow.channels(example=x)`` or another coupled structure; ``InputChannel()`` treats every layer alone.
        where: which parameters.
        calibration: ``data`` uses the batches that are given, of the training distribution or of another; ``noise``
            uses none: the model sees random inputs of the example's shape.
        scope: one ranking over the model, or the same share in every group.
        damp: share of the mean diagonal that is added to H.
        scale: what makes costs comparable in one ranking: the mean of the group, the size of the reader's output, or
            nothing.
        rounds: times to choose, with costs and weights updated in between; 1 chooses once.
        batches: calibration batches; None reads the whole data once.
        draws: random inputs of the example's batch size, for ``noise``.
        spectrum: fall of the noise's amplitude over frequency in pictures; 0 is white as in the paper, 1 like
            photographs, and 1.5 did best for both networks measured here.
        correct: False chooses the same units and leaves the readers as they are.

    Differences:
        The refit is done once and jointly for all removed units, which equals the paper's updates one by one. The
        factor 2 / n of H is left out: it cancels. Inputs are those of the dense model. Statistics of BatchNorm are not
        part of a recipe: ``ow.recalibrate`` estimates them anew where data exist.

    Cost:
        One forward pass for X X^T; O(in^3) per reader and round; memory in^2 per reader.

    When not to use it:
        When the pruned model is fine-tuned for long; simpler scores then reach the same.

    Examples:
        >>> import torch, openwork as ow
        >>> model, x = ow.build_model("mlp"), torch.zeros(8, 1, 8, 8)
        >>> result = ow.prune(model, obspa(0.5, ow.channels(example=x), calibration="noise"))
        >>> sum(int(u.sum()) for u in result.units.values())
        128

    References:
        Wang, Rachwan, Guennemann, Charpentier. Structurally Prune Anything: Any Architecture, Any Framework, Any Time.
        2024, arXiv 2403.18955.
    """
    if calibration not in ("data", "noise"):
        raise RecipeError(f"obspa: calibration must be 'data' or 'noise', got {calibration!r}")
    known = getattr(structure, "example", None)
    example = known if isinstance(known, Example) else None
    gram = ReaderGram(batches) if calibration == "data" else NoiseGram(example, draws, spectrum)
    rule = GroupSurgeon(gram, allocation_of(scope, structure), damp, correct, scale)
    share = settle_density(density, structure, 0.5)
    return Recipe("obspa", structure, Repeat(rule, rounds) if rounds != 1 else rule, OneShot(share), None, where)
