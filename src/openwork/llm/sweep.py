"""How much of a language model is free: pruned once at every level, its perplexity measured, the drop located."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.recipe import Recipe
from openwork.engine.prune import prune
from openwork.engine.result import Result
from openwork.errors import DataError, FileError, MissingStatistic, OpenworkError, RecipeError
from openwork.llm.blockwise import calibration_windows, prune_blockwise
from openwork.llm.calibration import load_tokenizer, read_text, token_ids
from openwork.llm.evaluation import evaluation_text, fitting, load_model
from openwork.llm.skeleton import find_blocks
from openwork.methods import magnitude
from openwork.metrics.essential import TENTHS, Curve, Essential, bisected, essential_sparsity, sparsity_curve
from openwork.metrics.perplexity import Perplexity, agreement, perplexity
from openwork.ship.export import PACKED
from openwork.structure.cover import partition

EMPTY = 0.99
"""Share of zeros above which a matrix is named: one ranking over the model can take nearly all of it."""


def global_magnitude(density: float) -> Recipe:
    """The smallest of all matrices of the blocks together, as the paper prunes."""
    return magnitude(density, scope="global")


@dataclass(frozen=True)
class Sweep:
    """A measured curve and where it drops.

    Attributes:
        rows: one per level: ``sparsity`` asked, ``reached``, ``loss`` (nats per token, mean over seeds), its ``std``
            and ``seeds``, ``perplexity`` (exp of the loss), ``top1`` (share of equal next tokens, or None), ``layers``
            (sparsity of every pruned matrix, of the first seed) and ``empty`` (those above 99 %).
        curve: score = minus the loss, so that a tolerance of 0.01 is 1 % of perplexity.
        essential: the estimates; the knees are those of the levels asked for, without what bisection added.
        ranked: what was ranked together.
        settings: model, text, windows, calibration and recipe: enough to run it again.
    """

    rows: list[dict[str, Any]]
    curve: Curve
    essential: Essential
    ranked: str
    settings: Mapping[str, Any]

    @property
    def next(self) -> float | None:
        """The level behind the last free one; None when every level is free."""
        return next((s for s in self.curve.sparsity if s > self.essential.tolerance), None)

    @property
    def caveats(self) -> list[str]:
        """What the numbers do not say."""
        e = self.essential
        told = ["pruned in one shot and measured as it is: nothing was trained or repaired behind the mask"]
        if self.next is None:
            told.append(f"every level is free, up to {e.tolerance:g}: the drop lies beyond what was measured")
        else:
            told.append(f"the levels only say that the drop lies between {e.tolerance:g} and {self.next:g}")
        if not e.knee:
            told.append("no knee: behind the break the curve is no steeper than before it; chord and lines mean little")
        if e.allowed > self.settings["tolerance"]:
            told.append(f"the seeds scatter: the tolerance was widened to {e.allowed:.3g}, two standard deviations")
        if self.settings["calibration"] and self.settings["seeds"] == 1:
            told.append("one draw of the calibration: how far another would lie from it is not known")
        empty = [r["sparsity"] for r in self.rows if r["empty"]]
        if empty:
            told.append(f"matrices with more than 99 % of zeros from {min(empty):g} on: the ranking empties layers")
        chance = math.log(self.settings["vocabulary"])
        worse = [at for at, p in zip(self.curve.sparsity, self.curve.score, strict=True) if -p > chance]
        if worse:
            told.append(f"worse than guessing from {worse[0]:g} on: knees over collapsed levels are late; sweep fewer")
        if any(p > self.curve.score[0] + self.settings["tolerance"] for p in self.curve.score):
            told.append("some level is better than the dense model: the text is short, or the model fits it badly")
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the settings, the rows, the estimates and the caveats."""
        found = {**self.essential.to_dict(), "next": self.next}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
        return {**self.settings, "ranked": self.ranked, "rows": self.rows, "essential": finite, "caveats": self.caveats}


def sparsity_sweep(
    folder: str | Path,
    text: str | Path | Tensor | Sequence[Tensor],
    recipe: Callable[[float], Recipe] = global_magnitude,
    calibration: Tensor | str | Path | None = None,
    *,
    levels: Sequence[float] = TENTHS,
    refine: int = 0,
    tolerance: float = 0.01,
    seeds: int = 1,
    agree: bool = False,
    tokenizer: str | Path | None = None,
    length: int | None = None,
    stride: int | None = None,
    blocks: str | None = None,
    samples: int = 128,
    batch: int = 4,
    watch: Callable[[str, int, int, float], None] | None = None,
) -> Sweep:
    """Essential sparsity of a language model: one-shot pruning at every level, without training (2306.03805).

    Only matrices inside the blocks are pruned: embeddings, norms, biases and the head stay, tied ones too. A recipe
    that reads no data ranks what its scope says over all blocks; others go block by block, as ``prune_blockwise`` does.
    The model and one copy of it are in memory; nothing is written.

    Args:
        folder: Hugging Face folder with safetensors weights.
        text: a text or ``.npy`` file of token ids, or ids ``[tokens]``, or one such tensor per document.
        recipe: density -> one-shot recipe; default: magnitude over all blocks together.
        calibration: as in ``prune_blockwise``, for recipes that need data.
        levels: sparsities in [0, 1), at least three above 0; the dense model (0) is always measured.
        refine: how often the interval that holds the drop is halved behind that.
        tolerance: nats per token that a free level may lose; 0.01 is 1 % of perplexity. Two standard deviations of the
            seeds where these are more.
        seeds: runs per level, for what is drawn: calibration windows and random masks.
        agree: also measure how often the most likely next token is that of the dense model.
        tokenizer: folder of the tokenizer; default: the model's.
        length: tokens per window, of the text and of the calibration; default: the context, at most 2048.
        stride: of the windows of the text, as in ``perplexity``.
        blocks: name of the list of blocks; None finds it.
        samples: calibration windows.
        batch: calibration windows per forward pass.
        watch: ``watch("levels", done, of, loss)`` after every run.

    Raises:
        DataError: levels, tolerance or counts out of range, or a text that does not fit.
        RecipeError: a recipe that trains or needs a loss, or a structure that fixes the density.
        MissingStatistic: a recipe that needs calibration, and none.
        FileError: no folder of a model, or a packed one.
        OpenworkError: what pruning refuses, with the level in front.

    Differences:
        The paper fine-tunes encoders behind the mask and language models not; here nothing is fine-tuned. It names no
        rule for the drop: three estimates stand side by side, with what they cannot say.

    References:
        Jaiswal, Liu, Chen, Wang. The Emergence of Essential Sparsity in Large Pre-trained Models. NeurIPS 2023.
    """
    levels = _checked(levels, refine, tolerance, seeds)
    first = recipe(_density(levels[1]))
    _refuse(first, calibration)
    if (Path(folder) / PACKED).is_file():
        raise FileError(f"{folder}: holds a packed model, which cannot be pruned again; sweep the folder it came from")
    documents = _documents(folder, text, tokenizer)
    ids = _calibration(calibration, tokenizer or folder) if first.rule.needs else None
    dense = load_model(folder)
    config: Any = dense.config
    source, window = fitting(dense, documents, length)
    if ids is not None:
        calibration_windows(dense, ids, None, samples, window, 0)  # too short, or foreign: said before the work
    named = find_blocks(dense, blocks)
    inside = tuple(partition(dense, first.structure, first.where, inside=tuple(named))[0])
    blockwise = None if ids is None else partial(
        prune_blockwise, calibration=ids, blocks=blocks, samples=samples, length=window, batch=batch
    )  # fmt: skip
    total = 1 + seeds * (len(levels) - 1 + refine)
    runs = _Runs(dense, recipe, inside, blockwise, source, window, stride, agree, total, watch)
    grid = sparsity_curve(runs, levels, seeds)
    curve = bisected(runs, grid, tolerance, refine)
    last = essential_sparsity(curve, tolerance)
    essential = replace(essential_sparsity(grid, tolerance), tolerance=last.tolerance, allowed=last.allowed)
    settings = {
        "model": str(folder), "text": _named(text), "documents": len(documents), "method": first.name,
        "levels": list(levels), "refine": refine, "tolerance": tolerance, "seeds": seeds, "length": window,
        "stride": stride or window, "targets": runs.counts.targets, "windows": runs.counts.windows,
        "calibration": None if ids is None else {"source": _named(calibration), "samples": samples},
        "vocabulary": int(config.vocab_size), "matrices": len(inside), "recipe": first.to_dict(),
    }  # fmt: skip
    rows = [_row(s, i, curve, runs.found[s]) for i, s in enumerate(curve.sparsity)]
    return Sweep(rows, curve, essential, _ranked(first, len(inside)), settings)


class _Runs:
    """``evaluate`` of a curve: a copy pruned and measured, with everything a row needs remembered."""

    counts: Perplexity

    def __init__(
        self,
        dense: nn.Module,
        recipe: Callable[[float], Recipe],
        inside: tuple[str, ...],
        blockwise: Callable[..., Result] | None,
        source: Tensor | list[Tensor],
        length: int,
        stride: int | None,
        agree: bool,
        total: int,
        watch: Callable[[str, int, int, float], None] | None,
    ):
        self.dense, self.recipe, self.inside, self.blockwise = dense, recipe, inside, blockwise
        self.source, self.length, self.stride, self.agree = source, length, stride, agree
        self.total, self.watch = total, watch
        self.found: dict[float, list[dict[str, Any]]] = {}

    def __call__(self, sparsity: float, seed: int) -> float:
        runs = self.found.setdefault(sparsity, [])
        if sparsity == 0 and runs:
            return -float(runs[0]["loss"])  # the dense model has no seeds
        try:
            model, zeros = self.pruned(sparsity, seed) if sparsity else (self.dense, {"reached": 0.0, "layers": {}})
            self.counts = perplexity(model, self.source, self.length, self.stride)
        except OpenworkError as problem:
            raise type(problem)(f"at sparsity {sparsity:g}: {problem}") from None
        loss, top1 = math.log(self.counts.value), None
        if self.agree:
            ids = self.source if isinstance(self.source, Tensor) else torch.cat(self.source)
            top1 = agreement(model, self.dense, ids, min(self.length, len(ids))).top1
        runs.append({"loss": loss, "top1": top1, **zeros})
        if self.watch is not None:
            self.watch("levels", sum(map(len, self.found.values())), self.total, loss)
        return -loss

    def pruned(self, sparsity: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """A pruned copy, and how many zeros its matrices have."""
        model, recipe = copy.deepcopy(self.dense), self.recipe(_density(sparsity))
        if self.blockwise is None:
            where = replace(recipe.where, include=self.inside, exclude=())
            result = prune(model, replace(recipe, where=where), seed=seed)
        else:
            result = self.blockwise(model, recipe, seed=seed)
        layers = {n: 1 - int(m.sum()) / m.numel() for n, m in result.masks.items()}
        return model, {"reached": 1 - result.density, "layers": layers}


def _documents(
    folder: str | Path, text: str | Path | Tensor | Sequence[Tensor], tokenizer: str | Path | None
) -> list[Tensor]:
    if isinstance(text, str | Path):
        return evaluation_text(folder, text, tokenizer)
    return [text] if isinstance(text, Tensor) else list(text)


def _calibration(source: Any, speller: str | Path) -> Tensor:
    """Token ids, read once for all levels."""
    spelled = not isinstance(source, Tensor) and Path(source).suffix != ".npy"
    if spelled:
        read_text(source)  # a missing text is named before a missing tokenizer
    return token_ids(source, load_tokenizer(speller) if spelled else None)


def _checked(levels: Sequence[float], refine: int, tolerance: float, seeds: int) -> tuple[float, ...]:
    """The levels in order, with 0."""
    wrong = [s for s in levels if not (isinstance(s, int | float) and 0 <= s < 1)]
    if wrong:
        raise DataError(f"levels must be sparsities in [0, 1), got {wrong[0]!r}; 30 % is 0.3")
    found = tuple(sorted({0.0, *map(float, levels)}))
    if len(found) < 4:
        raise DataError(f"a sweep needs at least three levels above 0 to find a drop, got {list(found[1:])}")
    if refine < 0 or seeds < 1:
        raise DataError(f"refine must be at least 0 and seeds at least 1, got {refine} and {seeds}")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise DataError(f"tolerance must be at least 0 nats per token, got {tolerance}; 0.01 is 1 % of perplexity")
    return found


def _density(sparsity: float) -> float:
    return round(1 - sparsity, 9)


def _refuse(recipe: Recipe, calibration: object) -> None:
    trains = recipe.drive != "prune" or recipe.rule.needs_grads or recipe.relaxation is not None
    if trains or any(stat.needs_loss for stat in recipe.rule.needs):
        raise RecipeError(
            f"{recipe.name} cannot be swept: it trains, or needs the loss of the model; take a one-shot method such as "
            "magnitude, wanda or sparsegpt"
        )
    if recipe.structure.density is not None:
        raise RecipeError(f"{recipe.structure} fixes the density, so there is nothing to sweep; leave the pattern out")
    if recipe.rule.needs and calibration is None:
        raise MissingStatistic(f"{recipe.name} is calibrated at every level; pass calibration (--calibration)")


def _named(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else "token ids"


def _ranked(recipe: Recipe, count: int) -> str:
    structure = getattr(recipe.structure, "per", "tensor")
    together = type(getattr(recipe.rule, "allocation", None)).__name__ == "Global"
    if together and not recipe.rule.needs:
        return f"all {count} matrices of the blocks together"
    if together:
        return "the matrices of each block together"
    return "each row of each matrix" if structure == "row" else "each matrix by itself"


def _row(sparsity: float, at: int, curve: Curve, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    loss = -curve.score[at]
    told = [r["top1"] for r in runs]
    layers = runs[0]["layers"]
    return {
        "sparsity": sparsity,
        "reached": sum(r["reached"] for r in runs) / len(runs),
        "loss": loss,
        "std": curve.std[at] if len(runs) > 1 else None,
        "seeds": [r["loss"] for r in runs],
        "perplexity": math.exp(loss) if loss < 700 else None,
        "top1": None if told[0] is None else sum(told) / len(told),
        "layers": layers,
        "empty": [n for n, s in layers.items() if s > EMPTY],
    }
