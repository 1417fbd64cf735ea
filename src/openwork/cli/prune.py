"""Train (or load), prune, fine-tune, evaluate and save one model."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from openwork import methods
from openwork.cli.output import Bars, console, say, write_json
from openwork.cli.parse import (
    FORMS,
    options_of,
    recipe_file_of,
    refuse_pace,
    selection_of,
    structure_of,
    use_threads,
)
from openwork.cli.suite_job import suite_job_of
from openwork.core.protocols import Structure
from openwork.data.registry import LOADERS
from openwork.engine.budget import ALL, check_target
from openwork.errors import FileError, RecipeError
from openwork.lab import Job, Runner
from openwork.lab.budget import SCHEDULES, default_budget
from openwork.lab.precision import PRECISIONS
from openwork.lab.ranks import device_of_rank, ranks, speaks, wait
from openwork.lab.shrinking import met, savings
from openwork.report import report_text
from openwork.ship import read_result, save
from openwork.ship.atomic import refuse_place
from openwork.structure.words import is_coupled

_BUDGET = (
    "epochs", "finetune_epochs", "batch_size", "accumulate", "lr", "finetune_lr", "final_lr", "schedule", "warmup",
    "weight_decay", "optimizer", "precision", "round_epochs", "round_lr",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--model", help="zoo name (default: mlp), folder with config.json (Hugging Face), or package.module:factory")
    add("--data", help=f"{', '.join(LOADERS)}, or package.module:factory (default: digits)")
    add("--root", help="folder that holds the data")
    add("--method", help="a name of `openwork methods` (default: magnitude)")
    add("--structure", help=FORMS)
    add("--density", type=float, help="kept share in (0, 1]")
    for unit in ("macs", "params", "bytes", "latency"):
        add(f"--{unit}", type=float, help=f"share of the {unit} that stays, in place of --density; coupled structures")
    add("--latency-ms", type=float, metavar="MS", help="milliseconds of a forward pass of one input that stay")
    add("--no-compact", action="store_true", help="coupled structures: leave zeros in place, do not cut")
    add("--include", action="append", default=[], metavar="PATTERN", help="only parameters that match")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="not these")
    add("--min-units", type=int, metavar="N", help="tensors with fewer units stay dense")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="options", help="an option of the method")
    add("--recipe", metavar="FILE", help="a recipe file instead of the method, its options and the selection")
    add("--suite", metavar="FILE", help="a run of a suite file of `openwork compare`: model, data, budget and method")
    add("--setting", metavar="NAME", help="which setting of the suite; --method and --density choose in it too")
    add("--checkpoint", metavar="FILE", help="dense weights (safetensors) instead of dense training")
    add(
        "--at",
        choices=("pretrained", "init"),
        help="one-shot: prune a trained (default) or a fresh network",
    )
    add("--model-option", action="append", default=[], metavar="KEY=VALUE", help="an option of the model")
    add("--data-option", action="append", default=[], metavar="KEY=VALUE", help="an option of the data set")
    add("--epochs", type=float, help="dense epochs (default: by data set)")
    add("--finetune-epochs", type=float, help="epochs after pruning (default: by data set)")
    add("--batch-size", type=int)
    add("--accumulate", type=int, metavar="N", help="each step adds up the gradients of N equal parts of its batch")
    add("--lr", type=float, help="peak learning rate of training")
    add("--finetune-lr", type=float, help="peak learning rate of fine-tuning")
    add("--round-epochs", type=float, help="of methods in rounds, after all but the last (default: even shares)")
    add("--round-lr", type=float, help="peak learning rate of those (default: that of fine-tuning)")
    add("--final-lr", type=float, help="learning rate at the end of each stage (default: 0)")
    add("--schedule", choices=SCHEDULES, help="how the learning rate falls (default: cosine)")
    add("--warmup", type=float, help="share of the steps of a stage in which the learning rate rises")
    add("--weight-decay", type=float)
    add("--optimizer", choices=("sgd", "adamw"))
    add("--precision", choices=PRECISIONS, help="of training and evaluation (default: float32)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="torch threads")
    add("--device", default="auto", help="cpu, cuda, cuda:N, or auto; under torchrun one GPU per process")
    add("--out", metavar="DIR", help="result folder")
    add("--overwrite", action="store_true", help="replace an earlier result or a stopped run")
    add("--resume", action="store_true", help="continue a stopped run, bit for bit")
    add("--save-every", type=float, default=20.0, metavar="SECONDS", help="time between checkpoints")
    add("--dry-run", action="store_true", help="check everything, print the recipe and the coverage, train nothing")
    add("--quiet", action="store_true", help="print the last line only")


def run(args: argparse.Namespace) -> int:
    """Do it; returns 0 only when the density was really reached."""
    use_threads(args.threads)
    refuse_pace(args.save_every)
    out = console(args.json)
    job = job_of(args)
    folder = Path(args.out) if args.out else None
    if folder is not None and args.resume and (folder / "openwork.json").is_file():
        say(out, f"{folder} is finished already; nothing to resume")
        write_json(args.json, read_result(folder).to_dict())
        return 0
    if args.dry_run:
        return _dry_run(args, job)
    with ranks(device_of_rank(args.device)):
        work = _work_folder(folder, args)
        with Bars(out, args.quiet or not speaks()) as bars:
            runner = Runner(job, work, watch=bars.step, save_every=args.save_every, device=args.device)
            wait()
            if work is not None:  # only now: a refused job leaves nothing behind
                work.mkdir(parents=True, exist_ok=True)
            model, result = runner.run(resume=args.resume)
        wait()
        leads = speaks()
    if not leads:
        return 0
    model.cpu()
    if folder is not None:
        save(model, result, folder, overwrite=args.overwrite)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    data = result.to_dict()
    if not args.quiet:
        say(out, report_text(data))
        for key, lines in (("target_met", met), ("compaction", savings)):
            for line in lines(data["manifest"][key]) if key in data["manifest"] else ():
                say(out, line)
    final = result.metrics.get("finetuned") or result.metrics.get("pruned") or {}
    where = f", saved in {folder}" if folder is not None else ""
    reached = f"density {result.density:.4f}, accuracy {100 * final.get('accuracy', 0):.2f} %"
    say(out, f"{result.recipe.name}: {reached}{where}")
    write_json(args.json, data)
    return 0


def job_of(args: argparse.Namespace) -> Job:
    """The job that the options describe."""
    given = {k: getattr(args, k) for k in _BUDGET if getattr(args, k) is not None}
    if args.suite:
        return suite_job_of(args, given)
    if args.setting:
        raise RecipeError(f"--setting {args.setting!r} is one of a suite; give its file with --suite, or leave it out")
    data = args.data or "digits"
    recipe, method = recipe_file_of(args), args.method or "magnitude"
    if args.at == "init" and (recipe.drive if recipe is not None else methods.find(method).drive) != "prune":
        name = method if recipe is None else recipe.name
        raise RecipeError(f"--at init must be left out, since {name} trains and prunes in one")
    return Job(
        model=args.model or "mlp",
        data=data,
        method=recipe.name if recipe is not None else method,
        density=args.density,
        structure=args.structure if is_coupled(args.structure or "") else _structure(args.structure),
        where=selection_of(args),
        options=options_of(args.options),
        recipe=recipe,
        budget=replace(default_budget(data), **given),
        seed=args.seed,
        at=args.at or "pretrained",
        checkpoint=args.checkpoint,
        root=args.root,
        model_options=options_of(args.model_option),
        data_options=options_of(args.data_option),
        target=_target(args),
        compact=not args.no_compact,
    )


def _structure(text: str | None) -> Structure | None:
    return structure_of(text) if text else None


def _target(args: argparse.Namespace) -> dict[str, float] | None:
    given = {u: getattr(args, u) for u in ALL if getattr(args, u) is not None}
    if given:
        check_target(given)
    return given or None


def _work_folder(folder: Path | None, args: argparse.Namespace) -> Path | None:
    """Where the stopped run of a result folder lies; refuses to touch anything without a word."""
    if folder is None:
        if args.resume:
            raise RecipeError("--resume needs --out, the folder of the stopped run")
        return None
    work = folder.with_name(f"{folder.name}.partial")
    if folder.exists() and not args.overwrite:
        raise FileError(f"{folder}: exists already; choose another folder or add --overwrite")
    refuse_place(folder, args.overwrite)
    if work.exists() and not args.resume:
        if not args.overwrite:
            raise FileError(f"{work}: holds a stopped run; continue it with --resume or discard it with --overwrite")
        shutil.rmtree(work, ignore_errors=True)  # other ranks may be at it too
    return work


def _dry_run(args: argparse.Namespace, job: Job) -> int:
    from openwork.structure import partition

    out = console(args.json)
    runner = Runner(job)
    parts, coverage = partition(runner.model, runner.recipe.structure, runner.recipe.where)
    units = sum(p.n_units for p in parts.values())
    plan: dict[str, Any] = {
        "recipe": runner.recipe.to_dict(),
        "dense_steps": runner.dense_steps,
        "finetune_steps": runner.finetune_steps,
        "units": units,
        "tensors": [{"name": c.name, "numel": c.numel, "units": c.units, "skipped": c.skipped} for c in coverage],
    }
    for c in coverage:
        say(out, f"  {c.name:<44} {c.numel:>12,}  {f'{c.units:,} units' if c.units else c.skipped}")
    say(
        out,
        f"dry run: {job.method} would keep {runner.recipe.density:g} of {units:,} units; nothing was trained "
        "or written",
    )
    write_json(args.json, plan)
    return 0
