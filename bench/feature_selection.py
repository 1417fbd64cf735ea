"""Sequential Attention picks pixels of the digits: plain, and with every pixel as four noisy copies.

python bench/feature_selection.py [--quick]
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from common import spread, write
from sklearn.feature_selection import f_classif
from torch import Tensor
from torch.nn import functional as F

from openwork.apps import select_features
from openwork.apps.feature_selection import mlp
from openwork.data import load_data

COPIES, SIGMA = 4, 0.02
COLUMNS = {
    "pixels": "setting",
    "k": "k",
    "method": "method",
    "accuracy": "accuracy:spread",
    "different pixels": "different:.3g",
    "shared by two seeds": "shared:percent",
}


def split(seed: int, copies: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels of training and test, float32 ``(rows, 64 * copies)``, standardised; copy ``c`` of pixel ``p`` is column
    ``64 c + p``."""
    data = load_data("digits", seed=seed)
    rng = torch.Generator().manual_seed(1000 + seed)
    x, test = (part.flatten(1).repeat(1, copies) for part in (data.x_train, data.x_test))
    if copies > 1:
        x, test = (part + SIGMA * torch.randn(part.shape, generator=rng) for part in (x, test))
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    return (x - mean) / std, data.y_train, (test - mean) / std, data.y_test


def picks(method: str, x: Tensor, y: Tensor, k: int, steps: int, seed: int) -> list[int]:
    if method == "sequential attention":
        return list(select_features(x, y, k, steps=steps, seed=seed).order)
    if method == "one-shot attention":
        return list(select_features(x, y, k, steps=steps, per_step=k, seed=seed).order)
    if method == "ANOVA F":
        return torch.from_numpy(f_classif(x.numpy(), y.numpy())[0]).nan_to_num(-1.0).topk(k).indices.tolist()
    return torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))[:k].tolist()


def refit(data: tuple[Tensor, Tensor, Tensor, Tensor], chosen: Sequence[int], steps: int, seed: int) -> float:
    """Test accuracy of a fresh MLP with 67 hidden units on the chosen columns alone."""
    x, y, test, target = data
    at = list(chosen)
    torch.manual_seed(seed)
    model = mlp(len(at), 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows][:, at]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(test[:, at]).argmax(1) == target).float().mean())


def shared(sets: Sequence[set[int]]) -> dict[str, Any]:
    """Shares of picks in common, over all pairs of seeds."""
    return spread([len(a & b) / len(a) for a, b in combinations(sets, 2)]) if len(sets) > 1 else spread([1.0])


def measure(setting: str, copies: int, k: int, seeds: Sequence[int], steps: int, fit: int) -> list[dict[str, Any]]:
    data = {s: split(s, copies) for s in seeds}
    rows = []
    for method in ("sequential attention", "one-shot attention", "ANOVA F", "random"):
        chosen = {s: picks(method, *data[s][:2], k, steps, s) for s in seeds}
        found = spread([refit(data[s], chosen[s], fit, s) for s in seeds])
        distinct = spread([len({i % 64 for i in c}) for c in chosen.values()])
        row = {"setting": setting, "k": k, "method": method, "accuracy": found, "distinct": distinct}
        row["different"] = distinct["mean"]
        if method == "sequential attention" and copies == 1:  # one split: only the seed of the selection differs
            x, y = data[seeds[0]][:2]
            row["overlap"] = shared([set(picks(method, x, y, k, steps, s)) for s in seeds])
            row["shared"] = row["overlap"]["mean"]
            row["overlap_between_splits"] = shared([set(c) for c in chosen.values()])
        rows.append({**row, "picks": list(chosen.values())})
        more = f" overlap {row['overlap']['mean']:.2f}" if "overlap" in row else ""
        print(f"{setting:16} {k:3} {method:22} {100 * found['mean']:6.2f} {distinct['mean']:5.1f}{more}", flush=True)
    return rows


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the corners of the digits are constant
    seeds, steps, fit = (range(1), 300, 200) if quick else (range(4), 4000, 2000)
    rows = measure("four copies", COPIES, 10, seeds, steps, fit)
    for k in (10,) if quick else (5, 10, 20):
        rows += measure("plain", 1, k, seeds, steps, fit)
    write(
        "feature_selection_quick" if quick else "feature_selection",
        rows,
        title="Digits: pixels selected by Sequential Attention",
        command="python bench/feature_selection.py",
        columns=COLUMNS,
        note=f"{steps} Adam steps at 2e-3 select; a fresh MLP with 67 hidden units is trained for {fit} steps on the "
        f"selected columns. Four copies: every pixel four times with noise of {SIGMA}, distinct counts pixels. "
        f"{len(seeds)} seeds, each its own split; overlap is over pairs of seeds on one split.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
