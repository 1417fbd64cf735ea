"""Run tasks of lm-evaluation-harness on a language model folder (dense, pruned or packed)."""

from __future__ import annotations

import argparse

from openwork.cli.output import console, say, write_json
from openwork.cli.parse import use_threads


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("model", metavar="DIR", help="Hugging Face folder, result of prune-llm, or packed folder of export")
    add("--tasks", required=True, metavar="A,B", help="names of tasks")
    add("--include", metavar="DIR", help="folder with further task files (YAML)")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the model's)")
    add("--shots", type=int, help="examples in front of every question (default: what the task says)")
    add("--limit", type=int, help="questions per task (default: all)")
    add("--batch", type=int, default=8, help="questions at once")
    add("--threads", type=int, help="torch threads")


def run(args: argparse.Namespace) -> int:
    """Print one line per task and metric."""
    from openwork.llm.harness import evaluate_tasks

    use_threads(args.threads)
    out = console(args.json)
    found = evaluate_tasks(
        args.model, [t for t in args.tasks.split(",") if t], include=args.include, tokenizer=args.tokenizer,
        shots=args.shots, limit=args.limit, batch=args.batch,
    )  # fmt: skip
    for task, values in found["tasks"].items():
        for metric, value in values.items():
            say(out, f"{task:<24} {metric:<16} {value:.4f}  ({found['samples'].get(task, 0):,} questions)")
    write_json(args.json, found)
    return 0
