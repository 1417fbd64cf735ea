"""The small dense control: one for each structure, of as many parameters as its methods keep, or the rule is unmet."""

import json
from dataclasses import replace

import pytest
import torch
from tests.unit.lab.tiny import TINY

from openwork.lab.cells import cells_of
from openwork.lab.controls import NEAR, Small, small_dense
from openwork.lab.facts import facts_of
from openwork.lab.place import finished
from openwork.lab.planning import plan
from openwork.lab.required import missing_controls, too_small
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import SMALL_RULE, rules_of, small_rule
from openwork.zoo import build_model

BLOCKS = {"method": "magnitude", "structure": "block:8x8"}
NETWORK = {"model": "resnet8", "data": "digits", "budget": {"epochs": 1, "finetune_epochs": 1}}


def lines(grid):
    """The small dense cells of a suite that count, by name and density."""
    suite = read_suite(grid)
    cells = cells_of(suite, facts_of(suite))
    return {(c.method, c.density): c for c in cells if c.method.startswith("small dense") and c.key.endswith("seed 0")}


def row(method, parameters, role="method", density=0.05, structure="element", done=True):
    told = {"mean": 0.5, "std": None, "values": [0.5]} if done else None
    place = {"setting": "digits", "method": method, "role": role, "structure": structure, "density": density}
    return {**place, "parameters": parameters, "pretrained": True, "missing": None, "finetuned": told, "pruned": told}


def test_every_structure_has_a_small_network_of_its_own():
    one = lines({**TINY, "methods": {"magnitude": None}})
    assert set(one) == {("small dense", 0.5), ("small dense", 0.05)}
    assert {c.structure for c in one.values()} == {"-"}
    both = {**TINY, "methods": {"blocks": BLOCKS, "magnitude": None}}
    both["settings"] = {"digits": {**TINY["settings"]["digits"], "where": {"exclude": ["3.weight"]}}}
    both["methods"]["magnitude"] = {"where": {"include": ["*"]}}
    two = lines(both)
    assert {name for name, _ in two} == {"small dense block:8x8", "small dense element"}
    assert {c.structure for c in two.values()} == {"block:8x8", "element"}
    for density, same in ((0.5, True), (0.05, False)):
        wide, narrow = (
            two[f"small dense {word}", density].job.model_options["hidden"] for word in ("block:8x8", "element")
        )
        assert wide >= narrow
        assert same or wide > narrow  # more stays where fewer tensors are pruned
    first, second = two["small dense block:8x8", 0.05], two["small dense element", 0.05]
    assert first.key == "digits | small dense | 0.05 | seed 0"  # as finished comparisons hold it
    assert second.key == "digits | small dense element | 0.05 | seed 0"
    assert all(" | small dense | 0.05 | tune" in key for key in first.tuned)
    assert all(" | small dense element | 0.05 | tune" in key for key in second.tuned)


def test_structures_of_one_word_are_numbered():
    narrow = {"method": "magnitude", "where": {"include": ["1.weight"]}}
    names = {name for name, _ in lines({**TINY, "methods": {"magnitude": None, "first layer": narrow}})}
    assert names == {"small dense element #1", "small dense element #2"}


def test_records_of_older_folders_get_the_names_of_today(tmp_path):
    suite = read_suite({**TINY, "methods": {"magnitude": None, "blocks": BLOCKS}})
    cells = cells_of(suite, facts_of(suite))
    cell = next(c for c in cells if c.key == "digits | small dense | 0.05 | seed 0")
    old = {"key": cell.key, "status": "done", "error": None, "metrics": {}, "method": "small dense", "structure": "-"}
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{cell.file}.json").write_text(json.dumps(old))
    kept = finished(tmp_path, cells)[cell.key]
    assert (kept["method"], kept["structure"]) == ("small dense element", "element")


def test_finer_widths_have_keys_of_their_own():
    grid = {**TINY, "settings": {"d": NETWORK}, "methods": {"magnitude": None}, "densities": [0.5, 0.1, 0.05]}
    told = lines(grid)
    finer = {d for (_, d), c in told.items() if "widths" in c.job.model_options}
    assert finer
    assert finer < {0.5, 0.1, 0.05}
    for (_, density), cell in told.items():
        marked = f"d | small dense | {density}, finer widths"
        plain = f"d | small dense | {density}"
        start = marked if density in finer else plain
        assert cell.key == f"{start} | seed 0"
        assert cell.tuned == tuple(f"{start} | tune lr {lr}" for lr in (0.001, 0.2))
    chooser = max(finer)
    told = lines({**grid, "tune": {**TINY["tune"], "density": chooser}})
    assert all("finer widths" in c.key for c in told.values())  # all take the rate that this network chose
    assert {c.tuned[0] for c in told.values()} == {f"d | small dense | {chooser}, finer widths | tune lr 0.001"}


@pytest.mark.parametrize(
    ("model", "options", "shape", "parameters"),
    [
        ("resnet8", {"stem_stride": 2}, (1, 28, 28), 4_536),
        ("resnet8", {}, (3, 32, 32), 2_200),
        ("resnet20", {}, (3, 32, 32), 14_803),
        ("resnet20", {}, (3, 32, 32), 4_070),
        ("resnet18", {"stem": "small"}, (3, 32, 32), 60_000),
        ("vit", {}, (3, 32, 32), 9_000),
        ("mlp", {"hidden": [64, 64]}, (3, 32, 32), 20_000),
        ("lenet", {}, (1, 28, 28), 1_000),
    ],
)
def test_networks_come_near(model, options, shape, parameters):
    found = small_dense(model, options, shape, 10, parameters)
    assert isinstance(found, Small)
    assert NEAR * parameters <= found.parameters <= parameters
    built = build_model(model, shape, 10, **found.options)
    assert sum(p.numel() for p in built.parameters()) == found.parameters
    assert built(torch.zeros(2, *shape)).shape == (2, 10)
    assert small_dense(model, options, shape, 10, found.parameters).parameters <= found.parameters


def test_the_next_larger_network_is_taken_where_it_is_nearer():
    assert small_dense("mlp", {"hidden": [32]}, (1, 8, 8), 10, 279) == Small({"hidden": [4]}, 310, True)
    assert small_dense("mlp", {"hidden": [32]}, (1, 8, 8), 10, 275) == Small({"hidden": [3]}, 235)  # 310 is too large


def test_a_small_network_that_is_too_small_breaks_the_rule():
    small = row("small dense", 1_482, "control", structure="-")
    assert small_rule([small, row("a", 1_559)])["met"]
    told = small_rule([small, row("a", 2_698), row("b", 2_826), row("c", 1_559)])
    assert not told["met"]
    assert told["rule"] == SMALL_RULE
    assert told["detail"] == "fewer than 90 % of the parameters: digits at 0.05: 1,482 for 2,826"
    own = row("small dense block:8x8", 2_700, "control", structure="block:8x8")
    blocks = row("b", 2_826, structure="block:8x8")
    element = row("small dense element", 1_482, "control")
    assert too_small([element, own, row("a", 1_559), blocks]) == []
    assert too_small([element, blocks]) == []  # none at all is another gap
    assert small_rule([small, row("a", 2_698)], ["d at 0.1"])["detail"].startswith("missing: d at 0.1; fewer than 90 %")


def test_a_small_network_of_another_structure_is_a_gap():
    suite = read_suite({**TINY, "methods": {"magnitude": None, "blocks": BLOCKS}, "densities": [0.05]})
    rows = [row("magnitude", 100), row("blocks", 200, structure="block:8x8")]
    rows += [row("small dense element", 100, "control")]
    gaps = [g["structure"] for g in missing_controls(suite, rows) if g["control"] == "small"]
    assert gaps == ["block:8x8"]
    rule = next(r for r in rules_of(suite, rows) if r["rule"] == SMALL_RULE)
    assert rule["detail"] == "missing: digits at 0.05"
    rows.append(row("small dense block:8x8", 190, "control", structure="block:8x8"))
    assert next(r for r in rules_of(suite, rows) if r["rule"] == SMALL_RULE)["met"]
    assert not next(r for r in rules_of(replace(suite, densities=(0.05, 0.5)), rows) if r["rule"] == SMALL_RULE)["met"]


def test_plans_name_the_small_networks_that_cannot_be():
    grid = {**TINY, "methods": {"magnitude": None, "blocks": BLOCKS}, "densities": [0.5]}
    grid["settings"] = {"d": {"model": "lenet300", "data": "digits"}}
    told = plan(read_suite(grid), 1)["missing"]
    assert [m["method"] for m in told] == ["small dense element", "small dense block:8x8"]
