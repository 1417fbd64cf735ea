"""Make an ONNX file of any framework smaller: channels and heads go by norm until a budget is met."""

from __future__ import annotations

import argparse

from openwork.cli.output import console, say, write_json
from openwork.cli.parse import options_of
from openwork.core.targets import Select
from openwork.errors import FileError, RecipeError
from openwork.onnx import prune_onnx
from openwork.onnx.prune import KINDS, UNITS


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("file", help="an ONNX file, operator set 11 or later")
    add("--out", metavar="FILE", help="the smaller ONNX file")
    for unit in UNITS:
        add(f"--{unit}", type=float, metavar="SHARE", help=f"the share of {unit} that stays, in (0, 1); one budget")
    add("--kind", action="append", default=[], choices=KINDS, help="only these units (default: all)")
    add("--include", action="append", default=[], metavar="PATTERN", help="only groups made by initializers that match")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="not these")
    add("--multiple", type=int, default=1, help="kept units of every group are a multiple of this")
    add("--at-least", type=int, default=1, help="kept units of every group")
    add("--dim", action="append", default=[], metavar="NAME=SIZE", help="size of an open input dimension (default: 2)")
    add("--overwrite", action="store_true", help="replace the file of --out")
    add("--dry-run", action="store_true", help="do everything and write nothing")


def run(args: argparse.Namespace) -> int:
    """Prune, prove, write."""
    out = console(args.json)
    target = {unit: getattr(args, unit) for unit in UNITS if getattr(args, unit) is not None}
    if len(target) != 1:
        raise RecipeError(f"prune-onnx needs one budget, for instance --macs 0.5, got {len(target)}")
    if args.out is None and not args.dry_run:
        raise FileError("prune-onnx needs --out, the file to write, or --dry-run")
    dims = options_of(args.dim)
    if not all(isinstance(n, int) for n in dims.values()):
        raise RecipeError(f"--dim must read NAME=SIZE with a whole number, got {args.dim}")
    report = prune_onnx(
        args.file,
        None if args.dry_run else args.out,
        target=target,
        kinds=tuple(dict.fromkeys(args.kind)) or KINDS,
        where=Select(tuple(args.include), tuple(args.exclude)),
        multiple=args.multiple,
        at_least=args.at_least,
        dims=dims,
        overwrite=args.overwrite,
    )
    say(out, str(report))
    say(out, "dry run: nothing was written" if args.dry_run else f"saved as {args.out}")
    write_json(args.json, report.to_dict())
    return 0
