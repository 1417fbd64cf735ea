"""Parse, dispatch, and turn errors into one line and an exit code.

Exit codes: 0 done and every promise kept; 1 a promise was missed (density, verification); 2 bad input;
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from openwork.cli import (
    bench,
    compare,
    demo,
    eval_llm,
    export,
    inspect,
    methods,
    perplexity,
    prune,
    prune_llm,
    prune_onnx,
    sweep,
)
from openwork.errors import DensityMissed, OpenworkError, VerificationFailed
from openwork.version import __version__

VERBS = {
    "demo": demo,
    "prune": prune,
    "prune-llm": prune_llm,
    "prune-onnx": prune_onnx,
    "perplexity": perplexity,
    "eval-llm": eval_llm,
    "sweep": sweep,
    "compare": compare,
    "inspect": inspect,
    "bench": bench,
    "export": export,
    "methods": methods,
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="openwork", description="Make neural networks sparse, and know what you got.")
    parser.add_argument("--version", action="version", version=f"openwork {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        summary = (verb.__doc__ or "").splitlines()[0]
        sub = verbs.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        verb.arguments(sub)
        sub.add_argument("--json", metavar="FILE", help="also write the outcome as JSON ('-' for standard output)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        return VERBS[args.verb].run(args)
    except (DensityMissed, VerificationFailed) as problem:
        print(f"openwork {args.verb}: {problem}", file=sys.stderr)
        return 1
    except OpenworkError as problem:
        print(f"openwork {args.verb}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"openwork {args.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as problem:  # a disk or a folder that nobody has put into words
        print(f"openwork {args.verb}: {problem.strerror or problem}: {problem.filename or ''}", file=sys.stderr)
        return 2
