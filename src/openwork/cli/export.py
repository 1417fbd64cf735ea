"""Pack a pruned model and write it as a folder that `openwork.load` runs on any machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from openwork.cli import ship_parts
from openwork.cli.output import console, say, write_json
from openwork.errors import FileError
from openwork.ship import export
from openwork.ship.export import PACKED
from openwork.ship.folder import companions, dense_bytes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    ship_parts.arguments(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the packed model")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    parser.add_argument("--dry-run", action="store_true", help="measure and print the plan, write nothing")


def run(args: argparse.Namespace) -> int:
    """Print the plan, write the folder, print the bytes."""
    if Path(args.out).resolve() == Path(args.folder).resolve():
        raise FileError(f"{args.out}: is the folder that is read; choose another --out")
    out = console(args.json)
    if Path(args.out).exists() and not args.overwrite:
        raise FileError(f"{args.out}: exists already; choose another folder or pass --overwrite")
    _, result, packed, _ = ship_parts.packed_of(args)
    say(out, str(packed.openwork_plan))
    data = {"plan": packed.openwork_plan.plain()}  # type: ignore[union-attr, operator]
    if args.dry_run:
        say(out, "dry run: nothing was written")
    else:
        folder = export(packed, result, args.out, overwrite=args.overwrite, beside=companions(args.folder))
        size, dense = (folder / PACKED).stat().st_size, dense_bytes(args.folder)
        say(out, f"{folder}: {size:,} bytes instead of {dense:,} ({size / dense:.3f}x)")
        data.update(folder=str(folder), bytes=size, dense_bytes=dense)
    write_json(args.json, data)
    return 0
