"""Comparisons: every cell once, however it is stopped; failures and collapses are told; reports say what is missing."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace

import yaml
from tests.unit.lab.tiny import TINY, by_key

from openwork.data import load_data
from openwork.lab.cells import cells_of
from openwork.lab.chance import chance_of
from openwork.lab.compare import compare
from openwork.lab.facts import facts_of, with_validation
from openwork.lab.pool import chosen
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import without_times
from openwork.lab.worker import Task, execute
from openwork.report.suite_page import suite_html


def test_every_cell_has_a_result(done):
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
    runs = by_key(done[1])
    assert {r["pretrained"] for r in done[1]["rows"] if r["method"] == "magnitude"} == {True}
    for seed in (0, 1):
        dense = runs[f"digits | dense | 1 | seed {seed}"]["metrics"]["finetuned"]
        assert runs[f"digits | magnitude | 0.5 | seed {seed}"]["metrics"]["dense"] == dense
        assert runs[f"digits | random (layer) | 0.05 | seed {seed}"]["metrics"]["dense"] == dense
    assert sum(r["kind"] == "dense" for r in runs.values()) == 3  # two seeds, and one on the validation split


def test_learning_rates_are_chosen_on_the_validation_split(done):
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
    def tried(lr, accuracy, loss, status="done"):
        return {"lr": lr, "status": status, "metrics": {"finetuned": {"accuracy": accuracy, "loss": loss}}}

    assert chosen([tried(0.1, 0.5, 1.0), tried(0.2, 0.5, 0.9), tried(0.3, 0.5, None)])["lr"] == 0.2
    assert chosen([tried(0.1, 0.5, 1.0), tried(0.05, 0.5, 1.0)])["lr"] == 0.05
    assert chosen([tried(0.1, 0.9, 1.0, "failed"), tried(0.05, 0.5, 1.0)])["lr"] == 0.05
    assert chosen([tried(0.1, 0.9, 1.0, "failed")]) is None


def test_the_database_is_made_from_the_files(done, tmp_path):
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
        before, deadline = len(finished), time.monotonic() + 300
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


def test_a_split_that_cannot_be_made_is_told_in_the_record(tmp_path):
    suite = read_suite(TINY)
    cell = next(c for c in cells_of(suite, facts_of(suite)) if c.held_out)
    record = execute(Task(replace(cell, held_out=1e-9), tmp_path), load_data("digits"))
    assert record["status"] == "failed"
    assert "leaves one side empty; choose another" in record["error"]
    assert json.loads((tmp_path / "cells" / f"{cell.file}.json").read_text()) == record


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
