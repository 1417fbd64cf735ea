"""What `bench` and `export` share: a result folder, an input of the right size, and the packed copy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openwork.engine.result import Result
from openwork.errors import RecipeError
from openwork.formats.stored import DTYPES
from openwork.runtime import Packed, pack
from openwork.ship import load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("folder", help="a result folder")
    add("--batch", type=int, default=1, help="inputs in a batch")
    add(
        "--input",
        default="",
        metavar="SHAPE",
        help="shape of one input, such as 3x224x224; default: what the model says",
    )
    add("--tokens", type=int, default=128, help="tokens of one input of a language model")
    add("--threads", type=int, default=None, help="default: what torch uses")
    add("--dtype", choices=sorted(DTYPES), default=None, help="of the stored values; default: that of the weights")
    add(
        "--activations",
        choices=("float", "int8"),
        default="float",
        help="int8 (with --dtype int8): also round what linear layers and 1 x 1 convolutions in blocks are given",
    )
    add("--plan", choices=("measure", "always"), default="measure", help="always: pack without measuring")


def packed_of(args: argparse.Namespace) -> tuple[nn.Module, Result, nn.Module, Any]:
    """The pruned model, its result, its packed copy, and the input they are measured with."""
    if args.batch < 1 or args.tokens < 1 or (args.threads is not None and args.threads < 1):
        raise RecipeError(
            f"--batch, --tokens and --threads must be at least 1, got {args.batch}, {args.tokens}, {args.threads}"
        )
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model, result = load(Path(args.folder))
    if any(isinstance(m, Packed) for m in model.modules()):
        raise RecipeError(f"{args.folder}: is packed already; give the result folder that it was exported from")
    example = example_of(model, args.batch, args.input, args.tokens)
    dtype = None if args.dtype is None else DTYPES[args.dtype]
    copy = pack(model, result.recipe.structure, args.plan, example=example, dtype=dtype, activations=args.activations)
    return model.eval(), result, copy, example


def example_of(model: nn.Module, batch: int, shape: str = "", tokens: int = 128) -> Any:
    """Random inputs of the size that the model says, or that ``shape`` says.

    Raises:
        RecipeError: a shape that is none, or a model that does not say.
    """
    generator = torch.Generator().manual_seed(0)
    built = (getattr(model, "openwork_source", None) or {}).get("options") or {}
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if not shape and vocabulary:
        return {"input_ids": torch.randint(vocabulary, (batch, tokens), generator=generator)}
    try:
        size = [int(n) for n in shape.split("x")] if shape else list(built.get("input_shape") or ())
    except ValueError:
        size = [0]
    if not size or min(size) < 1:
        raise RecipeError(f"--input must be a shape such as 3x224x224, got {shape!r}; this model does not say its own")
    return torch.randn(batch, *size, generator=generator)
