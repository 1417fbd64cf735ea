"""Comparisons: every cell once, however it is stopped; failures and collapses are told; reports say what is missing."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from openwork.data import load_data
from openwork.errors import FileError, RecipeError
from openwork.lab import compare as module
from openwork.lab import pool, worker
from openwork.lab.cells import cells_of, chance_of, facts_of, with_validation
from openwork.lab.compare import compare, plan, steps_of
from openwork.lab.controls import small_dense
from openwork.lab.pool import chosen
from openwork.lab.store import Database, read_records
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import without_times
from openwork.report.suite_page import compare_table, suite_html

TINY = {
    "settings": {
        "digits": {
            "model": "mlp",
            "data": "digits",
            "model_options": {"hidden": [16]},
            "budget": {"epochs": 2, "finetune_epochs": 1, "batch_size": 64, "lr": 0.1, "finetune_lr": 0.05},
        }
    },
    "methods": {"magnitude": None, "gradual": "gradual_magnitude"},
    "densities": [0.5, 0.05],
    "seeds": [0, 1],
    "tune": {"lr": [0.001, 0.2]},
}


class Local:
    """A worker as a thread of this process: the same loop over the same pipes, without seconds of imports."""

    pid, returncode = 0, 0

    def __init__(self):
        (ours, self_in), (self_out, theirs) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(self_in, "wb"), os.fdopen(self_out, "rb")
        source, lines = os.fdopen(ours, "rb"), os.fdopen(theirs, "w", buffering=1)

        def tell(message):
            print(json.dumps(message), file=lines, flush=True)

        threading.Thread(target=worker.serve, args=(source, tell, lines.close), daemon=True).start()

    def kill(self):
        self.stdin.close()

    def wait(self):
        return 0


@pytest.fixture
def local(monkeypatch):
    """Workers without processes, for tests that are not about processes."""
    monkeypatch.setattr(pool.Pool, "_process", lambda self: Local())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The tiny suite, run without a disturbance."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, compare(read_suite(TINY), out, jobs=1, command="openwork compare suite.yaml")


def by_key(results):
    return {r["key"]: r for r in results["cells"]}


def test_every_cell_has_a_result(done):
    # tried: the small dense model left out of the lines -> red
    out, results = done
    suite = read_suite(TINY)
    cells = cells_of(suite, facts_of(suite))
    assert {c.key for c in cells} == set(by_key(results))
    assert {r["status"] for r in results["cells"]} <= {"done", "collapsed"}
    assert [r["method"] for r in results["rows"] if r["density"] in (1.0, 0.5)] == [
        "dense",
        "dense, fine-tuned as long",
        "dense, trained as long",
        "random (layer)",
        "random (global)",
        "random (erk), from scratch",
        "small dense",
        "magnitude",
        "gradual",
    ]
    assert json.loads((out / "results.json").read_text()) == results
    assert not (out / "work").exists()
    assert all(len(c.file) < 120 for c in cells)
    assert len({c.file for c in cells}) == len(cells)


def test_dense_training_is_shared(done):
    # tried: one-shot runs without a start -> red
    runs = by_key(done[1])
    assert {r["pretrained"] for r in done[1]["rows"] if r["method"] == "magnitude"} == {True}
    for seed in (0, 1):
        dense = runs[f"digits | dense | 1 | seed {seed}"]["metrics"]["finetuned"]
        assert runs[f"digits | magnitude | 0.5 | seed {seed}"]["metrics"]["dense"] == dense
        assert runs[f"digits | random (layer) | 0.05 | seed {seed}"]["metrics"]["dense"] == dense
    assert sum(r["kind"] == "dense" for r in runs.values()) == 3  # two seeds, and one on the validation split


def test_learning_rates_are_chosen_on_the_validation_split(done):
    # tried: tuning on the test set -> red; the worst rate chosen -> red; the rate of the budget taken -> red
    runs, data = by_key(done[1]), load_data("digits")
    for density in (0.5, 0.05):
        tried = {lr: runs[f"digits | gradual | {density} | tune lr {lr}"] for lr in (0.001, 0.2)}
        best = max(tried, key=lambda lr: tried[lr]["metrics"]["finetuned"]["accuracy"])
        assert {runs[f"digits | gradual | {density} | seed {s}"]["lr"] for s in (0, 1)} == {best}
        assert {r["data_fingerprint"] for r in tried.values()} == {with_validation(data, 0.2).fingerprint()}
    assert runs["digits | gradual | 0.5 | seed 0"]["data_fingerprint"] == data.fingerprint()
    kept = with_validation(data, 0.2)
    assert len(kept.x_train) + len(kept.x_test) == len(data.x_train)


def test_ties_of_learning_rates_are_settled():
    # tried: max over accuracy alone -> red
    def tried(lr, accuracy, loss, status="done"):
        return {"lr": lr, "status": status, "metrics": {"finetuned": {"accuracy": accuracy, "loss": loss}}}

    assert chosen([tried(0.1, 0.5, 1.0), tried(0.2, 0.5, 0.9), tried(0.3, 0.5, None)]) == 0.2
    assert chosen([tried(0.1, 0.5, 1.0), tried(0.05, 0.5, 1.0)]) == 0.05
    assert chosen([tried(0.1, 0.9, 1.0, "failed"), tried(0.05, 0.5, 1.0)]) == 0.05
    assert chosen([tried(0.1, 0.9, 1.0, "failed")]) is None


def test_the_database_is_made_from_the_files(done, tmp_path):
    # tried: rebuild without its inserts -> red
    out, results = done
    shutil.copytree(out, tmp_path / "o")
    (tmp_path / "o" / "results.sqlite").write_bytes(b"junk")
    ran = []
    again = compare(read_suite(TINY), tmp_path / "o", 1, resume=True, watch=lambda e, w: ran.append((e, w)))
    assert [e for e, _ in ran] == ["cells"]
    assert without_times(again)["cells"] == without_times(results)["cells"]
    for folder in (out, tmp_path / "o"):
        with closing(sqlite3.connect(folder / "results.sqlite")) as connection:
            rows = connection.execute("select key, finetuned, record from cells order by key").fetchall()
        assert [r[0] for r in rows] == sorted(by_key(results))
        assert [json.loads(r[2]) for r in rows] == results["cells"]
        assert all(r[1] == by_key(results)[r[0]]["metrics"]["finetuned"]["accuracy"] for r in rows)


def test_killing_the_parent_loses_and_repeats_nothing(done, tmp_path):
    # tried: finished cells run again -> red
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    command = [sys.executable, "-m", "openwork", "compare", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "o")]
    command += ["--resume", "--jobs", "1", "--quiet", "--save-every", "0.2"]
    path = os.pathsep.join(sys.path)
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    finished, rng = {}, random.Random(time.time_ns())

    def check():
        for file in (tmp_path / "o" / "cells").glob("*.json"):
            if file.name.startswith("."):
                continue
            now = (file.stat().st_mtime_ns, file.read_bytes())
            assert finished.setdefault(file.name, now) == now, f"{file.name} was run twice"

    for least in (1, 0):  # once with cells done for certain, once at any moment
        parent = subprocess.Popen(command, env=env, cwd=tmp_path)
        before, deadline = len(finished), time.monotonic() + 60
        while len(list((tmp_path / "o" / "cells").glob("*.json"))) < before + least:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1) if least else rng.uniform(0, 5))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        check()
    subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True)
    check()
    again = json.loads((tmp_path / "o" / "results.json").read_text())
    assert without_times(again) == without_times(done[1])


def test_killing_a_worker_loses_nothing(done, tmp_path):
    # tried: the cell of a dead process not queued again -> hangs; no end to trying -> hangs
    lost, victim, hopeless = [], "digits | dense | 1 | seed 0", "digits | gradual | 0.05 | seed 1"

    def watch(event, what):
        if event == "start" and (what["key"] == hopeless or (what["key"] == victim and victim not in lost)):
            os.kill(what["pid"], signal.SIGKILL)
        if event == "died":
            lost.append(what["key"])

    results = compare(read_suite({**TINY, "controls": [], "tune": {}}), tmp_path / "o", 1, watch=watch)
    runs = by_key(results)
    assert lost == [victim] + [hopeless] * 3
    assert runs[hopeless]["status"] == "failed"
    assert "its process ended 3 times without a result, the last time with code -9" in runs[hopeless]["error"]
    assert without_times(runs[victim]) == without_times(by_key(done[1])[victim])
    row = next(r for r in results["rows"] if (r["method"], r["density"]) == ("gradual", 0.05))
    assert (row["failed"], row["seeds"], len(row["finetuned"]["values"])) == (1, 2, 1)
    assert not results["complete"]


BROKEN = """
from torch import nn

class Broken(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.fc, self.factor = nn.Linear(64, 10), factor

    def forward(self, x):
        if self.factor is None:
            raise RuntimeError("broken on purpose")
        return self.fc(x.flatten(1)) * self.factor

def raises():
    return Broken(None)

def explodes():
    return Broken(float("inf"))

def silent():
    return Broken(0.0)
"""


def test_failed_and_collapsed_cells_are_counted(local, tmp_path, monkeypatch):
    # tried: DivergedError counted as failed -> red; chance not compared -> red; failures raised -> red
    (tmp_path / "broken_models.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    budget = {"epochs": 0.1, "finetune_epochs": 0.1}
    suite = read_suite(
        {
            "settings": {
                n: {"model": f"broken_models:{n}", "data": "digits", "budget": budget}
                for n in ("raises", "explodes", "silent")
            },
            "methods": {"magnitude": None, "fresh <b>": {"method": "random", "at": "init"}},
            "densities": [0.5],
            "seeds": [0],
            "tune": {"lr": [0.1]},
        }
    )
    results = compare(suite, tmp_path / "o", 1)
    runs = by_key(results)
    told = {n: runs[f"{n} | fresh <b> | 0.5 | seed 0"] for n in ("raises", "explodes", "silent")}
    assert [r["status"] for r in told.values()] == ["failed", "collapsed", "collapsed"]
    assert told["raises"]["error"].startswith("every learning rate of the grid failed; the first: RuntimeError: broken")
    assert "the loss is" in told["explodes"]["error"]
    assert told["explodes"]["metrics"]["finetuned"]["accuracy"] == chance_of(load_data("digits"))
    error = runs["raises | magnitude | 0.5 | seed 0"]["error"]
    assert error == "its dense training failed: RuntimeError: broken on purpose"
    assert "its dense training collapsed" in runs["explodes | magnitude | 0.5 | seed 0"]["error"]
    counted = {(r["setting"], r["method"]): (r["collapsed"], r["failed"]) for r in results["rows"]}
    assert counted["explodes", "fresh <b>"] == (1, 0)
    assert counted["raises", "magnitude"] == (0, 1)
    assert counted["silent", "magnitude"] == (1, 0)
    rules = {r["rule"]: r for r in results["rules"]}
    assert not rules["dense control"]["met"]
    assert "has no width option" in rules["small dense model of as many parameters"]["detail"]
    page = suite_html(results)
    assert "fresh &lt;b&gt;" in page
    assert "broken on purpose" in page
    assert "none: the model broken_models:raises has no width option" in page


def test_the_page_says_what_is_missing(done):
    # tried: the label without "incomplete" -> red; rules_of without its counts -> red
    results = done[1]
    page = suite_html(results)
    broken = [r["rule"] for r in results["rules"] if not r["met"]]
    assert broken == ["at least 5 densities", "at least 3 seeds"]
    assert "Incomplete: 2 of 8 rules" in page
    assert "suite (incomplete)" in page
    assert "<script" not in page
    assert results["manifest"]["data"]["digits"] in page
    assert "openwork compare suite.yaml" in page
    assert page.count("<polyline") > 5


def test_the_table_is_markdown(done):
    # tried: the drop with the other sign -> red
    lines = compare_table(done[1]).splitlines()
    assert lines[0].startswith("| method | density | after pruning | recalibrated | fine-tuned | drop |")
    assert len(lines) == 2 + len(done[1]["rows"])
    row = next(r for r in done[1]["rows"] if (r["method"], r["density"]) == ("small dense", 0.05))
    dense = next(r for r in done[1]["rows"] if r["method"] == "dense")
    assert row["drop"]["mean"] == pytest.approx(dense["finetuned"]["mean"] - row["finetuned"]["mean"])
    assert row["drop"]["mean"] > 0
    assert 0.04 < row["reached"]["total"] < 0.08


def test_small_dense_models_fit():
    # tried: width + 1 -> red
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
"""


def test_streamed_data_are_compared_without_tuning(tmp_path, local, monkeypatch):
    # tried: the refusal left out -> red
    (tmp_path / "streamed_data.py").write_text(STREAMED)
    monkeypatch.syspath_prepend(tmp_path)
    setting = {"model": "mlp", "data": "streamed_data:streamed", "budget": {"epochs": 1, "finetune_epochs": 1}}
    grid = {**TINY, "settings": {"s": setting}, "methods": {"magnitude": None}, "controls": [], "seeds": [0]}
    with pytest.raises(RecipeError, match="settings.s: tune needs data in memory to hold a validation split out"):
        facts_of(read_suite(grid))
    results = compare(read_suite({**grid, "tune": {}}), tmp_path / "o", 1)
    assert {r["chance"] for r in results["cells"]} == {0.25}
    assert plan(read_suite({**grid, "tune": {}}), 1)["seconds"] > 0


def test_given_weights_replace_dense_training(local, done, tmp_path):
    # tried: a dense cell that trains although weights are given -> red
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
    # tried: the rounds of a rewinding method left out -> red
    monkeypatch.chdir(tmp_path)
    found = plan(read_suite({**TINY, "methods": {"imp": {"options": {"rounds": 2}}, "magnitude": {}}}), 1)
    steps = {c["key"]: c["steps"] for c in found["cells"]}
    assert steps["digits | dense | 1 | seed 0"] == 46
    assert steps["digits | magnitude | 0.5 | seed 0"] == 23
    assert steps["digits | imp | 0.5 | seed 0"] == 3 * 46
    assert found["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_folders_in_the_way_are_left_alone(done, tmp_path, monkeypatch):
    # tried: each check taken out in turn -> red
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
    with module._locked(tmp_path / "cut", suite, facts_of(suite), True, False):
        assert (tmp_path / "cut" / "suite.json").is_file()
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    fcntl = pytest.importorskip("fcntl")
    with (done[0] / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FileError, match="another comparison is running in this folder; wait for its end"):
            compare(suite, done[0], resume=True)


def test_overwriting_begins_anew_and_keeps_foreign_files(local, tmp_path):
    # tried: rmtree of the whole folder -> red
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
    # tried: damaged files skipped -> red
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
