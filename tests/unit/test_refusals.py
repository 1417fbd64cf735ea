"""One row per refusal: the call, the error, and words of its message."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.unit.refusing import deep, net, prune, recipe_file
from torch import nn

import openwork as ow
from openwork.allocation import ErdosRenyi, Global, Uniform
from openwork.core.compose import Chain, On
from openwork.core.masks import Masks, unpack_bits
from openwork.core.recipe import Recipe
from openwork.core.select import count_kept, keep_top
from openwork.core.serial import from_plain, to_plain
from openwork.core.views import linear_view
from openwork.criteria import Magnitude
from openwork.errors import (
    FileError,
    OpenworkError,
    RecipeError,
    StructureError,
)
from openwork.methods import acdc, magnitude
from openwork.rules.topk import TopK
from openwork.schedules import Cubic, OneShot, Periodic, Phases, Rounds, Stretch
from openwork.schedules.shapes import _Gradual
from openwork.structure import NM, Block, Element, GroupOf, Tiles, partition

ROWS = [
    # selection
    (lambda t: count_kept(0.5, 4, "up"), OpenworkError, "rounding must be 'ceil', 'floor' or 'nearest', got 'up'"),
    (lambda t: keep_top(torch.ones(2, 2), 1), OpenworkError, r"scores must be one-dimensional, got shape \(2, 2\)"),
    (lambda t: keep_top(torch.tensor([1.0, math.nan]), 1), OpenworkError, "scores must not be NaN, got NaN at unit 1"),
    (lambda t: keep_top(torch.ones(4), 5), OpenworkError, "keep must be between 0 and the 4 units, got 5"),
    (lambda t: keep_top(torch.ones(4), -1), OpenworkError, "keep must be between 0 and the 4 units, got -1"),
    (lambda t: keep_top(torch.ones(4), 1, 3), OpenworkError, "runs of 3 do not divide 4 units"),
    (lambda t: keep_top(torch.ones(4), 3, 2), OpenworkError, "keep must be between 0 and 2 in every run, got"),
    (
        lambda t: keep_top(torch.ones(4), 1, torch.zeros(3, dtype=torch.int64)),
        OpenworkError,
        "scope needs one id per unit",
    ),
    (
        lambda t: keep_top(torch.ones(2), 2, torch.tensor([0, 1])),
        OpenworkError,
        "the size of its region in every region",
    ),
    # masks
    (lambda t: Masks({"w": torch.ones(2)}), OpenworkError, "w: a mask must be bool, got torch.float32"),
    (
        lambda t: Masks({"w": torch.ones(2) > 0}).distance({}),
        OpenworkError,
        "masks of different tensors cannot be compared",
    ),
    (
        lambda t: unpack_bits(torch.zeros(1, dtype=torch.uint8), (9,)),
        FileError,
        r"a packed mask of shape \(9,\) needs 2 bytes",
    ),
    (
        lambda t: Masks.unpack({"w": torch.zeros(1, dtype=torch.uint8)}, {}),
        FileError,
        "packed masks and shapes must name the same tensors",
    ),
    # recipes
    (lambda t: magnitude(0.7, NM(2, 4)), RecipeError, "keeps 0.5 by definition, but density 0.7 was asked"),
    (
        lambda t: from_plain({"kind": "Select", "include": "fc"}),
        OpenworkError,
        "Select: include must be of type|include must be a tuple",
    ),
    (
        lambda t: Recipe.from_dict({"format": 1, "kind": "Recipe", "name": deep(200)}),
        RecipeError,
        "deep; this is no recipe",
    ),
    (lambda t: Recipe.from_dict([]), RecipeError, "a recipe must be a mapping with format: 1, got 'list'"),
    (
        lambda t: Recipe.from_dict({"format": 1, "kind": "Element"}),
        RecipeError,
        "a recipe must have kind: Recipe, got Element",
    ),
    (
        lambda t: from_plain({"kind": "os.system"}),
        RecipeError,
        "unknown kind 'os.system' in a recipe; known: AdaptivePruning",
    ),
    (
        lambda t: from_plain({"kind": "Element", "par": "row"}),
        RecipeError,
        "Element: unknown key 'par'; did you mean 'per'",
    ),
    (
        lambda t: from_plain({"kind": "Block", "rows": 1}),
        RecipeError,
        "Block: .*missing 1 required positional argument: 'cols'",
    ),
    (lambda t: to_plain(SimpleNamespace()), RecipeError, "a recipe must be plain data, got"),
    (
        lambda t: to_plain(partition(net(), Element(), ow.Select())[0]["0.weight"]),
        RecipeError,
        "only openwork's own parts can be written",
    ),
    (lambda t: magnitude(0.5).save(t / "r.txt"), FileError, "a recipe file must end in .json, .yaml or .yml"),
    (lambda t: Recipe.load(t / "r.json"), FileError, "no such recipe file"),
    (lambda t: recipe_file(t, "r.json", "{"), FileError, "not valid JSON or YAML"),
    (lambda t: recipe_file(t, "r.yaml", "a: [1"), FileError, "not valid YAML|not valid JSON or YAML"),
    (lambda t: ow.prune(net(), "magnitude"), RecipeError, "a recipe must be a Recipe, got str; call a method"),
    (lambda t: Chain(()), RecipeError, "Chain: needs at least one rule, got none"),
    (
        lambda t: prune(On("x*", TopK(Magnitude()))),
        RecipeError,
        r"On: pattern 'x\*' matches none of the pruned tensors",
    ),
    # structures
    (lambda t: Element("col"), StructureError, "Element: per must be 'tensor' or 'row', got 'col'"),
    (lambda t: Block(0, 4), StructureError, "Block: rows and cols must be positive integers, got 0 and 4"),
    (lambda t: NM(5, 4), StructureError, "NM: keep must be between 1 and of, got keep=5, of=4"),
    (lambda t: NM(2, 4, dim=2), StructureError, r"NM: dim must be 1 \(inputs\) or 0 \(outputs\), got 2"),
    (lambda t: GroupOf(0), StructureError, "GroupOf: size must be a positive integer, got 0"),
    (lambda t: GroupOf(2, dim=3), StructureError, r"GroupOf: dim must be 1 \(inputs\) or 0 \(outputs\), got 3"),
    (
        lambda t: partition(nn.Conv2d(3, 4, 3), GroupOf(2), ow.Select()),
        StructureError,
        "needs a channel count divisible by 2, but it is 3",
    ),
    (
        lambda t: partition(net(), ow.Filter(), ow.Select()),
        StructureError,
        "fits none of the 2 selected tensors .Filter applies to convolutions only",
    ),
    (
        lambda t: partition(nn.ReLU(), Element(), ow.Select()),
        StructureError,
        "has no parameters, so there is nothing to prune",
    ),
    (lambda t: Tiles("w", linear_view((2, 2))).spread(torch.ones(3)), StructureError, "w: 4 units expected, got 3"),
    (lambda t: ow.Select("fc"), StructureError, "include must be a tuple of patterns, got 'fc'"),
    (lambda t: ow.Select(min_units=0), StructureError, "min_units must be at least 1, got 0"),
    # schedules
    (lambda t: OneShot(0.5, -1), RecipeError, "OneShot: at must not be negative, got -1"),
    (lambda t: Cubic(0.5, 5, 5), RecipeError, "Cubic: needs 0 <= begin < end, got 5 and 5; use OneShot for one step"),
    (lambda t: Cubic(0.5, 0, 5, 0), RecipeError, "Cubic: every must be at least 1 step, got 0"),
    (lambda t: Cubic(0.5, 0, 5, initial=0.2), RecipeError, "Cubic: initial 0.2 must not be below density 0.5"),
    (lambda t: Periodic(0.5, 0, 5), RecipeError, "Periodic: every must be at least 1 step"),
    (lambda t: Rounds(0.5, 0), RecipeError, "Rounds: rounds must be at least 1, got 0"),
    (lambda t: Rounds(0.5, 1, "all"), RecipeError, "Rounds: rewind must be 'none', 'weights' or 'lr', got 'all'"),
    (lambda t: _Gradual(0.5, 0, 5).share(0.5), RecipeError, "_Gradual has no curve"),
    (lambda t: Stretch("soft", 0.5), RecipeError, "Stretch: phase must be 'dense', 'soften' or 'sparse', got 'soft'"),
    (lambda t: Stretch("dense", 0), RecipeError, r"Stretch: fraction must be in \(0, 1\], got 0"),
    (
        lambda t: Phases(0.5, 10, (Stretch("dense", 1),)),
        RecipeError,
        "the last stretch must be sparse, otherwise the density is never reached",
    ),
    (lambda t: Phases(0.5, 10, (Stretch("sparse", 0.5),)), RecipeError, "the fractions must sum to 1, got 0.500000"),
    (
        lambda t: Phases(0.5, 10, (Stretch("sparse", 1),), every=0),
        RecipeError,
        "needs every >= 1 and exponent > 0, got 0",
    ),
    (
        lambda t: Phases(0.5, 10, (Stretch("sparse", 1),), restart="x"),
        RecipeError,
        "restart must be 'all', 'dense' or 'none', got 'x'",
    ),
    (lambda t: acdc(density=0.5, steps=5), RecipeError, r"5 steps give the \w+ phase of 0.\d+ no step; train longer"),
    # allocations
    (lambda t: Uniform(at_least=-1), RecipeError, "Uniform: at_least must not be negative, got -1"),
    (lambda t: ErdosRenyi(at_least=-1), RecipeError, "ErdosRenyi: at_least must not be negative, got -1"),
    (
        lambda t: Global(floor_share=1.0),
        RecipeError,
        r"Global: floor must be >= 0 and floor_share in \[0, 1\), got 0 and 1.0",
    ),
    (
        lambda t: prune(TopK(Magnitude(), Global(floor=40))),
        RecipeError,
        "a floor of 40 units in each of 2 tensors needs 80 units, but the budget is 72 of 144",
    ),
    (
        lambda t: prune(TopK(Magnitude(), Global()), NM(2, 4)),
        RecipeError,
        "cannot be ranked over the whole model; use the layer-wise scope",
    ),
    (lambda t: prune(TopK(Magnitude(), ErdosRenyi()), NM(2, 4)), RecipeError, "fixes its densities; use Uniform"),
    (
        lambda t: prune(TopK(Magnitude(), ErdosRenyi(at_least=48))),
        RecipeError,
        "72 units cannot be shared with at_least=48 in every tensor",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ROWS, ids=[m[:40] for _, _, m in ROWS])
def test_refused_with_these_words(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path)
