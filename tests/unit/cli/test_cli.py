"""The command line as a user meets it: exit codes, files, messages."""

import json

import pytest

from openwork.cli import main
from openwork.cli.parse import options_of, structure_of
from openwork.errors import RecipeError
from openwork.structure import NM, Block, Element, Filter, GroupOf

SHORT = ["--data", "digits", "--epochs", "1", "--finetune-epochs", "1", "--threads", "1"]


def test_prune_writes_a_folder_that_inspect_reads(tmp_path, capsys):
    out = tmp_path / "r"
    args = ["prune", *SHORT, "--method", "spode", "--set", "steps=5", "--structure", "element", "--density", "0.05"]
    assert main([*args, "--out", str(out), "--json", str(tmp_path / "o.json")]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "masks.safetensors",
        "model.safetensors",
        "openwork.json",
        "report.html",
    ]
    data = json.loads((tmp_path / "o.json").read_text())
    assert abs(data["density"]["targeted"] - 0.05) < 1e-3
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".partial")] == []
    capsys.readouterr()
    assert main(["inspect", str(out), "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["density"] == data["density"]
    assert "spode" in captured.err
    assert main([*args, "--out", str(out)]) == 2
    assert "exists already; choose another folder or add --overwrite" in capsys.readouterr().err
    assert main([*args, "--out", str(out), "--resume"]) == 0
    assert "is finished already; nothing to resume" in capsys.readouterr().out
    assert main([*args, "--out", str(out), "--overwrite", "--seed", "1"]) == 0
    assert json.loads((out / "openwork.json").read_text())["manifest"]["seed"] == 1


def test_a_recipe_file_runs(tmp_path):
    from openwork.methods import magnitude

    magnitude(density=0.25, structure=NM(1, 4)).save(tmp_path / "r.yaml")
    where = ["--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "o")]
    assert main(["prune", *SHORT, *where]) == 0
    assert json.loads((tmp_path / "o" / "openwork.json").read_text())["density"]["targeted"] == 0.25


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--density", "50"], "50 % is 0.5"),
        (["--density", "0"], "density must be a kept share"),
        (["--density", "nan"], "density must be a kept share"),
        (["--density", "0.1", "--method", "spoed"], "unknown method 'spoed'; did you mean 'spode'"),
        (["--density", "0.1", "--structure", "blok:8x8"], "unknown structure 'blok:8x8'; did you mean 'block'"),
        (["--density", "0.1", "--structure", "block:8"], "must read block:ROWSxCOLS"),
        (["--density", "0.7", "--structure", "nm:2:4"], "keeps 0.5 by definition, but density 0.7 was asked"),
        (["--density", "0.1", "--include", "nothing*"], "include pattern 'nothing.' matches no parameter"),
        (["--density", "0.1", "--model", "resnet9"], "unknown model 'resnet9'"),
        (["--density", "0.1", "--data", "digit"], "unknown data 'digit'; did you mean 'digits'"),
        (["--density", "0.1", "--set", "norm"], "option 'norm' must read key=value"),
        (["--density", "0.1", "--set", "nrm=l1"], "magnitude has no option 'nrm'; did you mean 'norm'"),
        (["--method", "woodfisher", "--set", "update=maybe"], "option update must be true or false, got 'maybe'"),
        (["--method", "woodfisher", "--set", "samples=2.5"], "option samples must be a whole number, got 2.5"),
        (["--density", "0.1", "--resume"], "--resume needs --out"),
        (["--density", "0.1", "--threads", "0"], "--threads must be at least 1"),
        (["--density", "0.1", "--save-every", "-3"], "--save-every must be at least 0 seconds, got -3"),
        (["--density", "0.1", "--checkpoint", "nowhere.safetensors"], "nowhere.safetensors: no such checkpoint"),
        (["--recipe", "nowhere.json"], "nowhere.json: no such recipe file"),
        (["--density", "0.1", "--model", "nowhere:make"], "there is no module 'nowhere'"),
        (["--density", "0.1", "--epochs", "0"], "needs epochs > 0"),
        (["--density", "0.1", "--epochs", "nan"], "epochs must be a finite number, got nan"),
        (["--density", "0.1", "--epochs", "inf"], "epochs must be a finite number, got inf"),
        (["--density", "0.1", "--weight-decay", "-1"], "weight_decay at least 0, got 0.9 and -1"),
        (["--density", "0.1", "--seed", "99999999999999999999"], "seed must be a whole number of at most"),
        (["--density", "0.1", "--structure", "block:99x999"], "must fit into the"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, capsys, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("openwork.lab.runner.Runner.run", lambda *_, **__: pytest.fail("trained"))
    data = [] if "--data" in args else ["--data", "digits"]
    out = [] if "--resume" in args else ["--out", "r"]
    assert main(["prune", *data, *out, *args]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("openwork prune: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option",
    [
        ["--density", "0.1"],
        ["--method", "spode"],
        ["--method", "magnitude"],
        ["--min-units", "9"],
        ["--min-units", "1"],
        ["--structure", "row"],
        ["--set", "norm=l1"],
        ["--include", "fc*"],
        ["--exclude", "fc*"],
    ],
)
def test_recipe_and_options_exclude_each_other(option, tmp_path, capsys):
    from openwork.methods import magnitude

    magnitude(density=0.5).save(tmp_path / "r.json")
    assert main(["prune", "--recipe", str(tmp_path / "r.json"), *option, "--dry-run"]) == 2
    assert f"--recipe is a whole recipe; leave out {option[0]}, or change the file" in capsys.readouterr().err


def test_pruning_at_initialisation_is_for_one_shot_methods(tmp_path, capsys):
    from openwork.methods import acdc

    acdc(density=0.5).save(tmp_path / "r.json")
    for given in (["--recipe", str(tmp_path / "r.json")], ["--method", "acdc"]):
        assert main(["prune", *SHORT, *given, "--at", "init", "--dry-run"]) == 2
        assert "--at init must be left out, since acdc trains and prunes in one" in capsys.readouterr().err
    assert main(["prune", *SHORT, "--method", "random", "--density", "0.5", "--at", "init", "--dry-run"]) == 0
    assert main(["prune", *SHORT, "--density", "0.5", "--min-units", "0", "--dry-run"]) == 2
    assert "min_units must be at least 1, got 0" in capsys.readouterr().err


def test_a_stopped_run_is_not_touched_without_a_word(tmp_path, capsys):
    (tmp_path / "r.partial").mkdir()
    args = ["prune", *SHORT, "--density", "0.5", "--out", str(tmp_path / "r")]
    assert main(args) == 2
    assert "holds a stopped run; continue it with --resume or discard it with --overwrite" in capsys.readouterr().err
    assert main([*args, "--overwrite"]) == 0


def test_dry_run_trains_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prune", *SHORT, "--density", "0.5", "--dry-run", "--out", "r"]) == 0
    assert "nothing was trained or written" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["false", "False", "no", "off"])
def test_words_for_false_switch_an_option_off(word, capsys):
    method = ["--method", "sequential_attention_pp", "--structure", "block:4x4", "--density", "0.5"]
    args = ["prune", *SHORT, *method, "--epochs", "9", "--set", f"sparsification={word}", "--dry-run", "--json", "-"]
    assert main(args) == 0
    stretches = json.loads(capsys.readouterr().out)["recipe"]["schedule"]["stretches"]
    assert {s["phase"] for s in stretches} == {"dense", "sparse"}


def test_inspect_a_model(capsys):
    assert main(["inspect", "--model", "resnet20", "--structure", "block:8x8"]) == 0
    out = capsys.readouterr().out
    assert "skipped: norm" in out
    assert "can be pruned as Block(rows=8, cols=8)" in out
    assert main(["inspect"]) == 2
    assert "needs a result folder or --model" in capsys.readouterr().err
    assert main(["inspect", "nowhere"]) == 2
    assert "not a result folder" in capsys.readouterr().err


def test_methods_lists_every_method(tmp_path, capsys):
    from openwork import methods

    assert main(["methods", "--json", str(tmp_path / "m.json")]) == 0
    listed = json.loads((tmp_path / "m.json").read_text())
    assert [m["name"] for m in listed] == [m.name for m in methods.METHODS]
    assert main(["methods", "spode"]) == 0
    assert "Differences" in capsys.readouterr().out
    assert main(["methods", "nope"]) == 2


def test_a_missed_density_is_exit_code_1(monkeypatch, capsys):
    from openwork.engine import result
    from openwork.errors import DensityMissed

    def missed(*_):
        raise DensityMissed("missed on purpose")

    monkeypatch.setattr(result, "check_promise", missed)
    assert main(["prune", *SHORT, "--density", "0.5"]) == 1
    assert "missed on purpose" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("element", Element()),
        ("block:8x4", Block(8, 4)),
        ("block:8:4", Block(8, 4)),
        ("nm:2:4", NM(2, 4)),
        ("group:16", GroupOf(16)),
        ("filter", Filter()),
    ],
)
def test_structures_are_read(text, structure):
    assert structure_of(text) == structure


def test_options_are_read():
    assert options_of(["a=1", "b=x", "c=[1, 2]", "d=null"]) == {"a": 1, "b": "x", "c": (1, 2), "d": None}
    with pytest.raises(RecipeError, match="must read key=value"):
        options_of(["=1"])
