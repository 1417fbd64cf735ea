"""Show a result folder, or what could be pruned in a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from openwork.cli.output import console, say, write_json
from openwork.cli.parse import FORMS, options_of, structure_of
from openwork.core.targets import Select
from openwork.errors import RecipeError
from openwork.graph.cost import cost_of
from openwork.graph.example import Example, Tensorlike
from openwork.graph.groups import build_graph
from openwork.report import report_text
from openwork.report.group_picture import drawn, group_picture
from openwork.ship import load
from openwork.ship.atomic import write_file
from openwork.structure import Element, partition


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("folder", nargs="?", help="a result folder")
    add("--model", help="a model instead: zoo name, Hugging Face folder, or package.module:factory")
    add("--model-option", action="append", default=[], metavar="KEY=VALUE")
    add("--structure", default="element", help=FORMS)
    add("--graph", action="store_true", help="the groups that must be removed together; of a model needs --input")
    add("--svg", metavar="FILE", help="with --graph: draw the groups, tensors as rows and groups as lines")
    add(
        "--input",
        metavar="SHAPE",
        help="shape of one input with --graph (a folder knows its own), for instance 1x3x32x32; int:1x16 for tokens",
    )
    add("--include", action="append", default=[], metavar="PATTERN")
    add("--exclude", action="append", default=[], metavar="PATTERN")


def run(args: argparse.Namespace) -> int:
    """Print the report of a folder after recounting it, or the coverage of a model."""
    out = console(args.json)
    if (args.folder is None) == (args.model is None):
        raise RecipeError("inspect needs a result folder or --model, one of the two")
    if args.svg and not args.graph:
        raise RecipeError("--svg draws the groups of --graph; add --graph and --input")
    if args.folder is not None and args.graph:
        model, result = load(args.folder)
        shape: Any = result.recipe.structure
        return _graph(args, model, args.folder, getattr(shape, "example", None) if args.input is None else None)
    if args.folder is not None:
        from openwork.ship.folder import is_blockwise, read_index, read_result

        index = read_index(Path(args.folder))
        built = is_blockwise(index) or (index.get("source") or {}).get("kind") in ("zoo", "hf")
        result = load(args.folder)[1] if built else read_result(args.folder)
        data = result.to_dict()
        say(out, report_text(data))
        write_json(args.json, data)
        return 0
    from openwork.zoo import build_model

    model = build_model(args.model, **options_of(args.model_option))
    if args.graph:
        return _graph(args, model, args.model)
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


def _graph(args: argparse.Namespace, model: nn.Module, title: str, example: Example | None = None) -> int:
    """Print the groups of a model, what stays with its reasons, and what it costs."""
    out = console(args.json)
    graph = build_graph(model, example or input_of(args.input))
    cost = cost_of(model, graph)
    rows = []
    for g in graph.groups:
        places = [f"{s.tensor}[{s.dim}]" for s in g.sites if s.parameter]
        told: dict[str, Any] = {"name": g.name, "kind": g.kind, "units": g.n_units, "over": g.over, "places": places}
        rows.append(told | {"at": [[s.tensor, s.dim, s.consumes] for s in g.sites if s.parameter]})
        bounds = f" (at least {g.at_least})" * (g.at_least > 1) + f" (multiples of {g.multiple})" * (g.multiple > 1)
        listed = f"{', '.join(places[:6])}{' ...' if len(places) > 6 else ''}"
        say(out, f"  {g.kind:<9} {g.n_units:>6} units  {listed}{bounds}")
    reasons: dict[str, list[str]] = {}
    for stays in graph.frozen:
        reasons.setdefault(stays.reason, []).append(f"{stays.tensor}[{stays.dim}]")
    for reason, places in reasons.items():
        say(out, f"  stays: {reason}: {', '.join(places[:4])}{' ...' if len(places) > 4 else ''}")
    params, macs = cost("params", {}), cost("macs", {})
    say(out, f"{len(rows)} groups, {params:,} parameters, {macs:,} multiply-accumulates ({graph.seconds:.1f} s)")
    if args.svg:
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        write_file(Path(args.svg), group_picture(title, shapes, drawn(rows)).encode())
        say(out, f"drawn in {args.svg}")
    frozen = [{"reason": reason, "places": places} for reason, places in reasons.items()]
    write_json(args.json, {"groups": rows, "frozen": frozen, "params": params, "macs": macs})
    return 0


def input_of(text: str | None) -> Example:
    """``1x3x32x32`` or ``int:1x16`` as an example.

    Raises:
        RecipeError: another form.
    """
    kind, _, shape = (text or "").rpartition(":")
    sizes = shape.split("x")
    if kind not in ("", "int") or not all(n.isdigit() and int(n) > 0 for n in sizes):
        raise RecipeError(f"--input must read 1x3x32x32, or int:1x16 for token ids, got {text!r}")
    return Example((Tensorlike(tuple(map(int, sizes)), "int64" if kind else "float32"),))
