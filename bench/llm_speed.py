"""SparseGPT and Wanda on one layer against plain implementations of the papers' algorithms: CPU seconds and errors.

The plain SparseGPT follows the paper's Algorithm 1 column by column: three factorisations for the inverse's factor,
and an outer product on the rest of the block after every column. The plain Wanda sorts every row. One thread, CPU
seconds of the process, all in turn, ``--rounds`` times; ``--shape 4096x4096`` weights, 8,192 correlated inputs. The
squared change of the layer's outputs is computed alike for all. Rows of other shapes are kept. ``--quick``: 256 x 256.

``--published FOLDER``: a checkout of the SparseGPT authors' repository, whose class then takes part as well.
llm-compressor takes part when it can be imported: run this with the interpreter of its environment (see
``llm_compressor_side.py``) and openwork in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import llm_compressor_side as peer
import llm_published_side as published
import torch
from common import earlier, spread, write
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


def main(quick: bool, shape: str, rounds: int, folder: Path | None) -> None:
    torch.set_num_threads(1)
    rows, columns = (256, 256) if quick else map(int, shape.split("x"))
    tokens = 1024 if quick else 8192
    weight, gram = layer(rows, columns, tokens)
    stem = "llm_speed" + "_quick" * quick
    table = [r for r in ([] if quick else earlier(stem)) if (r["rows"], r["columns"]) != (rows, columns)]
    theirs = peer.methods(BLOCK, DAMP)
    authors = published.methods(folder, BLOCK, DAMP)
    for name, (ours, plain) in PAIRS.items():
        runs = {"ours": ours, "plain": plain}
        runs |= {who: found[name] for who, found in (("published", authors), ("peer", theirs)) if name in found}
        times: dict[str, list[float]] = {who: [] for who in runs}
        outcomes: dict[str, tuple[Tensor, Tensor]] = {}
        for _ in range(rounds):
            for who, method in runs.items():
                began = time.process_time()
                outcomes[who] = method(weight, gram, 0.5)
                times[who].append(time.process_time() - began)
        errors = {who: float((((weight - w).double() @ gram.double()) * (weight - w)).sum())
                  for who, (w, _) in outcomes.items()}  # fmt: skip
        masks = {who: mask for who, (_, mask) in outcomes.items()}
        row = {"method": name, "rows": rows, "columns": columns, "rounds": rounds, "seconds": spread(times["ours"]),
               "error": errors["ours"], "kept": [int(m.sum()) for m in masks.values()],
               "after": spread([errors["plain"] / max(errors["ours"], 1e-30)])}  # fmt: skip
        for who in list(runs)[1:]:
            faster = median(b / a for a, b in zip(times["ours"], times[who], strict=True))
            row |= {f"{who}_seconds": spread(times[who]), f"{who}_error": errors[who]}
            prefix = "" if who == "plain" else f"{who}_"
            row[f"{prefix}speedup"] = faster
            row[f"{prefix}equal_masks"] = float((masks["ours"] == masks[who]).double().mean())
        if theirs:
            row["peer"] = f"{peer.NAME} {peer.version()}"
        table.append(row)
        print({k: v for k, v in row.items() if k != "after"}, flush=True)
        write(stem, table, tokens=tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shape", default="4096x4096", metavar="ROWSxCOLUMNS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--published", type=Path, metavar="FOLDER", help="checkout of the SparseGPT repository")
    args = parser.parse_args()
    main(args.quick, args.shape, args.rounds, args.published)
