"""PreCropping: smaller dense networks with the layer densities of pruning at initialisation (Cai et al., 2022)."""

from __future__ import annotations

from typing import Literal

from openwork.allocation import Global
from openwork.allocation.crop import PreCrop
from openwork.core.protocols import Rule, Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Flow, Magnitude, Saliency
from openwork.errors import RecipeError
from openwork.graph.example import Example, Tensorlike
from openwork.methods._common import settle_density
from openwork.rules.crop import Crop
from openwork.rules.topk import Repeat, TopK
from openwork.schedules import OneShot
from openwork.stats import LossGradient, SynapticFlow
from openwork.stats.work import LayerMacs
from openwork.structure import Filter

Source = Literal["closed_form", "synflow", "snip", "magnitude"]


def precrop(
    density: float | None = None,
    structure: Structure = Filter(),
    where: Select = Select(),
    source: Source = "closed_form",
    budget: Literal["params", "macs"] = "params",
    rounds: int = 100,
    batches: int = 1,
    rescale: bool = True,
) -> Recipe:
    """Before training, crop channels so that every layer has as many parameters as pruning at initialisation gives it.

    Layer densities p_l: min(1, c / n_l), the maximiser of sum log p_l under sum n_l p_l <= s sum n_l, or those of
    another method. Widths r of the coupled groups a -> b: min sum_l n_l (log r_a + log r_b - log p_l)^2, log r <= 0.

    Args:
        density: kept share of the units; default 0.5. ``ow.prune(..., target={"params": 0.2})`` finds the share at
            which so many parameters (or multiply-accumulates) are left, the paper's budget.
        structure: ``ow.channels(example=x)``; with filters, widths are the densities themselves.
        where: which parameters.
        source: ``closed_form`` needs no data; ``synflow``, ``snip`` and ``magnitude`` rank single weights of the dense
            network over the whole model and keep only the densities.
        budget: what the closed form shares out equally: parameters, or multiply-accumulates.
        rounds: scoring rounds of ``synflow``.
        batches: scoring batches of ``snip``.
        rescale: weights get the scale of their new number of inputs.

    Differences:
        The network is not drawn anew: random channels of the fresh one stay, scaled by sqrt(inputs before / after),
        which is the same draw where initial weights are independent and scaled by fan-in. A scored source is asked for
        the square of the unit share, and widths are then scaled alike. Widths above 1 (PreConfig) are not offered.

    Cost:
        Nothing, or the passes of the source.

    When not to use it:
        On trained networks: which channels stay is left to chance.

    Examples:
        >>> import torch, openwork as ow
        >>> model, x = ow.build_model("lenet"), torch.zeros(1, 1, 28, 28)
        >>> result = ow.prune(model, precrop(structure=ow.channels(example=x)), target={"params": 0.2})
        >>> abs(result.manifest["budget"]["share"] - 0.2) < 0.002
        True

    References:
        Cai, Hua, Chen, Suh, De Sa, Zhang. Structured Pruning is All You Need for Pruning CNNs at Initialization.
        2022, arXiv 2203.02549.
    """
    sources: dict[str, Rule | None] = {
        "closed_form": None,
        "synflow": Repeat(TopK(Flow(SynapticFlow(_shape(structure))), Global()), rounds),
        "snip": TopK(Saliency(LossGradient(batches)), Global()),
        "magnitude": TopK(Magnitude(), Global()),
    }
    if source not in sources or budget not in ("params", "macs"):
        raise RecipeError(
            f"precrop: source must be one of {', '.join(sources)} and budget 'params' or 'macs', got {source!r} and "
            f"{budget!r}"
        )
    example = getattr(structure, "example", None)
    if budget == "macs" and not isinstance(example, Example):
        raise RecipeError("precrop: a budget of macs needs ow.channels(example=x), whose example is run")
    allocation = PreCrop(sources[source], LayerMacs(example) if budget == "macs" and example else None)
    share = settle_density(density, structure, 0.5)
    return Recipe("precrop", structure, Crop(allocation, rescale), OneShot(share), None, where)


def _shape(structure: Structure) -> tuple[int, ...] | None:
    example = getattr(structure, "example", None)
    first = next(iter((*example.args, *example.values)), None) if isinstance(example, Example) else None
    return tuple(first.shape[1:]) if isinstance(first, Tensorlike) else None
