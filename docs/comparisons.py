"""The comparisons of methods among the results: what each one was measured on, and which of its curves are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PRUNED = "before fine-tuning, norms recalibrated"
TUNED = "after fine-tuning"


@dataclass(frozen=True)
class Comparison:
    """One result file that ``bench/condense.py`` wrote.

    ``curves`` are the moments that are drawn (key of a row -> its words), in one chart for each structure where ``split``.
    ``ranked``: the leaderboard takes its accuracies.
    """

    data: str
    network: str
    curves: Mapping[str, str] = field(default_factory=dict)
    split: bool = False
    ranked: bool = True


def _oneshot(data: str, network: str) -> Comparison:
    return Comparison(data, network, {"recalibrated": PRUNED, "finetuned": TUNED})


def _blocks(data: str, network: str) -> Comparison:
    return Comparison(data, network, {"finetuned": TUNED}, split=True)


_CLICKS = Comparison("movielens-100k", "click_mlp", {"finetuned": TUNED}, ranked=False)
COMPARISONS: Mapping[str, Comparison] = {
    "flagships_digits": _blocks("digits", "MLP 64-128-128-10"),
    "oneshot_fashion": _oneshot("fashion-mnist", "ResNet-8"),
    "oneshot_fashion_20": _oneshot("fashion-mnist", "ResNet-20"),
    "oneshot_photopatch": _oneshot("photopatch-27", "ResNet-8"),
    "oneshot_cifar": _oneshot("CIFAR-10 (JPEG)", "ResNet-20"),
    "init_fashion": Comparison("fashion-mnist", "ResNet-8"),
    "blocks_fashion": _blocks("fashion-mnist", "ResNet-8"),
    "blocks_fashion_long": _blocks("fashion-mnist", "ResNet-8"),
    "blocks_fashion_20": _blocks("fashion-mnist", "ResNet-20"),
    "blocks_fashion_20_more": _blocks("fashion-mnist", "ResNet-20"),
    "blocks_cifar": _blocks("CIFAR-10 (JPEG)", "ResNet-20"),
    "blocks_photopatch": _blocks("photopatch-27", "ResNet-8"),
    "clicks_movielens": _CLICKS,
    "clicks_movielens_long": _CLICKS,
    "leaderboard_digits": Comparison("digits", "MLP 64-128-128-10"),
    "leaderboard_fashion": Comparison("fashion-mnist", "MLP 784-128-128-10"),
    "leaderboard_photopatch": Comparison("photopatch-27", "MLP 3072-128-128-27"),
}
"""Result name -> its comparison, in the order of the benchmark page. A result that is not there yet is left out."""
