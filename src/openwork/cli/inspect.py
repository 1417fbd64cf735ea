"""Show a result folder, or what could be pruned in a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from openwork.cli.output import console, say, write_json
from openwork.cli.parse import FORMS, options_of, structure_of
from openwork.core.targets import Select
from openwork.errors import RecipeError
from openwork.report import report_text
from openwork.ship import load
from openwork.structure import Element, partition


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("folder", nargs="?", help="a result folder")
    add("--model", help="a model instead: zoo name, Hugging Face folder, or package.module:factory")
    add("--model-option", action="append", default=[], metavar="KEY=VALUE")
    add("--structure", default="element", help=FORMS)
    add("--include", action="append", default=[], metavar="PATTERN")
    add("--exclude", action="append", default=[], metavar="PATTERN")


def run(args: argparse.Namespace) -> int:
    """Print the report of a folder after recounting it, or the coverage of a model."""
    out = console(args.json)
    if (args.folder is None) == (args.model is None):
        raise RecipeError("inspect needs a result folder or --model, one of the two")
    if args.folder is not None:
        from openwork.ship.folder import read_index, read_result

        source = read_index(Path(args.folder)).get("source") or {}
        result = load(args.folder)[1] if source.get("kind") in ("zoo", "hf") else read_result(args.folder)
        data = result.to_dict()
        say(out, report_text(data))
        write_json(args.json, data)
        return 0
    from openwork.zoo import build_model

    model = build_model(args.model, **options_of(args.model_option))
    structure = structure_of(args.structure) if args.structure else Element()
    _, coverage = partition(model, structure, Select(tuple(args.include), tuple(args.exclude), min_units=2))
    rows = [
        {"name": c.name, "shape": list(c.shape), "numel": c.numel, "units": c.units, "skipped": c.skipped}
        for c in coverage
    ]
    for c in coverage:
        what = f"{c.units:,} units" if c.units else f"skipped: {c.skipped}"
        say(out, f"  {c.name:<48} {'x'.join(map(str, c.shape)):>16} {c.numel:>12,}  {what}")
    prunable = sum(c.numel for c in coverage if c.units)
    say(out, f"{prunable:,} of {sum(c.numel for c in coverage):,} parameters can be pruned as {structure}")
    write_json(args.json, rows)
    return 0
