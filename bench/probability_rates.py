"""How fast must ProbMask's probabilities move? Rates of its Adam for short and long trainings, digits MLP.

python bench/probability_rates.py [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from common import spread, write
from mechanisms import BATCH, fit, mlp, score

from openwork.data import load_data
from openwork.methods import probmask

RATES = (0.006, 0.015, 0.03, 0.06, 0.12)


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, seeds = load_data("digits"), range(1 if quick else 3)
    rows: list[dict[str, Any]] = []
    for steps in (100,) if quick else (250, 700, 2000, 6000):
        for rate in RATES[::4] if quick else RATES:
            values = []
            for seed in seeds:
                model, recipe = mlp(seed), probmask(density=0.05, steps=steps, learning_rate_of_s=rate)
                fit(model, data, steps, seed, recipe).finish()
                values.append(score(model, data))
            rows.append({"steps": steps, "rate": rate, "accuracy": spread(values)})
            print(steps, rate, rows[-1]["accuracy"], flush=True)
    write(
        "probability_rates_quick" if quick else "probability_rates",
        rows,
        title="How fast ProbMask's probabilities move",
        command="python bench/probability_rates.py",
        note=f"Digits MLP at density 0.05, steps of {BATCH}, {len(seeds)} seeds; accuracy under the final mask.",
        columns={"steps": "steps", "rate": "rate:g", "accuracy": "accuracy:spread"},
    )


if __name__ == "__main__":
    main("--quick" in sys.argv)
