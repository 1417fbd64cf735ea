"""iCBS: iterative combinatorial brain surgery, block coordinate descent on the mask (Rosenberg et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from openwork.core.protocols import Structure
from openwork.core.recipe import Recipe
from openwork.core.targets import Select
from openwork.criteria import Magnitude, Random, Saliency, WeightTimesInput
from openwork.errors import RecipeError
from openwork.methods._common import settle_density
from openwork.rules.block_descent import BlockDescent
from openwork.rules.cardinality import Annealing, BestSwap, Exhaustive, Solver
from openwork.schedules import OneShot
from openwork.stats import LayerGradients
from openwork.structure import Element

STARTS: dict[str, Callable[[], Any]] = {
    "magnitude": Magnitude,
    "wanda": WeightTimesInput,
    "gradient": Saliency,
    "random": Random,
}


def icbs(
    density: float | None = None,
    structure: Structure = Element(),
    where: Select = Select(),
    start: Literal["magnitude", "wanda", "gradient", "random"] = "magnitude",
    per_row: bool = False,
    steps: int = 100,
    epochs: int = 1,
    block: int = 256,
    samples: int = 64,
    groups: int = 8,
    pick: Literal["gradient", "magnitude", "random"] = "gradient",
    solver: Literal["annealing", "swap", "exhaustive"] = "annealing",
    restarts: int = 10,
    fix_pruned: float = 0.42,
    fix_kept: float = 0.35,
    tabu: float = 0.4,
    slope: float = 0.75,
    ridge: float = 1e-3,
) -> Recipe:
    """Improve a mask at fixed density: per step, which k weights of a small block to prune, by a quadratic model.

    min x^T Q x over x in {0, 1}^n with sum x = k, Q = (w0 w0^T) * H / 2 + diag(w0 * (H D - c G)) + ridge, H the
    empirical Fisher matrix of single inputs at the present pruned weights, D = w - w0. Kept weights never change.

    Args:
        density: kept share of every tensor; default 0.5.
        structure: single weights compared over the tensor.
        where: which parameters.
        start: whose mask is improved.
        per_row: rank the start inside output rows, as Wanda does.
        steps: blocks per epoch, over all tensors.
        epochs: of the visits.
        block: weights re-decided at once.
        samples: inputs per step, each with a gradient of its own.
        groups: of inputs, used in turn.
        pick: which weights form a block: largest |w0 g| among the pruned and smallest among the kept, or by |w0|.
        solver: ``"annealing"`` (the paper's), ``"swap"`` (best exchange, faster), ``"exhaustive"`` (tiny blocks).
        restarts: of the annealing.
        fix_pruned: lowest share of the pruned weights that stay pruned.
        fix_kept: highest share of the kept ones that stay kept.
        tabu: length of the queue of recent choices, as a share of the weights that may change.
        slope: c, the weight of the first-order term.
        ridge: penalty on the squared change of the weights.

    Differences:
        The tabu rule is lifted for the kept and the pruned pool apart. Entries of Q below 1e-12 of its largest are
        dropped by size (the published code drops negative ones too). Weights without gradients stay by the ridge
        term. The best annealing state is descended by exchanges. No exact or piecewise Hessian.

    Cost:
        ``samples`` forward and backward passes per step, memory samples x numel of the largest tensor, and the solver
        (annealing: 121 sweeps over the block, at most, for all restarts together).

    When not to use it:
        Where a whole model does not fit for a backward pass; after methods that correct the survivors.

    Examples:
        >>> import torch, openwork as ow
        >>> from torch.nn import functional as F
        >>> model, batch = ow.build_model("mlp"), (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
        >>> recipe = icbs(density=0.25, steps=4, block=16, samples=8, groups=1, restarts=2)
        >>> ow.prune(model, recipe, data=[batch], loss=F.cross_entropy).density
        0.25

    References:
        Rosenberg et al. Scalable iterative pruning of large language and vision models using block coordinate descent.
        2024, arXiv 2411.17796.
    """
    if start not in STARTS:
        raise RecipeError(f"icbs: start must be one of {', '.join(STARTS)}, got {start!r}")
    solvers: dict[str, Solver] = {"annealing": Annealing(restarts), "swap": BestSwap(), "exhaustive": Exhaustive()}
    if solver not in solvers:
        raise RecipeError(f"icbs: solver must be one of {', '.join(solvers)}, got {solver!r}")
    rule = BlockDescent(
        STARTS[start](), LayerGradients(samples, groups), solvers[solver], steps, epochs, block, 0.5, pick,
        fix_pruned, fix_kept, tabu, slope, ridge, per_row,
    )  # fmt: skip
    return Recipe("icbs", structure, rule, OneShot(settle_density(density, structure, 0.5)), None, where)
