"""Unequal densities for the blocks or tensors of a language model, measured before anything is pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.batches import Feed, Loss
from openwork.core.measured import measure
from openwork.core.measuring import Measuring
from openwork.core.now import Now
from openwork.core.protocols import Rule
from openwork.core.stat import Stat
from openwork.core.targets import Select
from openwork.engine.session import Session
from openwork.errors import RecipeError
from openwork.llm.blocks import Rooted
from openwork.llm.blockwise import calibration_windows
from openwork.llm.checkpoint import Checkpoint, load_config
from openwork.llm.homes import FolderHome, Home, ModelHome
from openwork.llm.plan import make_plan
from openwork.llm.run import Run, eager_experts, evaluating
from openwork.llm.skeleton import build_skeleton, find_blocks
from openwork.methods.ecoflap import ecoflap
from openwork.stats import InputSquares
from openwork.structure import Element
from openwork.structure.cover import partition

Tensors = dict[str, Tensor]


class _Needs(Rule):
    """Only asks for the squares of the inputs."""

    needs = frozenset({InputSquares(None)})


class _Outliers:
    """Looks at a block instead of pruning it."""

    def __init__(self, parts: Mapping[str, Any], factor: float):
        self.parts, self.factor = parts, factor
        self.found: dict[str, float] = {}

    def prune(
        self, name: str, block: Rooted, data: Any, device: torch.device
    ) -> tuple[None, dict[str, Any], dict[str, Any]]:
        parts = {n: p for n, p in self.parts.items() if n.startswith(f"{name}.")}
        stat: Stat = InputSquares(None)
        squares = measure(_Needs(), Measuring(block, parts, Feed(data, device), None))[stat]
        named = dict(block.named_parameters())
        scores = torch.cat([(named[n].detach().float().abs() * squares[n].sqrt()).flatten() for n in parts])
        self.found[name] = float((scores > self.factor * scores.mean()).double().mean())
        return None, {}, {}


@torch.no_grad()
def outlier_shares(
    model: nn.Module | str | Path,
    density: float,
    calibration: Tensor | str | Path,
    *,
    factor: float = 5.0,
    spread: float = 0.08,
    where: Select = Select(),
    blocks: str | None = None,
    tokenizer: Any = None,
    samples: int = 128,
    length: int | None = None,
    batch: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """OWL: blocks with more outliers among ``|w| ||x||`` stay denser (Yin et al., ICML 2024, arXiv 2310.05175).

    The outlier ratio of a block is the share of its scores above ``factor`` times their mean. Ratios are stretched
    linearly to a range of ``2 spread`` around ``density``, so that their mean over equal blocks is ``density``.

    Args:
        model: a module, or a Hugging Face folder; it is only read.
        density: mean kept share.
        calibration: as in ``prune_blockwise``, like the arguments that follow.
        factor: M of the paper (5 for unstructured Llama).
        spread: lambda of the paper (0.08).
        where: which parameters.
        blocks: name of the list of blocks.
        tokenizer: of a text.
        samples: windows.
        length: tokens per window.
        batch: windows per forward pass.
        seed: of the windows.

    Returns:
        Block name -> density, for ``prune_blockwise(shares=...)``.

    Raises:
        RecipeError: shares would leave (0, 1].
    """
    if not (spread >= 0 and density - 2 * spread > 0 and density + 2 * spread <= 1):
        raise RecipeError(f"outlier_shares: density {density:g} with spread {spread:g} leaves the range (0, 1]")
    home: Home = ModelHome()
    if isinstance(model, nn.Module):
        module = model
        named = find_blocks(module, blocks)
    else:
        checkpoint = Checkpoint(model)
        module = build_skeleton(load_config(checkpoint.folder), str(checkpoint.folder))
        named = find_blocks(module, blocks)
        home = FolderHome(checkpoint, module, named, None, None)
        tokenizer = tokenizer or checkpoint.folder
    parts, _ = partition(module, Element(), where, skeleton=True, inside=tuple(named))
    windows = calibration_windows(module, calibration, tokenizer, samples, length, seed)
    looking: Any = _Outliers(parts, factor)
    plan = make_plan(module, named, parts, None, 0, torch.float32, "none", None, 0)
    run = Run(module, home, list(named), list(named.values()), looking, torch.device("cpu"), batch, None)
    with evaluating(module), eager_experts(module):
        run.everything(windows, plan, None)
    ratios = torch.tensor([looking.found[n] for n in named], dtype=torch.float64)
    width = float(ratios.max() - ratios.min())
    stretched = (ratios - ratios.min()) * (2 * spread / width) if width > 0 else torch.zeros_like(ratios)
    return {n: float(s) for n, s in zip(named, stretched - stretched.mean() + density, strict=True)}


def zeroth_order_shares(
    model: nn.Module,
    density: float,
    data: Iterable[Any],
    loss: Loss | None = None,
    *,
    where: Select = Select(),
    blocks: str | None = None,
    batches: int | None = 8,
    eps: float = 1e-3,
    p_max: float | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """ECoFLaP's first stage for the block-wise driver: tensor -> density, adding up to ``density`` exactly.

    Args:
        model: in memory; it is only read.
        density: kept share of all targeted weights.
        data: batches with labels, as for ``ow.prune``.
        loss: None for models that return their own.
        where: which parameters; outside the decoder blocks nothing is counted.
        blocks: name of the list of blocks.
        batches: how many; None: all once.
        eps: length of the step.
        p_max: largest sparsity of a tensor; None: the asked one plus 0.1.
        seed: of the noise.
    """
    inside = tuple(find_blocks(model, blocks))
    recipe = ecoflap(density, Element(), where, batches, eps, p_max)
    parts, _ = partition(model, Element(), where, inside=inside)
    session = Session(
        model, ecoflap(density, Element(), Select(include=tuple(parts)), batches, eps, p_max), data, loss, seed
    )
    allocation: Any = getattr(recipe.rule, "allocation")  # noqa: B009
    rule: Any = type("Needs", (Rule,), {"needs": frozenset({allocation.norms})})()
    stats = measure(rule, session.measuring)
    now = Now(session.parts, session.units, {}, stats)
    counts = allocation.shares(now, list(session.parts), density)
    return {n: counts[n] / session.parts[n].n_units for n in counts}
