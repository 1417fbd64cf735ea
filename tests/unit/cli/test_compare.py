"""`openwork compare` as a user meets it: exit codes, files, messages; the suites in recipes/."""

import json
from pathlib import Path

import pytest
import yaml
from tests.unit.cli import faults

from openwork.cli import main
from openwork.lab import pool
from openwork.lab.cells import cells_of
from openwork.lab.facts import facts_of
from openwork.lab.suite_file import load_suite

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def here(monkeypatch):
    """A pool that runs its tasks in this process, one after another."""
    monkeypatch.setattr(pool.Pool, "run", faults.here)


def test_the_quick_recipe_is_a_complete_comparison(here, tmp_path, capsys):
    out = tmp_path / "q"
    assert main(["compare", str(RECIPES / "quick.yaml"), "--out", str(out), "--json", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())
    assert results == json.loads((out / "results.json").read_text())
    assert results["complete"]
    assert all(r["met"] for r in results["rules"])
    assert "magnitude (layer)" in printed
    assert "INCOMPLETE" not in printed
    found = {(r["method"], r["density"]): r["finetuned"]["mean"] for r in results["rows"]}
    assert found["spode", 0.1] > found["random (global)", 0.1] + 0.1
    assert main(["compare", str(RECIPES / "quick.yaml"), "--out", str(out), "--resume", "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_flagships_are_a_whole_grid(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENWORK_ASSETS", str(tmp_path))
    (tmp_path / "resnet20_cifar10.safetensors").touch()
    suite = load_suite(RECIPES / "flagships.yaml")
    assert len(suite.densities) == 5
    assert len(suite.seeds) == 3
    assert len(suite.settings) == 5
    assert {m.method for m in suite.methods} >= {"magnitude", "snip", "grasp", "synflow", "spode", "random", "acdc"}
    assert suite.controls == ("dense", "extra", "random", "small")
    digits = [s for s in suite.settings if s.data == "digits"]
    from dataclasses import replace

    one = replace(suite, settings=tuple(digits))
    cells = cells_of(one, facts_of(one))
    assert len({c.key for c in cells}) == len(cells) > 400


def test_an_incomplete_comparison_says_so(here, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**faults.SUITE, "densities": [0.5, 1e-6]}))
    args = ["compare", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o")]
    code = main(args)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "incomplete: at least 3 seeds: found 1" in printed
    assert "incomplete: small dense model of as many parameters: missing: digits at 0.5" in printed
    assert "INCOMPLETE as a comparison" in printed
    assert main(args) == 2
    assert "exists already; continue it with --resume" in capsys.readouterr().err
    record = next(f for f in (tmp_path / "o" / "cells").glob("*0.5-seed*.json"))
    told = json.loads(record.read_text()) | {"status": "failed", "error": "on purpose"}
    record.write_text(json.dumps(told))
    assert main([*args, "--resume"]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_a_rehearsal_is_another_comparison(here, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**faults.SUITE, "densities": [0.5, 0.4, 0.3]}))
    args = ["compare", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o")]
    assert main([*args, "--quick"]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert results["suite"]["name"] == "s (quick)"
    assert results["suite"]["densities"] == [0.5, 0.4]
    assert results["manifest"]["command"] == "openwork compare s.yaml --quick"
    capsys.readouterr()
    assert main([*args, "--resume"]) == 2
    assert "was made from another suite" in capsys.readouterr().err


def test_a_dry_run_lists_the_cells(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"d": {"model": "lenet300", "data": "digits"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**faults.SUITE, "settings": settings, "controls": ["small"]}))
    assert main(["compare", "s.yaml", "--dry-run", "--jobs", "1", "--json", "o.json"]) == 0
    printed = capsys.readouterr().out
    assert "run    d | magnitude | 0.5 | seed 0  (460 steps)" in printed
    assert "none   d | small dense | 0.5  (the zoo model lenet300 has no width option)" in printed
    assert "dry run: 2 cells, about" in printed
    assert len(json.loads(Path("o.json").read_text())["cells"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.json", "s.yaml"]
    Path("o").mkdir()
    Path("o/notes.txt").write_text("mine")
    assert main(["compare", "s.yaml", "--dry-run", "--jobs", "1", "--out", "o"]) == 2
    assert "o: exists already; continue it with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such suite file"),
        (["s.yaml", "--resume", "--overwrite"], "choose one of the two"),
        (["s.yaml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["s.yaml", "--jobs", "0", "--dry-run"], "--jobs must be at least 1, got 0"),
        (["typo.yaml"], "unknown key 'density'; did you mean 'densities'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump(faults.SUITE))
    Path("typo.yaml").write_text(yaml.safe_dump({**faults.SUITE, "density": [0.1]}))
    assert main(["compare", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("openwork compare: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.yaml", "typo.yaml"]
