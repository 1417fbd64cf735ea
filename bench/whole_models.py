"""Whole models with random masks, packed against dense: milliseconds end to end, error, and how many layers run packed.

    python bench/whole_models.py [--quick] [--threads N] [--only TEXT] [--patterns P ...] [--sparsities S ...]
        [--dtype float32|bfloat16|int8]

Speed does not depend on the values of weights; where the pretrained packages (EfficientNet-Lite0, MiniLM) are missing,
their rows are left out or run from a configuration. First convolutions, heads and depthwise layers stay dense. Both
dense baselines are measured in the same rounds. The error is that of the whole, and the largest of a layer: networks
with random weights may magnify it. With ``--only`` the rows of matching cases replace the earlier ones.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import torch
from common import earlier, of_isa, write
from networks import CASES, Case, resnet, sparsify

import openwork as ow
from openwork.kernels import isa
from openwork.runtime import verdict
from openwork.runtime.inputs import call, first_tensor
from openwork.runtime.timing import interleaved, spread
from openwork.structure import Element, GroupOf

STRUCTURES: dict[str, Any] = {"32x32": ow.Block(32, 32), "4x1": GroupOf(4, dim=0), "unstructured": Element()}

EARLIER = (
    "Rows that are not fused were measured before forwards were fused and images turned, and with every layer pruned, "
    "heads and first convolutions too."
)


def measure(case: str, made: Case, pattern: str, sparsity: float, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """One row: pack with a measured plan, then time it against both dense baselines."""
    torch.manual_seed(0)
    model, example = made.make()
    model.eval()
    sparsify(model, example, STRUCTURES[pattern], sparsity, made.dense)
    wide, wide_example = model, example
    if dtype == torch.bfloat16:  # both baselines too; whole numbers stay what they are
        model = copy.deepcopy(model).to(dtype)
        floats = isinstance(example, torch.Tensor) and example.is_floating_point()
        example = example.to(dtype) if floats else example
    rounded: Any = {"activations": "int8"} if dtype == torch.int8 else {}
    packed = ow.pack(model, STRUCTURES[pattern], example=example, dtype=dtype, **rounded)
    found = verdict(model, packed, example, rounds=rounds)
    t = found.times
    plan: Any = packed.openwork_plan
    row = {
        "case": case,
        "pattern": pattern,
        "sparsity": sparsity,
        **{n: t[n]["ms"] for n in ("packed", "dense", "onednn")},
        "over_dense": t["dense"]["ms"] / t["packed"]["ms"],
        "over_onednn": t["onednn"]["ms"] / t["packed"]["ms"],
        "packed_layers": sum(c.packed for c in plan.choices),
        "layers": len(plan.choices),
        "channels_last": packed.openwork_last,
        "fused": bool(packed.openwork_inside),
        "error": found.error,
        "layer_error": max((c.error for c in plan.choices if c.packed), default=0.0),
    }
    if dtype == torch.bfloat16:  # what a user of the float32 model gains and pays by changing both
        calls = {"float32": partial(call, wide, wide_example), "packed": partial(call, packed, example)}
        expected, got = (first_tensor(f()).float() for f in calls.values())
        ms = {n: spread(times)["ms"] for n, times in interleaved(calls, rounds=rounds).items()}
        row["float32"], row["over_float32"] = ms["float32"], ms["float32"] / ms["packed"]
        row["error_float32"] = float((got - expected).abs().max() / expected.abs().max())
    print(f"{case:38} {pattern:13} {sparsity} {row['over_dense']:.2f}x {row['over_onednn']:.2f}x", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--patterns", nargs="+", choices=list(STRUCTURES), default=list(STRUCTURES))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="of models and inputs, or int8",
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = of_isa("whole_models", args.threads, quick=args.quick)
    cases = {n: c for n, c in CASES.items() if args.only in n}
    kind = "" if args.dtype == "float32" else f", {args.dtype}"
    patterns, sparsities, rounds = args.patterns, args.sparsities, args.rounds
    if args.quick:
        cases, patterns, sparsities, rounds = {"ResNet-20, batch 2": resnet("resnet20", 32, 2)}, patterns[::2], [0.9], 3
    rows = {(r["case"], r["pattern"], r["sparsity"]): r for r in ([] if args.quick else earlier(name))}
    note = (__doc__ or "").split("\n\n")[2].replace("\n", " ") + " " + EARLIER
    order = {n + k: i for i, n in enumerate(CASES) for k in ("", ", bfloat16", ", int8")}
    for case, made in cases.items():
        for pattern in patterns:
            for sparsity in sparsities:
                if made.missing():
                    print(f"{case}: skipped, {', '.join(made.missing())} is not installed")
                else:
                    row = measure(case + kind, made, pattern, sparsity, rounds, getattr(torch, args.dtype))
                    rows[case + kind, pattern, sparsity] = row
            write(name, sorted(rows.values(), key=lambda r: order.get(r["case"], len(order))), note=note, isa=isa())


if __name__ == "__main__":
    main()
