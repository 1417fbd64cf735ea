"""Prune a language model block by block, from one checkpoint folder into another."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from openwork.cli.output import Bars, console, say, write_json
from openwork.cli.parse import FORMS, options_of, recipe_file_of, selection_of, structure_of, use_threads
from openwork.core.annotations import typed
from openwork.core.recipe import Recipe
from openwork.errors import RecipeError

DTYPES = ("float32", "float64", "bfloat16", "float16")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("model", metavar="DIR", help="Hugging Face folder: config.json and safetensors weights")
    add("--method", help="sparsegpt (the default), wanda, magnitude, or another method (see --reconstruct)")
    add("--density", type=float, help="kept share in (0, 1]")
    add("--recipe", metavar="FILE", help="a recipe file instead of the method, its options and the selection")
    shared_arguments(parser)
    add("--reconstruct", type=float, metavar="LR", help="each block has to return what it did when it was dense: a "
        "loss for methods that need one (spode) or train (sequential_attention_pp), at this learning rate")  # fmt: skip
    add("--device", default="cpu", help="where blocks are computed")
    add("--dtype", choices=DTYPES, help="compute in (default: as stored); the result has the stored dtype")
    add("--memory-gb", type=float, help="activations larger than this go to disk (default: a quarter of what is free)")
    add("--seed", type=int, default=0)
    add("--out", metavar="DIR", help="the new folder")
    add("--overwrite", action="store_true", help="replace an earlier result or a stopped run")
    add("--resume", action="store_true", help="go on with a stopped run, bit for bit")
    add("--evaluate", metavar="FILE", help="also report perplexity on this text, and agreement with the dense model")
    add("--dry-run", action="store_true", help="check everything, print the plan and the coverage, prune nothing")
    add("--quiet", action="store_true", help="print the last line only")


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What every verb asks that prunes a language model: options of the method, where, and calibration."""
    add = parser.add_argument
    add("--structure", help=FORMS)
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="options", help="an option of the method")
    add("--include", action="append", default=[], metavar="PATTERN", help="only parameters that match")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="not these")
    add("--min-units", type=int, metavar="N", help="tensors with fewer units, or that do not fit, stay dense")
    add("--calibration", metavar="FILE|FOLDER", help="text, or a .npy file of token ids")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the model's)")
    add("--samples", type=int, default=128, help="calibration windows")
    add("--length", type=int, help="tokens per window (default: the context, at most 2048)")
    add("--batch", type=int, default=4, help="windows per forward pass")
    add("--blocks", metavar="NAME", help="the list of decoder blocks, when it cannot be found")
    add("--threads", type=int, help="torch threads")


def run(args: argparse.Namespace) -> int:
    """Do it; returns 0 only when the density was really reached."""
    import torch

    from openwork.llm import prune_blockwise
    from openwork.llm.evaluation import evaluation_text
    from openwork.llm.reconstruction import Reconstruction

    use_threads(args.threads)
    out = console(args.json)
    recipe = recipe_of(args)
    if args.memory_gb is not None and not 0 <= args.memory_gb < float("inf"):
        raise RecipeError(f"--memory-gb must be at least 0, got {args.memory_gb}")
    if args.evaluate:
        evaluation_text(args.model, args.evaluate, args.tokenizer)  # said before the work, not behind it

    def tell(plan: str) -> None:
        if not args.quiet:
            say(out, f"{recipe.name}, density {recipe.density:g}, {args.model}\n{plan}")

    with Bars(out, args.quiet) as bars:
        result = prune_blockwise(
            args.model, recipe, args.calibration, out=args.out, blocks=args.blocks, tokenizer=args.tokenizer,
            samples=args.samples, length=args.length, batch=args.batch, device=args.device,
            dtype=None if args.dtype is None else getattr(torch, args.dtype),
            memory=None if args.memory_gb is None else int(args.memory_gb * 1e9), resume=args.resume,
            overwrite=args.overwrite, dry_run=args.dry_run, seed=args.seed, watch=partial(bars.step, word="error"),
            tell=tell, reconstruction=None if args.reconstruct is None else Reconstruction(args.reconstruct),
        )  # fmt: skip
    data = result.to_dict()
    if args.dry_run:
        for c in result.coverage:
            say(out, f"  {c.name:<56} {c.numel:>13,}  {f'{c.units:,} units' if c.units else c.skipped}")
        say(out, f"dry run: {recipe.name} would keep {recipe.density:g} of {result.counts.targeted_numel:,} weights")
        write_json(args.json, data)
        return 0
    if args.evaluate:
        data["evaluation"] = evaluate(args, out)
    if not args.quiet:
        say(out, result.summary())
        _say_skipped(out, result)
    say(out, f"{recipe.name}: density {result.density:.4f}, saved in {args.out}")
    write_json(args.json, data)
    return 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the options describe."""
    return recipe_file_of(args) or method_of(args, args.density)


def method_of(args: argparse.Namespace, density: float | None, **defaults: Any) -> Recipe:
    """The method that the options describe, at one density; ``defaults`` are options that it has unless told."""
    from openwork import methods

    method = args.method or "sparsegpt"
    make = methods.get(method)
    options: dict[str, Any] = {**defaults, **typed(method, make, options_of(args.options))}
    if args.structure:
        options["structure"] = structure_of(args.structure)
    try:
        return make(density=density, where=selection_of(args), **options)
    except TypeError as problem:
        raise RecipeError(f"{method}: {problem}") from None


def evaluate(args: argparse.Namespace, out: Any) -> dict[str, Any]:
    """Perplexity of the dense and the pruned model on one text, and how far they agree; needs both in memory."""
    from openwork.llm.evaluation import compare

    found = compare(args.model, args.out, args.evaluate, args.length, args.tokenizer)
    for name in ("dense", "pruned"):
        p = found[name]
        say(out, f"  {name:<8} perplexity {p['value']:.4f} ({p['targets']:,} targets, window {p['length']})")
    say(out, f"  the next token agrees in {100 * found['agreement']['top1']:.2f} %")
    return found


def _say_skipped(out: Any, result: Any) -> None:
    reasons: dict[str, int] = {}
    for c in result.coverage:
        if c.skipped:
            reasons[c.skipped] = reasons.get(c.skipped, 0) + 1
    for reason, count in reasons.items():
        say(out, f"  {count} tensors left alone: {reason}")
