"""Measure a pruned model packed against dense: zeros, bytes on disk, milliseconds."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from openwork.cli import ship_parts
from openwork.cli.output import console, say, write_json
from openwork.errors import RecipeError
from openwork.runtime import verdict
from openwork.ship import export
from openwork.ship.export import PACKED
from openwork.ship.folder import dense_bytes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    ship_parts.arguments(parser)
    parser.add_argument("--rounds", type=int, default=11, help="of the interleaved measurement")


def run(args: argparse.Namespace) -> int:
    """Print the plan and the verdict."""
    if args.rounds < 1:
        raise RecipeError(f"--rounds must be at least 1, got {args.rounds}")
    out = console(args.json)
    model, result, packed, example = ship_parts.packed_of(args)
    with tempfile.TemporaryDirectory() as work:
        size = (export(packed, result, Path(work) / "packed") / PACKED).stat().st_size
    sizes = (size, dense_bytes(args.folder))
    found = verdict(model, packed, example, rounds=args.rounds, sizes=sizes)
    say(out, str(packed.openwork_plan))
    say(out, "")
    say(out, str(found))
    write_json(args.json, {"plan": packed.openwork_plan.plain(), "verdict": found.plain()})  # type: ignore[union-attr, operator]
    return 0
