"""SparseGPT and Wanda on one layer against plain implementations of the papers' algorithms: CPU seconds and errors.

The plain SparseGPT follows the paper's Algorithm 1 column by column: three factorisations for the inverse's factor,
and an outer product on the rest of the block after every column. The plain Wanda sorts every row. One thread, CPU
seconds of the process, both in turn, ``--rounds`` times; 4,096 x 4,096 weights, 8,192 correlated inputs. The squared
change of the layer's outputs is computed alike for both. ``--quick``: 256 x 256.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import spread, write
from torch import Tensor

from openwork.core.select import count_kept, keep_top
from openwork.rules.columns import factorise, solve_columns

BLOCK, DAMP = 128, 0.01


def layer(rows: int, columns: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Weights [rows, columns] and the Gram matrix of inputs with common factors and channels of unequal size."""
    rng = torch.Generator().manual_seed(0)
    common = torch.randn(tokens, columns // 8, generator=rng) @ torch.randn(columns // 8, columns, generator=rng)
    x = common / (columns // 8) ** 0.5 + torch.randn(tokens, columns, generator=rng)
    x *= torch.rand(columns, generator=rng) * 2
    return torch.randn(rows, columns, generator=rng) / columns**0.5, x.T @ x


def plain_sparsegpt(weight: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Algorithm 1 as it is written: a loop over columns inside a loop over blocks."""
    w, h = weight.clone(), gram.clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(DAMP * float(h.diagonal().mean()))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for first in range(0, w.shape[1], BLOCK):
        last = min(first + BLOCK, w.shape[1])
        part, u = w[:, first:last].clone(), upper[first:last, first:last]
        errors = torch.zeros_like(part)
        scores = (part / u.diagonal()).square()
        pruned = part.numel() - int(density * part.numel())
        mask = scores <= scores.flatten().sort().values[pruned - 1]
        for i in range(last - first):
            column = part[:, i]
            error = torch.where(mask[:, i], column, 0.0) / u[i, i]
            part[:, i:] -= torch.outer(error, u[i, i:])
            errors[:, i] = error
        w[:, first:last] = part.masked_fill(mask, 0)
        w[:, last:] -= errors @ upper[first:last, last:]
    return w, w != 0


def our_sparsegpt(weight: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    kept = 0
    seen = 0

    def choose(first: int, last: int, now: Tensor, diagonal: Tensor) -> Tensor:
        nonlocal kept, seen
        seen += now.numel()
        total = count_kept(density, seen)
        keep, kept = total - kept, total
        return keep_top((now / diagonal).square().flatten(), keep).view(now.shape)

    solved = solve_columns(weight, factorise(gram, DAMP), choose, BLOCK)
    return solved.weight, solved.mask


def plain_wanda(weight: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """A stable sort of every row, and the lowest entries of it set to zero."""
    scores = weight.abs() * gram.diagonal().sqrt()
    lowest = scores.sort(dim=1, stable=True).indices[:, : int((1 - density) * weight.shape[1])]
    pruned = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, lowest, True)
    return weight.masked_fill(pruned, 0), ~pruned


def our_wanda(weight: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
    scores = weight.abs() * gram.diagonal().sqrt()
    columns = weight.shape[1]
    kept = keep_top(scores.flatten(), count_kept(density, columns), columns).view(weight.shape)
    return weight.masked_fill(~kept, 0), kept


Method = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
PAIRS: dict[str, tuple[Method, Method]] = {
    "sparsegpt": (our_sparsegpt, plain_sparsegpt),
    "wanda": (our_wanda, plain_wanda),
}


def main(quick: bool, rounds: int) -> None:
    torch.set_num_threads(1)
    rows, columns, tokens = (256, 256, 1024) if quick else (4096, 4096, 8192)
    weight, gram = layer(rows, columns, tokens)
    table: list[dict[str, Any]] = []
    for name, pair in PAIRS.items():
        times: tuple[list[float], list[float]] = ([], [])
        outcomes = []
        for _ in range(rounds):
            outcomes = []
            for method, seconds in zip(pair, times, strict=True):
                began = time.process_time()
                outcomes.append(method(weight, gram, 0.5))
                seconds.append(time.process_time() - began)
        (ours, our_mask), (theirs, their_mask) = outcomes
        errors = [float((((weight - w).double() @ gram.double()) * (weight - w)).sum()) for w in (ours, theirs)]
        row = {
            "method": name, "rows": rows, "columns": columns, "seconds": spread(times[0]),
            "plain_seconds": spread(times[1]), "speedup": median(b / a for a, b in zip(*times, strict=True)),
            "equal_masks": float((our_mask == their_mask).double().mean()), "error": errors[0],
            "plain_error": errors[1], "kept": [int(our_mask.sum()), int(their_mask.sum())],
            "after": spread([errors[1] / max(errors[0], 1e-30)]),
        }  # fmt: skip
        table.append(row)
        print({k: v for k, v in row.items() if k != "after"}, flush=True)
    write("llm_speed_quick" if quick else "llm_speed", table, tokens=tokens, rounds=rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    main(args.quick, args.rounds)
