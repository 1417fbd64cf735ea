"""The command line of language models: plans, refusals, JSON, evaluation."""

import json

import numpy as np
import pytest
from tests.unit.llm import tiny

from openwork.cli import main


@pytest.fixture
def npy(tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, tiny.ids().numpy())
    return str(path)


def test_a_dry_run_prints_plan_and_coverage(root, npy, tmp_path, capsys):
    source, out = str(tiny.saved("tied", root)), str(tmp_path / "out")
    assert main(["prune-llm", source, "--density", "0.5", "--calibration", npy, "--out", out, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for line in ("21 tensors in 3 blocks", "activations", "tied to lm_head.weight", "would keep 0.5 of"):
        assert line in said
    assert not (tmp_path / "out").exists()


def test_options_make_the_recipe_and_json_holds_the_outcome(root, npy, tmp_path):
    source, out, told = str(tiny.saved("llama", root)), tmp_path / "out", tmp_path / "told.json"
    options = [
        "--method",
        "sparsegpt",
        "--structure",
        "nm:2:4",
        "--set",
        "damp=0.1",
        "--exclude",
        "*.o_proj",
        "--quiet",
    ]
    common = ["--calibration", npy, "--memory-gb", "0", "--dtype", "float64", "--threads", "1"]
    assert main(["prune-llm", source, *options, *common, "--out", str(out), "--json", str(told)]) == 0
    data = json.loads(told.read_text())
    assert data == json.loads((out / "openwork.json").read_text())
    assert (data["density"]["asked"], data["recipe"]["rule"]["damp"], data["plan"]["cached"]) == (0.5, 0.1, "disk")
    assert {t["skipped"] for t in data["tensors"] if "o_proj" in t["name"]} == {"excluded"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", "50"], r"50 % is 0.5"),
        (["--density", "0.5", "--set", "dampp=1"], "unexpected keyword argument 'dampp'"),
        (["--method", "dsnot", "--set", "same_sign=maybe"], "option same_sign must be true or false, got 'maybe'"),
        (["--recipe", "r.json", "--density", "0.5"], "--recipe is a whole recipe; leave out --density"),
        (["--recipe", "r.json", "--min-units", "2"], "--recipe is a whole recipe; leave out --min-units"),
        (["--recipe", "r.json", "--method", "wanda"], "--recipe is a whole recipe; leave out --method"),
        (["--recipe", "r.json"], "r.json: no such recipe file"),
        (["--method", "sparsegtp"], "did you mean 'sparsegpt'"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--density", "0.5"], "exists already"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(options, message, root, npy, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    source, out = str(tiny.saved("llama", root)), str(tmp_path / "out")
    assert main(["prune-llm", source, "--calibration", npy, "--out", out, *options]) == 2
    assert message in capsys.readouterr().err
