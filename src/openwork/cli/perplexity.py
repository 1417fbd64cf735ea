"""Perplexity of a language model folder on a text, with split, window and token counts."""

from __future__ import annotations

import argparse

from openwork.cli.output import console, say, write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("model", metavar="DIR", help="Hugging Face folder")
    add(
        "--text",
        metavar="FILE",
        required=True,
        help="text (documents may be separated by <|endoftext|>), or a .npy file of token ids",
    )
    add("--length", type=int, help="tokens per window (default: the context, at most 2048)")
    add("--stride", type=int, help="tokens between windows (default: the length, no overlap)")
    add("--against", metavar="DIR", help="also report agreement with this (dense) model")
    add("--tokenizer", metavar="DIR", help="folder of the tokenizer (default: the model's)")


def run(args: argparse.Namespace) -> int:
    """Print one line per number."""
    from openwork.llm.evaluation import evaluate

    out = console(args.json)
    found = evaluate(args.model, args.text, args.length, args.stride, args.tokenizer, args.against)
    p = found["perplexity"]
    say(
        out,
        f"perplexity {p['value']:.4f} over {p['targets']:,} targets ({p['windows']} windows of {p['length']}, stride "
        f"{p['stride']}, {p['tokens']:,} tokens of {args.text})",
    )
    if "agreement" in found:
        a = found["agreement"]
        say(out, f"agrees with {args.against} in {100 * a['top1']:.2f} %, divergence {a['divergence']:.4f} nats")
    write_json(args.json, found)
    return 0
