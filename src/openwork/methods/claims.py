"""What the papers claim, and what was measured here.

A state starts with ``held``, ``not held`` or ``open`` (nothing measured yet) and says the numbers.
"""

from __future__ import annotations

CLAIMS: dict[str, tuple[tuple[str, str], ...]] = {
    "magnitude": (
        (
            "one ranking over the model beats equal layer shares at 95 % sparsity on unequal layers",
            "held: 86.1 against 83.1, ResNet-8 on Fashion-MNIST; a layer of small weights needs a minimum as well",
        ),
        ("equal layer shares beat one ranking for blocks when the ranking empties a layer", "open"),
    ),
    "random": (
        ("ERK shares beat equal shares by 0.5 points at 95 % sparsity", "open"),
        ("the gap to the dense network shrinks as the network gets wider", "open"),
    ),
    "global_mp": (
        (
            "beats equal layer shares by 0.5 points at 95 % sparsity",
            "held: 86.1 against 83.1 on ResNet-8, Fashion-MNIST",
        ),
        (
            "the floor restores a network whose layer would empty at 99.5 % sparsity",
            "held: 90.2 with it, 10.3 (chance) without, digits MLP with one layer of small weights",
        ),
    ),
    "gradual_magnitude": (
        (
            "at equal steps beats one-shot pruning from a density of 0.02 down",
            "held: 96.1 against 92.6 at 0.02, 94.6 against 64.9 at 0.01",
        ),
        ("a large sparse network beats a small dense one of equal size by a point", "open"),
    ),
    "taylor": (("removes units of a trained network at a smaller loss than their norm does", "open"),),
    "snip": (
        (
            "at initialisation beats magnitude and random by 30 points on a deep MLP at density 0.05",
            "held: 89.2 against 33.3 and 10.3",
        ),
        (
            "falls to chance at 98 to 99 % sparsity, where SynFlow does not",
            "held: 39.2 and 13.2 at 98 and 99 %, SynFlow 83.3 and 48.1",
        ),
    ),
    "grasp": (
        (
            "at initialisation beats SNIP by 10 points on a deep MLP at density 0.01",
            "held: 38.3 against 13.2 (and loses at 0.05: 35.8 against 89.2)",
        ),
        ("keeps a larger gradient than SNIP and random masks", "open"),
    ),
    "synflow": (
        (
            "keeps one weight in every layer at the smallest possible density, and one round does not",
            "held: exactly, on the two networks of the test suite",
        ),
        (
            "at initialisation beats SNIP by 30 points on a deep MLP at density 0.02",
            "held: 83.3 against 39.2",
        ),
    ),
    "spode": (
        (
            "before fine-tuning beats magnitude and SNIP by 10 points at density 0.05 on the digits",
            "held: 92.3 against 71.9 and 33.4",
        ),
        (
            "after fine-tuning beats them by 3 points at density 0.02",
            "held at the paper's rate of 0.01: 91.6 against 87.1 and 82.9; not at 0.05: 94.1 against 91.9 and 91.3",
        ),
        (
            "more units return the sparser the target; under magnitude none do",
            "held: the number of returned units grows at every step from density 0.1 to 0.01",
        ),
        (
            "a radius of 2 hurts at density 0.01 by 10 points after fine-tuning",
            "held with the density from G: 59.3 against 83.3; not when it follows the schedule: 85.6 against 85.9",
        ),
    ),
    "spode_iterative": (
        (
            "beats iterative magnitude pruning of equal training at high sparsity",
            "not held on the digits: 94.1 against 94.7 at density 0.02, 92.5 against 92.8 at 0.01, within the spread",
        ),
    ),
    "imp": (
        (
            "beats a re-initialised network with the same mask by 15 points at a density of 0.035 and below",
            "not held: by 4.7 points at 0.035 and 6.5 at 0.022; at this learning rate new weights train well under it",
        ),
        (
            "beats the one-shot mask rewound by a point, random masks with its counts by 5, at 0.035",
            "held: 96.3 against 94.2 and 31.9",
        ),
        (
            "learning-rate rewinding is no worse than fine-tuning at the last rate",
            "held: 95.6 against 93.0 at density 0.05, 92.5 against 57.3 at 0.02",
        ),
    ),
    "acdc": (
        (
            "beats block magnitude with fine-tuning by 5 points at 90 % block sparsity, equal steps",
            "not held: 93.3 against 92.7; by 3.6 points at 95 %",
        ),
        ("the mask changes less and less from one compressed phase to the next", "open"),
    ),
    "set": (("beats a fixed random mask", "open"),),
    "rigl": (("beats SET, and a fixed random mask by 0.5 points, at 98 % sparsity", "open"),),
    "sequential_attention_pp": (
        (
            "beats block magnitude with fine-tuning by 10 points at 95 % block sparsity",
            "not held: by 5.7 points (95.2 against 89.5), since magnitude does better here than reported",
        ),
        (
            "is no worse than block AC/DC at 90 and 95 % block sparsity",
            "held: 96.3 against 93.3 and 95.2 against 93.1",
        ),
        (
            "with inputs of unequal scale beats block AC/DC by 10 points at 95 %",
            "not held: 86.9 against 89.2",
        ),
    ),
    "powerpropagation": (
        (
            "alpha 3 beats ordinary training by 10 points at density 0.05 without retraining",
            "held: 95.9 against 68.3",
        ),
        (
            "its dense network is within 1.5 points of the ordinary one",
            "held: 96.2 against 96.6 for alpha 3; alpha 4 diverged with every seed",
        ),
    ),
    "str": (
        (
            "is within 1.5 points of gradual magnitude at 90 to 95 % sparsity, equal steps",
            "held: 96.4 against 96.4 and 96.4 against 96.5",
        ),
    ),
    "probmask": (
        (
            "at density 0.02 is no worse than one-shot magnitude with equal training",
            "held: 94.1 against 92.6 (gradual magnitude: 96.1)",
        ),
    ),
    "woodfisher": (
        (
            "moving the survivors is never worse than the mask alone, one-shot",
            "held at densities 0.2 and 0.1: 96.5 against 96.2, 93.7 against 91.8; at 0.3 a tie (96.8, 96.9)",
        ),
        (
            "is within half a point of magnitude or better before fine-tuning",
            "held: 96.5 against 96.0 at density 0.2, 93.7 against 91.7 at 0.1",
        ),
    ),
}
