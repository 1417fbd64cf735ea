"""What the papers claim, and what was measured here.

A state starts with ``held``, ``not held`` or ``open`` (nothing measured yet) and says the numbers.
"""

from __future__ import annotations

CLAIMS: dict[str, tuple[tuple[str, str], ...]] = {
    "magnitude": (
        ("one ranking over the model beats equal layer shares at 95 % sparsity on unequal layers", "open"),
        ("equal layer shares beat one ranking for blocks when the ranking empties a layer", "open"),
    ),
    "random": (
        ("ERK shares beat equal shares by 0.5 points at 95 % sparsity", "open"),
        ("the gap to the dense network shrinks as the network gets wider", "open"),
    ),
    "global_mp": (
        ("beats equal layer shares by 0.5 points at 95 % sparsity", "open"),
        ("the floor restores a network whose layer would empty at 99.5 % sparsity", "open"),
    ),
    "gradual_magnitude": (
        ("at equal steps beats one-shot pruning from a density of 0.02 down", "open"),
        ("a large sparse network beats a small dense one of equal size by a point", "open"),
    ),
    "taylor": (("removes units of a trained network at a smaller loss than their norm does", "open"),),
    "snip": (
        ("at initialisation beats magnitude and random by 30 points on a deep MLP at density 0.05", "open"),
        ("falls to chance at 98 to 99 % sparsity, where SynFlow does not", "open"),
    ),
    "grasp": (
        ("at initialisation beats SNIP by 10 points on a deep MLP at density 0.01", "open"),
        ("keeps a larger gradient than SNIP and random masks", "open"),
    ),
    "synflow": (
        ("keeps one weight in every layer at the smallest possible density, and one round does not", "open"),
        ("at initialisation beats SNIP by 30 points on a deep MLP at density 0.02", "open"),
    ),
    "spode": (
        ("before fine-tuning beats magnitude and SNIP by 10 points at density 0.05 on the digits", "open"),
        ("after fine-tuning beats them by 3 points at density 0.02", "open"),
        ("more units return the sparser the target; under magnitude none do", "open"),
    ),
    "spode_iterative": (("beats iterative magnitude pruning of equal training at high sparsity", "open"),),
    "imp": (
        ("beats a re-initialised network with the same mask by 15 points at a density of 0.035 and below", "open"),
        ("learning-rate rewinding is no worse than fine-tuning", "open"),
    ),
    "acdc": (
        ("beats block magnitude with fine-tuning by 5 points at 90 % block sparsity, equal steps", "open"),
        ("the mask changes less and less from one compressed phase to the next", "open"),
    ),
    "set": (("beats a fixed random mask", "open"),),
    "rigl": (("beats SET, and a fixed random mask by 0.5 points, at 98 % sparsity", "open"),),
    "sequential_attention_pp": (
        ("beats block magnitude with fine-tuning by 10 points at 95 % block sparsity", "open"),
        ("beats block AC/DC at 90 and 95 % block sparsity, by more the sparser", "open"),
        ("with inputs of unequal scale beats block AC/DC by 10 points at 95 %", "open"),
    ),
}
