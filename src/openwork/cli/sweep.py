"""Find how much of a language model is free: perplexity at every sparsity, the drop, the knees, one page."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openwork.cli.output import Bars, console, say, write_json
from openwork.cli.parse import use_threads
from openwork.cli.prune_llm import method_of, shared_arguments
from openwork.core.recipe import Recipe
from openwork.errors import FileError, RecipeError
from openwork.report.sweep_page import sweep_html, sweep_lines, sweep_svg, sweep_table
from openwork.ship.atomic import new_folder, refuse_place, write_file


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("model", metavar="DIR", help="Hugging Face folder: config.json and safetensors weights; only read")
    add("--text", metavar="FILE", required=True, help="measured on this text, or on a .npy file of token ids")
    add("--method", default="magnitude", help="a one-shot method of prune-llm; magnitude ranks all blocks together")
    shared_arguments(parser)
    add("--levels", metavar="A,B,...", help="sparsities, or FROM:TO:STEP (default: 0:0.9:0.1); 0 is always measured")
    add("--refine", type=int, default=0, metavar="N", help="halve the interval that holds the drop N times")
    add("--tolerance", type=float, default=0.01, help="nats per token that are free; 0.01 is 1 %% of perplexity")
    add("--seeds", type=int, default=1, help="runs per level, for calibration windows and random masks")
    add("--agreement", action="store_true", help="also how often the next token is that of the dense model")
    add("--stride", type=int, help="tokens between windows of the text (default: the length, no overlap)")
    add("--out", metavar="FILE.html|DIR", help="write the page; a folder also gets curve.svg and openwork.json")
    add("--overwrite", action="store_true", help="replace an earlier page or folder")
    add("--quiet", action="store_true", help="print the last line only")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table and the estimates, write the page."""
    from openwork.llm import sparsity_sweep

    use_threads(args.threads)
    levels = levels_of(args.levels)
    page = _place(args.out, args.overwrite)
    out = console(args.json)
    with Bars(out, args.quiet) as bars:
        found = sparsity_sweep(
            args.model, args.text, partial(_recipe, args), args.calibration, refine=args.refine,
            tolerance=args.tolerance, seeds=args.seeds, agree=args.agreement, tokenizer=args.tokenizer,
            length=args.length, stride=args.stride, blocks=args.blocks, samples=args.samples, batch=args.batch,
            watch=bars.step, **({} if levels is None else {"levels": levels}),
        )  # fmt: skip
    data = found.to_dict()
    if not args.quiet:
        _print(out, data)
    if page is not None:
        _write(page, data, args.overwrite)
    say(out, f"{data['method']}: sparsity {found.essential.tolerance:g} is free{f'; {args.out}' if page else ''}")
    write_json(args.json, data)
    return 0


def levels_of(text: str | None) -> tuple[float, ...] | None:
    """``0.1,0.3`` or ``0:0.9:0.1`` as sparsities.

    Raises:
        RecipeError: no numbers, or steps that do not go up.
    """
    if text is None:
        return None
    try:
        if ":" not in text:
            return tuple(float(word) for word in text.split(",") if word.strip())
        begin, end, step = map(float, text.split(":"))
        steps = (end - begin) / step
    except (ValueError, ZeroDivisionError):
        steps = -1.0
    if not 0 <= steps <= 1000:
        raise RecipeError(f"--levels must read 0.1,0.3,0.5 or FROM:TO:STEP such as 0:0.9:0.1, got {text!r}")
    return tuple(round(begin + i * step, 9) for i in range(int(steps + 1e-9) + 1))


def _recipe(args: argparse.Namespace, density: float) -> Recipe:
    ranked = args.method == "magnitude" and not args.structure
    return method_of(args, density, **({"scope": "global"} if ranked else {}))


def _place(out: str | None, overwrite: bool) -> Path | None:
    """Where the page goes, refused before the work if it cannot."""
    if out is None:
        return None
    path = Path(out)
    if path.suffix != ".html":
        refuse_place(path, overwrite)
    elif path.is_dir() or not path.parent.is_dir():
        raise FileError(f"{path}: must be a file in a folder that exists")
    elif path.exists() and not overwrite:
        raise FileError(f"{path}: exists already; choose another name or --overwrite")
    return path


def _write(path: Path, data: dict[str, Any], overwrite: bool) -> None:
    page = sweep_html(data).encode()
    if path.suffix == ".html":
        write_file(path, page)
        return
    with new_folder(path, overwrite) as folder:
        (folder / "index.html").write_bytes(page)
        (folder / "curve.svg").write_text(sweep_svg(data), encoding="utf-8")
        (folder / "openwork.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _print(out: Console, data: dict[str, Any]) -> None:
    say(out, f"{data['method']}, ranked over {data['ranked']}")
    say(out, f"{data['model']} on {data['targets']:,} targets of {data['text']}")
    table = Table(box=None, pad_edge=False)
    heads, right, rows = sweep_table(data)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out.print(table, markup=False)
    for line in sweep_lines(data):
        say(out, line)
