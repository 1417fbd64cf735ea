"""What a comparison says and plans, and the folders it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from tests.unit.lab.tiny import TINY, by_key

from openwork.errors import FileError, RecipeError
from openwork.lab import place, planning
from openwork.lab.cells import cells_of
from openwork.lab.compare import compare
from openwork.lab.controls import small_dense
from openwork.lab.facts import facts_of
from openwork.lab.planning import plan, steps_of
from openwork.lab.store import Database, read_records
from openwork.lab.suite_file import read_suite
from openwork.report.suite_page import compare_table, suite_html


def test_the_page_says_what_is_missing(done):
    results = done[1]
    page = suite_html(results)
    broken = [r["rule"] for r in results["rules"] if not r["met"]]
    assert broken == ["at least 5 densities", "at least 3 seeds"]
    assert "Incomplete: 2 of 8 rules" in page
    assert "suite (incomplete)" in page
    assert page.count("<script") == 1
    assert results["manifest"]["data"]["digits"] in page
    assert "openwork compare suite.yaml" in page
    assert page.count("<polyline") > 5


def test_the_table_is_markdown(done):
    lines = compare_table(done[1]).splitlines()
    assert lines[0].startswith("| method | density | after pruning | recalibrated | fine-tuned | drop |")
    assert len(lines) == 2 + len(done[1]["rows"])
    row = next(r for r in done[1]["rows"] if (r["method"], r["density"]) == ("small dense", 0.05))
    dense = next(r for r in done[1]["rows"] if r["method"] == "dense")
    assert row["drop"]["mean"] == pytest.approx(dense["finetuned"]["mean"] - row["finetuned"]["mean"])
    assert row["drop"]["mean"] > 0
    assert 0.04 < row["reached"]["total"] < 0.08


def test_small_dense_models_fit():
    for model, shape in (("mlp", (1, 8, 8)), ("lenet", (1, 28, 28)), ("resnet8", (3, 32, 32)), ("vit", (3, 32, 32))):
        found = small_dense(model, {}, shape, 10, 20_000)
        assert not isinstance(found, str)
        assert 10_000 < found[1] <= 20_000, model
    assert small_dense("click_mlp", {"sizes": [5, 5]}, (12,), 2, 10_000)[0]["hidden"] == [62, 62, 62]
    assert small_dense("vgg16_bn", {}, (3, 32, 32), 10, 100_000)[0]["widths"][0] * 8 <= 64
    assert small_dense("resnet8", {"width": 4}, (1, 28, 28), 10, 10**9)[0] == {"width": 4}
    assert small_dense("lenet300", {}, (1, 28, 28), 10, 1000) == "the zoo model lenet300 has no width option"
    assert small_dense("mlp", {}, (1, 8, 8), 10, 20) == "no width of mlp has 20 parameters or fewer"


STREAMED = """
import torch
from openwork.data.dataset import StreamedSet
from openwork.data.sources import TensorSource

def streamed():
    source = TensorSource(torch.rand(64, 1, 8, 8), torch.arange(64) % 4)
    return StreamedSet("streamed", source, source, 4)

def clicks():
    source = TensorSource(torch.rand(2000, 1, 8, 8), (torch.arange(2000) % 4 == 3).long())
    return StreamedSet("clicks", source, source, 2)

class Never(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 2)

    def forward(self, x):
        return 0 * self.fc(x.flatten(1)) + torch.tensor([1.0, 0.0])
"""


def test_streamed_data_are_compared_without_tuning(tmp_path, local, monkeypatch):
    (tmp_path / "streamed_data.py").write_text(STREAMED)
    monkeypatch.syspath_prepend(tmp_path)
    setting = {"model": "mlp", "data": "streamed_data:streamed", "budget": {"epochs": 1, "finetune_epochs": 1}}
    grid = {**TINY, "settings": {"s": setting}, "methods": {"magnitude": None}, "controls": [], "seeds": [0]}
    with pytest.raises(RecipeError, match="settings.s: tune needs data in memory to hold a validation split out"):
        facts_of(read_suite(grid))
    results = compare(read_suite({**grid, "tune": {}}), tmp_path / "o", 1)
    assert {r["chance"] for r in results["cells"]} == {0.25}
    assert plan(read_suite({**grid, "tune": {}}), 1)["seconds"] > 0


def test_the_majority_of_streamed_labels_is_a_collapse(tmp_path, local, monkeypatch):
    (tmp_path / "streamed_clicks.py").write_text(STREAMED)
    monkeypatch.syspath_prepend(tmp_path)
    budget = {"epochs": 0.1, "finetune_epochs": 0.1}
    setting = {"model": "streamed_clicks:Never", "data": "streamed_clicks:clicks", "budget": budget}
    grid = {"settings": {"s": setting}, "methods": {"random": {"at": "init"}}, "densities": [0.5], "seeds": [0]}
    suite = read_suite({**grid, "controls": []})
    facts = facts_of(suite)
    assert facts["s"].chance == 0.75
    assert {c.chance for c in cells_of(suite, facts)} == {0.75}
    results = compare(suite, tmp_path / "o", 1)
    assert [(r["status"], r["chance"], r["metrics"]["finetuned"]["accuracy"]) for r in results["cells"]] == [
        ("collapsed", 0.75, 0.75)
    ]
    assert results["settings"][0]["chance"] == 0.75


def test_given_weights_replace_dense_training(local, done, tmp_path):
    weights = next((done[0] / "dense").glob("*dense-1-seed-1*.safetensors"))
    setting = {**TINY["settings"]["digits"], "checkpoint": str(weights)}
    small = {**TINY, "settings": {"digits": setting}, "methods": {"magnitude": None}, "controls": ["dense"]}
    suite = read_suite({**small, "densities": [0.5], "seeds": [1], "tune": {"lr": [0.1]}})
    facts = facts_of(suite)
    assert [steps_of(c, facts["digits"]) for c in cells_of(suite, facts)] == [0, 23, 23]
    given, trained = by_key(compare(suite, tmp_path / "o", 1)), by_key(done[1])
    key = "digits | dense | 1 | seed 1"
    assert given[key]["metrics"]["finetuned"] == trained[key]["metrics"]["finetuned"]


def test_a_plan_counts_steps_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = plan(read_suite({**TINY, "methods": {"imp": {"options": {"rounds": 2}}, "magnitude": {}}}), 1)
    steps = {c["key"]: c["steps"] for c in found["cells"]}
    assert steps["digits | dense | 1 | seed 0"] == 46
    assert steps["digits | magnitude | 0.5 | seed 0"] == 23
    assert steps["digits | imp | 0.5 | seed 0"] == 3 * 46
    assert found["seconds"] > 0
    assert found["done"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_plan_leaves_out_what_is_done_already(done, tmp_path):
    suite = read_suite(TINY)
    whole = plan(suite, 1)
    shutil.copytree(done[0], tmp_path / "half")
    gone = sorted((tmp_path / "half" / "cells").glob("*magnitude*.json"))[0]
    key = json.loads(gone.read_text())["key"]
    gone.unlink()
    for options in (
        {"resume": True, "out": tmp_path / "half"},
        {"merge": [tmp_path / "half"], "out": tmp_path / "new"},
    ):
        left = plan(suite, 1, **options)
        assert [c["key"] for c in left["cells"]] == [key]
        assert left["done"] == len(whole["cells"]) - 1
        assert left["seconds"] < whole["seconds"]
    with pytest.raises(FileError, match="exists already; continue it with --resume"):
        plan(suite, 1, tmp_path / "half")
    assert plan(suite, 1, tmp_path / "half", overwrite=True)["done"] == 0
    with pytest.raises(FileError, match="was made from another suite or other data"):
        plan(read_suite({**TINY, "seeds": [7]}), 1, tmp_path / "new", merge=[tmp_path / "half"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_plan_is_timed_in_the_precision_of_the_run(precision, monkeypatch):
    seen, settings = [], {"digits": {**TINY["settings"]["digits"], "budget": {"precision": precision}}}
    monkeypatch.setattr(planning, "computing_in", lambda given, forward: seen.append(given) or forward)
    plan(read_suite({**TINY, "settings": settings}), 1)
    assert seen == [precision]


def test_folders_in_the_way_are_left_alone(done, tmp_path, monkeypatch):
    suite, other = read_suite(TINY), read_suite({**TINY, "seeds": [7]})
    with pytest.raises(RecipeError, match="--jobs must be at least 1, got 0"):
        compare(suite, tmp_path / "o", 0)
    with pytest.raises(FileError, match="exists already; continue it with --resume, discard it with --overwrite"):
        compare(suite, done[0])
    with pytest.raises(FileError, match="was made from another suite or other data; resume with the same suite"):
        compare(other, done[0], resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="is a file, a comparison needs a folder"):
        compare(suite, tmp_path / "file")
    with pytest.raises(FileError, match="the folder cannot be used"):
        compare(suite, tmp_path / "file" / "below")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(FileError, match="is not empty and holds no comparison; choose another folder"):
            compare(suite, tmp_path / "mine", **how)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ".suite.json.part").write_text("{")  # what a kill may leave behind
    with place.held(tmp_path / "cut", place.told_of(suite, facts_of(suite)), True, False):
        assert (tmp_path / "cut" / "suite.json").is_file()
    monkeypatch.setattr(place, "PATIENCE", 0.0)
    fcntl = pytest.importorskip("fcntl")
    with (done[0] / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FileError, match="another comparison is running in this folder; wait for its end"):
            compare(suite, done[0], resume=True)


def test_overwriting_begins_anew_and_keeps_foreign_files(local, tmp_path):
    tiny = {**TINY, "densities": [0.5], "seeds": [0], "tune": {}, "controls": [], "methods": {"magnitude": None}}
    compare(read_suite(tiny), tmp_path / "o", 1)
    (tmp_path / "o" / "notes.txt").write_text("mine")
    results = compare(read_suite({**tiny, "seeds": [1]}), tmp_path / "o", 1, overwrite=True)
    assert {r["seed"] for r in results["cells"]} == {1}
    assert len(list((tmp_path / "o" / "cells").glob("*.json"))) == len(results["cells"])
    assert (tmp_path / "o" / "notes.txt").read_text() == "mine"
    next((tmp_path / "o" / "dense").iterdir()).unlink()
    ran = []
    compare(read_suite({**tiny, "seeds": [1]}), tmp_path / "o", 1, resume=True, watch=lambda e, w: ran.append(e))
    assert ran.count("start") == 1


def test_damaged_records_are_named(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text("{")
    with pytest.raises(FileError, match="a.json: cannot be read .*delete it and run again with --resume"):
        read_records(tmp_path)
    (tmp_path / "cells" / "a.json").write_text("{}")
    with pytest.raises(FileError, match="a.json: holds no record of a cell; delete it"):
        read_records(tmp_path)
    (tmp_path / "results.sqlite").mkdir()
    with pytest.raises(FileError, match="the database cannot be written"):
        Database(tmp_path).rebuild({})
    assert Path(tmp_path / "cells").is_dir()
