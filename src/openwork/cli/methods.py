"""List the methods: what they are, what they need, which claims were measured."""

from __future__ import annotations

import argparse
import inspect

from rich.table import Table

from openwork import methods as index
from openwork.cli.output import console, say, write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", nargs="?", help="one method: its whole documentation and its claims")


def run(args: argparse.Namespace) -> int:
    """Print the table, or one method."""
    out = console(args.json)
    if args.name is not None:
        entry = index.find(args.name)
        say(out, f"{entry.name}: {entry.title} ({entry.paper})\n")
        say(out, inspect.getdoc(index.get(args.name)) or "")
        say(out, "\nCard:")
        for question, answer in entry.card.lines():
            say(out, f"    {question}: {answer}")
        for text, state in entry.claims:
            say(out, f"\n  [{state}] {text}")
        write_json(args.json, _plain(entry))
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("method", "what it is", "engine", "needs", "structures", "processes", "claims held"):
        table.add_column(column)
    for entry in index.METHODS:
        table.add_row(
            entry.name, entry.title, f"ow.{entry.drive}", entry.needs, entry.structures, entry.ranks, entry.tally
        )
    out.print(table)
    write_json(args.json, [_plain(entry) for entry in index.METHODS])
    return 0


def _plain(entry: index.Method) -> dict[str, object]:
    return {**entry.__dict__, "card": entry.card.to_dict()}
