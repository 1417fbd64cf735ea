"""Groups of 4 and 16 outputs with and without channels rearranged: weight kept and accuracy, not fine-tuned.

    python bench/rearranged.py [--quick]

Fashion-MNIST. Every group keeps as many inputs; whole filters and single weights stand beside. The first layer and the
head stay dense.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import mechanisms
import torch
from common import spread, write

import openwork as ow
from openwork import methods
from openwork.data import load_data
from openwork.structure import Element, GroupOf, Row

NETS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "LeNet": ("lenet", {}, ("0", "9")),
    "ResNet-8": ("resnet8", {"stem_stride": 2}, ("conv1", "linear")),
}


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    data, steps, seeds = load_data("fashion-mnist"), 30 if quick else 2000, range(1 if quick else 3)
    rows = []
    for net, (name, options, dense) in NETS.items():
        runs: list[dict[tuple[float, str], dict[str, float]]] = []
        for seed in seeds:
            torch.manual_seed(seed)
            model = ow.build_model(name, (1, 28, 28), 10, **options)
            mechanisms.fit(model, data, steps, seed)
            runs.append(pruned(model.eval(), data, ow.Select(exclude=dense), (0.5,) if quick else (0.5, 0.25)))
        for density, case in runs[0]:
            found = {k: spread([r[density, case][k] for r in runs]) for k in runs[0][density, case]}
            rows.append({"setting": net, "density": density, "method": case, **found})
            print(
                f"{net:10} {density:5} {case:24} {100 * found['accuracy']['mean']:6.2f} {found['kept']['mean']:.3f}",
                flush=True,
            )
    write(
        "rearranged" + "_quick" * quick,
        rows,
        title="Channels rearranged before groups are pruned",
        command="python bench/rearranged.py",
        note=f"Fashion-MNIST, {steps} steps of {mechanisms.BATCH}, magnitude, not fine-tuned, {len(seeds)} seeds.",
    )


def pruned(
    model: Any, data: Any, where: ow.Select, densities: tuple[float, ...]
) -> dict[tuple[float, str], dict[str, float]]:
    """Test accuracy, and the share of the squared weights that stays, for every structure."""
    found = {(1.0, "dense"): {"accuracy": mechanisms.score(model, data), "kept": 1.0}}
    for density in densities:
        cases: dict[str, tuple[Any, bool]] = {"single weights": (Element("row"), False)}
        for size in (4, 16):
            group = GroupOf(size, dim=0, per="row")
            cases |= {f"groups of {size}": (group, False), f"groups of {size}, rearranged": (group, True)}
        cases["filters"] = (Row(), False)
        for case, (structure, moves) in cases.items():
            copied = copy.deepcopy(model)
            if moves:
                ow.rearrange(copied, structure, density, where, example=data.x_test[:2])
            before = {n: p.detach().square().sum() for n, p in copied.named_parameters()}
            result = ow.prune(copied, methods.magnitude(density, structure, where, scope="layer"))
            shares = [float(copied.get_parameter(n).detach().square().sum() / before[n]) for n in result.masks]
            found[density, case] = {"accuracy": mechanisms.score(copied, data), "kept": sum(shares) / len(shares)}
    return found


if __name__ == "__main__":
    main("--quick" in sys.argv)
