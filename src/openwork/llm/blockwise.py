"""Prune a language model one decoder block at a time: measure, decide, write, run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.distributed import rank, wait_for_all, world
from openwork.core.masks import Masks
from openwork.core.recipe import Recipe
from openwork.core.strict_json import dumps
from openwork.core.targets import prunable_numel
from openwork.errors import DataError, FileError, MissingStatistic, RecipeError
from openwork.llm.blocks import BlockPruner, Recovery
from openwork.llm.calibration import digest, load_tokenizer, read_text, refuse_long_windows, token_ids, windows_of
from openwork.llm.checkpoint import Checkpoint, load_config
from openwork.llm.heap import at_once
from openwork.llm.homes import FolderHome, Home, ModelHome
from openwork.llm.plan import Plan, make_plan, refuse_full_disk
from openwork.llm.reconstruction import Reconstruction
from openwork.llm.result import BlockwiseResult
from openwork.llm.run import Run, Watch, eager_experts, evaluating
from openwork.llm.skeleton import build_skeleton, find_blocks
from openwork.metrics.density import Densities, densities
from openwork.structure.cover import Covered, partition
from openwork.version import __version__

_STATISTICS = {"InputGram": "gram", "InputSquares": "vector", "InputMoments": "vector"}


@at_once()
@torch.no_grad()
def prune_blockwise(
    model: nn.Module | str | Path,
    recipe: Recipe,
    calibration: Tensor | str | Path | None = None,
    *,
    out: str | Path | None = None,
    blocks: str | None = None,
    shares: Mapping[str, float] | None = None,
    recovery: Recovery | None = None,
    reconstruction: Reconstruction | None = None,
    tokenizer: Any = None,
    samples: int = 128,
    length: int | None = None,
    batch: int = 4,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    memory: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    watch: Watch | None = None,
    tell: Callable[[str], None] | None = None,
) -> BlockwiseResult:
    """Prune the decoder blocks of a causal language model in order, each on what the pruned ones before it produce.

    A folder is read block by block and written anew, with the same tensor names and dtypes, so that
    ``from_pretrained`` loads the result; only one block and the activations are in memory. A run that was stopped goes
    on with ``resume=True`` and gives the same bits. A model in memory is pruned in place.

    Under ``torch.distributed`` every process is called with the same arguments: they share the calibration windows,
    add up their statistics, and take the same decisions; the first one writes the folder.

    Args:
        model: a module, or a Hugging Face folder with safetensors weights.
        recipe: a one-shot recipe whose statistics a block alone can provide (``sparsegpt``, ``wanda``, ``magnitude``);
            with ``reconstruction`` also ``spode``, ``random_search`` and recipes that act over training steps.
        calibration: token ids ``[tokens]`` or ``[windows, length]``, a ``.npy`` file of ids, a text file or a folder of
            texts. None for recipes that need no data.
        out: the new folder; needed for a folder. A stopped run lies in ``out`` + ``.partial``.
        blocks: name of the list of blocks; None finds it.
        shares: block or tensor name -> density, for unequal layers; others get the recipe's.
        recovery: called after each block is pruned, with its masks, inputs and the dense outputs.
        reconstruction: a loss for recipes that need one: each block is to give what it gave when it was dense.
        tokenizer: a tokenizer or a folder that holds one; default: the model's folder.
        samples: windows drawn from a text.
        length: tokens per window; default: the model's context, at most 2048.
        batch: windows per forward pass.
        device: where blocks are computed.
        dtype: to compute in; None: as stored. What is written has the stored dtype.
        memory: bytes of activations that may stay in memory (else they go to a file beside ``out``); None: a quarter of
            what is free.
        resume: go on with a stopped run.
        overwrite: replace ``out``, or discard a stopped run.
        dry_run: check everything, plan, and stop; the result then says that nothing was pruned.
        seed: for the windows and everything random.
        watch: ``watch(stage, done, of, error)`` after every block.
        tell: gets the plan as text before the work.

    Returns:
        The result, with rows per block.

    Raises:
        OpenworkError: whatever cannot be done as asked; a folder's source is never written to.
    """
    _check_recipe(recipe, reconstruction)
    place = _check_options(batch, memory, device)
    needs_data = bool(recipe.rule.needs) or recovery is not None or reconstruction is not None
    if needs_data and calibration is None:
        raise MissingStatistic(
            f"{recipe.name} needs calibration data; pass token ids, a text file or a folder of texts"
        )
    home: Home
    checkpoint = None
    if isinstance(model, nn.Module):
        module, home = model, ModelHome()
        named = find_blocks(module, blocks)
    else:
        checkpoint = Checkpoint(model)
        module = build_skeleton(load_config(checkpoint.folder), str(checkpoint.folder))
        named = find_blocks(module, blocks)
        work = _work_folder(out, resume, overwrite, dry_run) if rank() == 0 else None
        home = FolderHome(checkpoint, module, named, work, dtype)
    parts, coverage = partition(
        module, recipe.structure, recipe.where, skeleton=checkpoint is not None, inside=tuple(named)
    )
    coverage = _with_ties(module, coverage)
    windows = None
    if needs_data and calibration is not None:
        speller = tokenizer if tokenizer is not None or checkpoint is None else checkpoint.folder
        windows = calibration_windows(module, calibration, speller, samples, length, seed)
    _check_processes(resume, recovery or reconstruction, windows)
    pruner = BlockPruner(recipe, parts, _shares(shares, parts, named, recipe), recovery, seed, reconstruction)
    plan = _plan(module, named, parts, recipe, windows, checkpoint, dtype, memory, place)
    if tell is not None:
        tell(plan.text())
    if isinstance(home, FolderHome) and home.work is not None and not dry_run:
        refuse_full_disk(home.work, plan.output + (plan.activations if plan.cached == "disk" else 0))
        home.begin(_identity(recipe, windows, checkpoint, dtype, pruner, batch, seed), resume)
    run = Run(module, home, list(named), list(named.values()), pruner, place, batch, watch)
    if not dry_run:
        mine = windows if windows is None or world() == 1 else windows[rank() :: world()]
        with evaluating(module), eager_experts(module):
            run.everything(mine, plan, Path(out).parent if out is not None else None)
    result = _conclude(module, recipe, parts, coverage, home, run, plan, windows, seed, dry_run)
    if isinstance(home, FolderHome) and home.work is not None and not dry_run:
        assert out is not None
        index = (dumps(result.to_dict(), indent=1) + "\n").encode()
        home.finish({"openwork.json": index}, Path(out), overwrite)
    wait_for_all()
    return result


def _check_processes(resume: bool, recovery: Recovery | Reconstruction | None, windows: Tensor | None) -> None:
    """Several processes share the calibration windows; what cannot be shared is refused."""
    if world() == 1:
        return
    if resume or recovery is not None:
        raise RecipeError("resume and recovery work in one process; run them without torch.distributed")
    if windows is not None and len(windows) < world():
        raise DataError(f"{len(windows)} calibration windows cannot be shared by {world()} processes")


def _check_recipe(recipe: Recipe, reconstruction: Reconstruction | None) -> None:
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"a recipe must be a Recipe, got {type(recipe).__name__}; call a method, e.g. sparsegpt(0.5)")
    if reconstruction is not None:
        reconstruction.refuse(recipe)
        return
    if recipe.drive != "prune" or recipe.rule.needs_grads or recipe.relaxation is not None:
        raise RecipeError(
            f"{recipe.name} works over training steps; pass reconstruction=Reconstruction() (--reconstruct LR) to "
            "train each block, or take a one-shot recipe"
        )
    if any(stat.needs_loss for stat in recipe.rule.needs):
        raise MissingStatistic(
            f"{recipe.name} needs a loss, which one block alone does not have; use ow.prune, or sparsegpt or wanda, "
            "or pass reconstruction=Reconstruction()"
        )


def calibration_windows(
    model: nn.Module, source: Tensor | str | Path, tokenizer: Any, samples: int, length: int | None, seed: int
) -> Tensor:
    """The calibration as token ids ``[windows, length]``."""
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None:
        raise RecipeError(f"{type(model).__name__}: needs a config with vocab_size, as models of transformers have")
    if samples < 1 or (length is not None and length < 1):
        raise RecipeError(f"samples and length must be at least 1, got {samples} and {length}")
    text = not isinstance(source, Tensor) and Path(source).suffix != ".npy"
    if text and isinstance(tokenizer, str | Path):
        read_text(str(source))  # a missing text is named before a missing tokenizer
        tokenizer = load_tokenizer(tokenizer)
    length = length or min(2048, int(getattr(config, "max_position_embeddings", 2048)))
    windows = windows_of(token_ids(source, tokenizer), length, samples, seed, int(vocabulary))
    refuse_long_windows(windows.shape[1], config)
    return windows


def _check_options(batch: int, memory: int | None, device: str | torch.device) -> torch.device:
    """The device, if it is there."""
    if batch < 1:
        raise RecipeError(f"batch must be at least 1 window, got {batch}")
    if memory is not None and memory < 0:
        raise RecipeError(f"memory must be at least 0 bytes, got {memory}")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as problem:
        first = str(problem).splitlines()[0]
        raise RecipeError(f"device {str(device)!r} cannot be used here ({first})") from None


def _with_ties(model: nn.Module, coverage: list[Covered]) -> list[Covered]:
    """Tied tensors say with whom they are tied."""
    owner = {id(p): n for n, p in model.named_parameters()}
    ties: dict[str, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if owner[id(param)] != name:
            ties.setdefault(owner[id(param)], []).append(name)
    return [
        replace(c, skipped=f"{c.skipped}; tied to {', '.join(ties[c.name])}") if c.skipped and c.name in ties else c
        for c in coverage
    ]


def _work_folder(out: str | Path | None, resume: bool, overwrite: bool, dry_run: bool) -> Path | None:
    if out is None:
        if dry_run:
            return None
        raise RecipeError("a folder is never changed in place; pass out=, the folder of the result (--out)")
    out = Path(out)
    work = out.with_name(f"{out.name}.partial")
    if dry_run:
        return work
    if out.exists():
        if not overwrite:
            raise FileError(
                f"{out}: exists already; choose another folder or overwrite it (overwrite=True, --overwrite)"
            )
        if not out.is_dir() or (any(out.iterdir()) and not (out / "openwork.json").is_file()):
            raise FileError(f"{out}: holds no openwork.json, so it will not be overwritten; choose another folder")
    if work.exists() and not resume and not overwrite:
        raise FileError(f"{work}: holds a stopped run; go on with resume=True (--resume) or discard it with overwrite")
    return work


def _shares(
    given: Mapping[str, float] | None, parts: Mapping[str, Any], blocks: Mapping[str, nn.Module], recipe: Recipe
) -> dict[str, float]:
    """Tensor -> density: its own, that of its block, or the recipe's."""
    given = given or {}
    known = {*parts, *blocks}
    for name, share in given.items():
        if name not in known:
            raise RecipeError(f"shares: {name!r} is neither a block nor a targeted tensor")
        if not 0 < share <= 1:
            raise RecipeError(f"shares: {name} must be a density in (0, 1], got {share}")
        if recipe.drive == "attach":
            raise RecipeError(f"shares: {recipe.name} trains to one density; leave shares out")
        if recipe.structure.density is not None and share not in (1, recipe.structure.density):
            raise RecipeError(f"shares: {recipe.structure} fixes the density of {name}, so shares have no room")
    of_block = {p: b for b in blocks for p in parts if p.startswith(f"{b}.")}
    return {p: given.get(p, given.get(of_block[p], recipe.density)) for p in parts}


def _plan(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    parts: Mapping[str, Any],
    recipe: Recipe,
    windows: Tensor | None,
    checkpoint: Checkpoint | None,
    dtype: torch.dtype | None,
    memory: int | None,
    device: torch.device,
) -> Plan:
    if dtype is None:
        first = next(iter(parts))
        stored = model.get_parameter(first).dtype
        if checkpoint is not None:
            stored = next((checkpoint.dtype(n) for n in checkpoint.shapes if n.endswith(first)), stored)
        dtype = stored
    kinds = {_STATISTICS.get(type(s).__name__, "gram") for s in recipe.rule.needs}
    statistics = "gram" if "gram" in kinds else "vector" if kinds else "none"
    size = None if windows is None else (windows.shape[0], windows.shape[1])
    width = int(getattr(getattr(model, "config", None), "hidden_size", 0))
    output = 0 if checkpoint is None else checkpoint.nbytes
    return make_plan(model, blocks, parts, size, width, dtype, statistics, memory, output, device)


def _identity(
    recipe: Recipe,
    windows: Tensor | None,
    checkpoint: Checkpoint | None,
    dtype: torch.dtype | None,
    pruner: BlockPruner,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """What must be equal for a stopped run to go on."""
    assert checkpoint is not None
    return {
        "recipe": recipe.to_dict(),
        "calibration": digest(windows),
        "model": checkpoint.fingerprint(),
        "shares": pruner.shares,
        "recovery": repr((pruner.recovery, pruner.reconstruction)),
        "options": [str(dtype), batch, seed, __version__, torch.__version__],
    }


def _conclude(
    model: nn.Module,
    recipe: Recipe,
    parts: Mapping[str, Any],
    coverage: list[Any],
    home: Home,
    run: Run,
    plan: Plan,
    windows: Tensor | None,
    seed: int,
    dry_run: bool,
) -> BlockwiseResult:
    rows = home.done
    kept = {n: k for row in rows for n, k in row["kept"].items()}
    masks = Masks(run.masks if isinstance(home, ModelHome) else {})
    if isinstance(home, ModelHome) and not dry_run:
        counts = densities(model, masks)
    else:
        targeted = sum(int(p.cost.sum()) for p in parts.values())
        alive = targeted if dry_run else sum(kept.values())
        counts = Densities(alive, targeted, prunable_numel(model, parts), sum(p.numel() for p in model.parameters()))
    manifest = {
        "seed": seed,
        "torch": torch.__version__,
        "calibration": {"sha256": digest(windows), "shape": None if windows is None else list(windows.shape)},
        "dry_run": dry_run,
    }
    log = [{"block": r["name"], "density": r["density"], "error": r["error"], "log": r["log"]} for r in rows]
    return BlockwiseResult(
        recipe, masks, run.units, counts, coverage, log, manifest, kept=kept, blocks=rows, plan=plan
    )  # fmt: skip
