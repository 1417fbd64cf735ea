"""Tuning by a sampler: trials follow from the records before them, so a stopped search goes on as it would have."""

import math
import shutil

import pytest
from tests.unit.lab.tiny import TINY, by_key

from openwork.errors import RecipeError
from openwork.lab.cells import cells_of
from openwork.lab.compare import compare
from openwork.lab.facts import facts_of
from openwork.lab.search import Search, suggest
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import without_times
from openwork.report import suite_html

TUNE = {
    "sampler": "tpe",
    "trials": 3,
    "lr": {"low": 0.001, "high": "3e-1"},
    "weight_decay": {"low": 1e-5, "high": 1e-2},
}
GRID = {**TINY, "methods": {"magnitude": None}, "densities": [0.3], "seeds": [0], "controls": [], "tune": TUNE}
optuna = pytest.importorskip("optuna")


def test_a_search_finds_what_pays():
    late, search = [], Search("tpe", 24, {"lr": (1e-4, 1.0)})
    for line in ("line", "second"):
        tried = []
        for _ in range(24):
            lr = suggest(search, tried, line)["lr"]
            value = 1 - abs(math.log10(lr) + 2) / 4  # best at 0.01
            tried.append({"status": "done", "tried": {"lr": lr}, "metrics": {"finetuned": {"accuracy": value}}})
        late += [abs(math.log10(r["tried"]["lr"]) + 2) for r in tried[12:]]
    assert sum(late) / len(late) < 0.75  # draws at random are 1 away from the best in the mean
    assert all(1e-4 <= r["tried"]["lr"] <= 1 for r in tried)
    assert suggest(search, tried[:7], "second") == {"lr": tried[7]["tried"]["lr"]}
    assert suggest(search, tried[:7], "other line") != suggest(search, tried[:7], "second")
    broken = [{"status": "failed", "metrics": {}}, *tried[:7]]
    assert 1e-4 <= suggest(search, broken, "line")["lr"] <= 1
    assert 1e-4 <= suggest(Search("random", 5, {"lr": (1e-4, 1.0)}), tried, "line")["lr"] <= 1


def test_a_suite_is_tuned_by_trials_and_resumed(local, tmp_path):
    suite = read_suite(GRID)
    trials = [c for c in cells_of(suite, facts_of(suite)) if c.kind == "tune"]
    assert [len(c.tuned) for c in trials] == [0, 1, 2]
    results = compare(suite, tmp_path / "o", 1)
    runs = by_key(results)
    tried = [runs[f"digits | magnitude | 0.3 | trial {i}"] for i in (1, 2, 3)]
    assert len({r["lr"] for r in tried}) == 3
    best = max(tried, key=lambda r: (r["metrics"]["finetuned"]["accuracy"], -r["metrics"]["finetuned"]["loss"]))
    run = runs["digits | magnitude | 0.3 | seed 0"]
    assert run["tried"] == best["tried"]
    assert run["lr"] == best["lr"] == best["tried"]["lr"]
    shutil.copytree(tmp_path / "o", tmp_path / "again")
    for name in ("trial-2", "trial-3", "seed-0"):
        next((tmp_path / "again" / "cells").glob(f"digits-magnitude-0.3-{name}-*.json")).unlink()
    ran = []
    again = compare(suite, tmp_path / "again", 1, resume=True, watch=lambda e, w: ran.append(e))
    assert ran.count("start") == 3
    assert without_times(again) == without_times(results)
    assert "3 trials of tpe, lr 0.001 to 0.3, weight_decay 1e-05 to 0.01" in suite_html(results)
    assert next(r for r in results["rules"] if r["rule"].startswith("learning rates"))["met"]
    assert suite.quick().search.trials == 2


def test_the_edge_of_a_range_is_near_its_ends():
    search = Search("tpe", 5, {"lr": (0.01, 1.0)})
    assert [search.at_edge(lr) for lr in (0.011, 0.1, 0.5, 0.95)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"sampler": "tpo", "lr": TUNE["lr"]}, "tune.sampler: unknown sampler 'tpo'; did you mean 'tpe'"),
        ({**TUNE, "trials": 1}, "tune.trials: must be a whole number from 2 on, got 1"),
        ({"sampler": "tpe", "trials": 3}, "needs a range for lr, such as"),
        ({**TUNE, "lr": {"low": 1, "high": 0.1}}, "tune.lr: low and high must fulfil 0 < low < high, got 1.0 and 0.1"),
        ({**TUNE, "momentum": {"low": 0.1, "high": 1.5}}, "momentum must be in .0, 1. and weight_decay"),
        ({**TUNE, "lr": [0.1, 0.2]}, "tune.lr: must be a mapping"),
        ({**TUNE, "lr": {"low": 0.1}}, "tune.lr.high must be a finite number, got None"),
        ({"trials": 3, "lr": [0.1]}, "tune.trials: needs a sampler, such as sampler: tpe and trials: 20"),
        ({"lr": {"low": 0.1, "high": 1}}, "tune.lr: needs a sampler"),
        ({**TUNE, "wd": {}}, "unknown key 'wd'"),
    ],
)
def test_refused_searches(tune, message):
    with pytest.raises(RecipeError, match=message):
        read_suite({**GRID, "tune": tune})


def test_unknown_ranges_and_a_missing_optuna_are_refused(monkeypatch):
    with pytest.raises(RecipeError, match="tune.depth: no such range; "):
        Search("tpe", 3, {"lr": (0.1, 1.0), "depth": (1.0, 2.0)})
    monkeypatch.setattr("openwork.lab.search.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="tune.sampler: Optuna is not installed; pip install 'openwork"):
        Search("tpe", 3, {"lr": (0.1, 1.0)})
