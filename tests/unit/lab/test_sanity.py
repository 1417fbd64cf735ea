"""Sanity controls: masks shuffled, weights drawn anew, and the gaps that forbid a picture."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.unit.lab.tiny import TINY, by_key

import openwork as ow
from openwork.errors import FileError, RecipeError
from openwork.lab import worker
from openwork.lab.budget import Budget
from openwork.lab.cells import ANEW, cells_of
from openwork.lab.compare import compare
from openwork.lab.controls import from_mask
from openwork.lab.facts import facts_of
from openwork.lab.job import Job
from openwork.lab.required import missing_controls
from openwork.lab.runner import Runner
from openwork.lab.sanity import sanity_of, verdict
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import without_times
from openwork.methods import magnitude, random
from openwork.rules.given import Given, read_units, units_to_bytes
from openwork.structure.cover import partition

GRID = {
    **TINY,
    "methods": {"magnitude": {"options": {"scope": "global"}}, "at init": {"method": "snip", "at": "init"}},
    "densities": [0.2],
    "tune": {},
    "controls": ["dense"],
    "sanity": True,
}
MOVED, ANEW_WEIGHTS = ", mask shuffled", ", weights drawn anew"


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A tiny suite with sanity controls, its workers threads of this process."""
    from tests.unit.lab.tiny import Local

    from openwork.lab import pool

    out = tmp_path_factory.mktemp("sane") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.Pool, "_process", lambda self: Local())
        return out, compare(read_suite({**GRID, "timed": 8}), out, 1)


def test_shuffled_masks_keep_the_counts_and_new_weights_the_mask(checked):
    out, results = checked
    runs = by_key(results)
    assert {r["status"] for r in runs.values()} <= {"done", "collapsed"}
    for method in ("magnitude", "at init"):
        for seed in (0, 1):
            own, moved, anew = (runs[f"digits | {method}{t} | 0.2 | seed {seed}"] for t in ("", MOVED, ANEW_WEIGHTS))
            assert own["layers"] == moved["layers"] == anew["layers"]
            dense = own["metrics"].get("dense")
            assert moved["metrics"].get("dense") == dense  # from the same trained weights, where there are any
            assert "dense" not in anew["metrics"]
            assert (own["seed"], moved["seed"], anew["seed"]) == (seed, seed, seed)
    cells = {c.key: c for c in cells_of(read_suite(GRID), facts_of(read_suite(GRID)))}
    anew = cells[f"digits | at init{ANEW_WEIGHTS} | 0.2 | seed 1"]
    assert anew.job.seed == 1 + ANEW
    assert anew.mask_of == "digits | at init | 0.2 | seed 1"
    assert len(list((out / "masks").iterdir())) == 4


def test_costs_are_counted_and_times_measured(checked):
    runs = by_key(checked[1])
    dense, own = runs["digits | dense | 1 | seed 0"], runs["digits | magnitude | 0.2 | seed 0"]
    weights = 64 * 16 + 16 * 10
    assert dense["macs"] == weights
    assert own["macs"] == own["counts"]["kept"]
    assert dense["bytes"] == 4 * dense["parameters"]
    assert own["bytes"] == 4 * own["parameters"] + weights // 8
    assert set(own["milliseconds"]) == {"dense", "packed"}
    assert all(ms > 0 for ms in own["milliseconds"].values())
    row = next(r for r in checked[1]["rows"] if r["method"] == "magnitude")
    assert row["macs"] == own["macs"]
    assert "milliseconds" not in str(without_times(checked[1]))


def test_gains_are_paired_by_seed(checked):
    suite, results = read_suite(GRID), checked[1]
    found = next(s for s in results["sanity"] if (s["method"], s["check"]) == ("magnitude", "mask shuffled"))
    runs = by_key(results)
    pairs = [
        tuple(runs[f"digits | magnitude{t} | 0.2 | seed {s}"]["metrics"]["finetuned"]["accuracy"] for t in ("", MOVED))
        for s in (0, 1)
    ]
    assert found["gain"] == pytest.approx(sum(a - b for a, b in pairs) / 2)
    assert found["seeds"] == 2
    assert len(results["sanity"]) == 4
    assert sanity_of(replace(suite, sanity=False), results["cells"]) == []
    failed = [r | {"status": "failed"} if "shuffled" in r["method"] else r for r in results["cells"]]
    assert {s["verdict"] for s in sanity_of(suite, failed) if s["check"] == "mask shuffled"} == {"no result"}
    rule = next(r for r in results["rules"] if r["rule"].startswith("sanity checks"))
    assert rule["met"]
    assert verdict(0.01, 0.0, 3) == "better"


def test_a_failed_mask_fails_its_controls(local, tmp_path):
    grid = {**GRID, "methods": {"magnitude": None}, "seeds": [0], "controls": []}
    results = compare(read_suite(grid), tmp_path / "o", 1)
    record = next(f for f in (tmp_path / "o" / "cells").glob("digits-magnitude-0.2-seed*.json"))
    for file in (tmp_path / "o" / "cells").glob("*shuffled*.json"):
        file.unlink()
    import json

    told = json.loads(record.read_text()) | {"status": "failed", "error": "on purpose", "metrics": {}}
    record.write_text(json.dumps(told))
    for file in (tmp_path / "o" / "masks").iterdir():
        file.unlink()
    again = by_key(compare(read_suite(grid), tmp_path / "o", 1, resume=True))
    moved = again[f"digits | magnitude{MOVED} | 0.2 | seed 0"]
    assert moved["error"] == "the run whose mask it takes failed: on purpose"
    assert by_key(results)[moved["key"]]["status"] != "failed"


def test_growth_keeps_its_over_parameterisation():
    budget = Budget(epochs=2, finetune_epochs=0, batch_size=64, lr=0.1, finetune_lr=0.1)
    job = Job("mlp", "digits", "set", 0.2, options={"every": 5}, budget=budget, model_options={"hidden": [16]})
    _, result = Runner(job).run()
    told = worker._measured(SimpleNamespace(job=job, kind="run"), result)
    rates = [entry["ever_active"] for entry in result.log if "ever_active" in entry]
    assert told["ever_active"] == rates[-1] > rates[0] >= 0.2


def test_given_masks(tmp_path):
    model = ow.build_model("mlp", (1, 8, 8), 10, hidden=[16])
    for structure in (ow.NM(2, 4), ow.Block(4, 4), ow.Element(per="row")):
        result = ow.prune(
            ow.build_model("mlp", (1, 8, 8), 10, hidden=[16]), magnitude(density=0.5, structure=structure)
        )
        path = tmp_path / "m.safetensors"
        path.write_bytes(units_to_bytes(result.units))
        for shuffled in (False, True):
            again = ow.prune(
                ow.build_model("mlp", (1, 8, 8), 10, hidden=[16]),
                from_mask(str(path), shuffled, structure, ow.Select()),
            )
            same = all(torch.equal(again.units[n], u) for n, u in result.units.items())
            assert same != shuffled
            parts = partition(model, structure, ow.Select())[0]
            for name, part in parts.items():
                size = part.scope() if isinstance(part.scope(), int) else part.n_units
                counts = [u[name].view(-1, size).sum(1) for u in (again.units, result.units)]
                assert torch.equal(*counts)
    assert ow.Recipe.from_dict(again.recipe.to_dict()) == again.recipe


def test_a_random_mask_is_shuffled_as_well(tmp_path):
    path, made = tmp_path / "m.safetensors", []
    for recipe in (random(density=0.3), None, None):
        model = ow.build_model("mlp", (1, 8, 8), 10, hidden=[16])
        made.append(ow.prune(model, recipe or from_mask(str(path), True, ow.Element(), ow.Select()), seed=5).units)
        path.write_bytes(units_to_bytes(made[0]))
    assert not any(torch.equal(u, made[1][n]) for n, u in made[0].items())
    assert all(torch.equal(u, made[2][n]) for n, u in made[1].items())


def test_masks_that_do_not_fit_are_refused(tmp_path):
    model = ow.build_model("mlp", (1, 8, 8), 10, hidden=[16])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileError, match="no such mask"):
        read_units(path)
    path.write_bytes(b"junk")
    with pytest.raises(FileError, match="m.safetensors: not a readable mask"):
        read_units(path)
    path.write_bytes(units_to_bytes({"1.weight": torch.arange(7) < 3}))
    recipe = replace(from_mask(str(path), True, ow.Element(), ow.Select()), schedule=magnitude(density=0.5).schedule)
    assert recipe.rule == Given(str(path), True)
    with pytest.raises(
        FileError, match="the mask is of another model or structure: 3.weight is missing, unknown or has"
    ):
        ow.prune(model, recipe)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(RecipeError, match="a mask needs the structure it was made with as an object, got 'block:8x8'"):
        Job("mlp", "digits", mask=str(path), structure="block:8x8")
    with pytest.raises(FileError, match="the mask is of another model"):
        Runner(Job("mlp", "digits", mask=str(path), at="init", density=0.5)).run()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"sanity": "yes"}, "sanity: must be true or false, got 'yes'"),
        ({"timed": -1}, "timed: must be a batch size, or 0 to time nothing, got -1"),
        ({"timed": True}, "timed: must be a batch size, or 0 to time nothing, got True"),
        ({"methods": {"a, mask shuffled": "magnitude"}}, "is the name of a control"),
    ],
)
def test_refused_suites(part, message):
    with pytest.raises(RecipeError, match=message):
        read_suite({**TINY, **part})


def test_gaps_are_named_by_structure_and_start():
    def row(method, role="method", density=0.5, structure="element", pretrained=True, missing=None):
        told = None if missing else {"mean": 0.5, "std": None, "values": [0.5]}
        place = {"setting": "digits", "method": method, "role": role, "structure": structure, "density": density}
        return {**place, "pretrained": pretrained, "missing": missing, "finetuned": told}

    suite = read_suite({**TINY, "densities": [0.5, 0.05]})
    control = [
        row("dense", "control", 1.0, "-"),
        row("dense, fine-tuned as long", "control", 1.0, "-"),
        *(row("random (layer)", "control", d) for d in (0.5, 0.05)),
        *(row("small dense", "control", d, "-", False, "no width option") for d in (0.5, 0.05)),
    ]
    mine = [row("magnitude", density=d) for d in (0.5, 0.05)]
    assert missing_controls(suite, [*control, *mine]) == []
    late = [row("gradual", density=d, pretrained=False) for d in (0.5, 0.05)]
    gaps = missing_controls(suite, [*control, *mine, *late])
    assert [(g["control"], g["densities"]) for g in gaps] == [("extra", []), ("random", [0.5, 0.05])]
    gaps = missing_controls(suite, [*(c for c in control if c["density"] != 0.05), *mine])
    assert [(g["control"], g["densities"]) for g in gaps] == [("random", [0.05]), ("small", [0.05])]
    named = row("random (mine)", density=0.05)  # a method, not a control
    gaps = missing_controls(suite, [*(c for c in control if c["method"] != "random (layer)"), *mine, named])
    assert [(g["control"], g["densities"]) for g in gaps] == [("random", [0.5, 0.05])]
    moved = row("random (layer), mask shuffled", "control", 0.05)
    assert missing_controls(suite, [*(c for c in control if c["method"] != "random (layer)"), *mine, moved]) == gaps
    assert [g["control"] for g in missing_controls(suite, mine)] == ["dense", "extra", "random", "small"]
