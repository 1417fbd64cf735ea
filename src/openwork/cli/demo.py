"""Prune a small network by four methods under equal budgets, save one, reload it in a fresh process."""

from __future__ import annotations

import argparse

from openwork.cli.output import console, say, write_json
from openwork.lab.demo import run_demo
from openwork.report import compare_text


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", default="openwork-demo", metavar="DIR", help="folder for the saved model and the pages"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per row")
    parser.add_argument("--steps", type=int, default=1500, help="training steps per run, pruning included")


def run(args: argparse.Namespace) -> int:
    """Print the table; returns 0 only when every density was reached and the reloaded model agrees bit for bit."""
    out = console(args.json)
    outcome = run_demo(args.out, args.seeds, args.steps, lambda line: say(out, line))
    say(out, "\n" + compare_text(outcome["rows"]) + "\n")
    for line in outcome["lines"]:
        say(out, line)
    write_json(args.json, outcome)
    return 0
