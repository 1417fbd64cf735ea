"""``bench`` and ``export`` on the command line."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.cli.ship_parts import example_of
from openwork.errors import RecipeError
from openwork.methods import magnitude


@pytest.fixture
def saved(tmp_path):
    model = ow.build_model("resnet8", (1, 12, 12), 10)
    result = ow.prune(model, magnitude(density=0.1, structure=ow.Block(4, 1)))
    return str(ow.save(model, result, tmp_path / "r"))


def test_bench_prints_the_plan_and_three_lines(saved, tmp_path, capsys):
    assert main(["bench", saved, "--batch", "2", "--threads", "1", "--rounds", "2", "--json", str(tmp_path / "j")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["layer", "input", "stored"]
    zeros, sizes, times = lines[-3:]
    assert zeros.startswith("zeros   ")
    assert zeros.endswith(" weights")
    assert "instead of" in sizes
    assert all(w in times for w in ("packed,", "dense,", "oneDNN prepacked:", "input 2x1x12x12, 1 thread, error"))
    data = json.loads((tmp_path / "j").read_text())
    assert data["plan"]["threads"] == 1
    assert set(data["verdict"]["times"]) == {"dense", "onednn", "packed"}
    assert data["verdict"]["bytes"] < data["verdict"]["dense_bytes"]
    assert data["verdict"]["error"] < 1e-4
    assert 0.85 < data["verdict"]["zeros"] < 0.95


def test_export_writes_a_folder_that_load_reads(saved, tmp_path, capsys):
    out = tmp_path / "p"
    args = ["export", saved, "--out", str(out), "--plan", "always"]
    assert main([*args, "--dry-run"]) == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert not out.exists()
    assert main([*args, "--json", "-"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["bytes"] == (out / "model.packed.safetensors").stat().st_size
    assert f"{data['bytes']:,} bytes instead of" in captured.err
    model, _ = ow.load(saved)
    x = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(ow.load(out)[0](x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert main(args) == 2
    assert "exists already; choose another folder or pass --overwrite" in capsys.readouterr().err
    assert main([*args, "--overwrite", "--dtype", "int8", "--input", "1x12x12"]) == 0
    for verb in (["bench", str(out)], ["export", str(out), "--out", str(tmp_path / "q")]):
        assert main(verb) == 2
        assert "is packed already; give the result folder that it was exported from" in capsys.readouterr().err


def test_the_source_is_never_overwritten(saved, capsys):
    before = sorted(p.name for p in Path(saved).iterdir())
    for out in (saved, f"{saved}/../r/"):
        assert main(["export", saved, "--out", out, "--overwrite", "--plan", "always"]) == 2
        assert "is the folder that is read; choose another --out" in capsys.readouterr().err
    assert sorted(p.name for p in Path(saved).iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "--batch, --tokens and --threads must be at least 1, got 0, 128, None"),
        (["--threads", "-1"], "--batch, --tokens and --threads must be at least 1"),
        (["--tokens", "0"], "--batch, --tokens and --threads must be at least 1"),
        (["--input", "3xx3"], "--input must be a shape such as 3x224x224, got '3xx3'"),
        (["--input", "3x0"], "--input must be a shape such as 3x224x224, got '3x0'"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_wrong_options(saved, options, message, capsys):
    assert main(["bench", saved, *options]) == 2
    assert message in capsys.readouterr().err


def test_folders_that_are_none(tmp_path, capsys):
    assert main(["bench", str(tmp_path)]) == 2
    assert "not a result folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", str(tmp_path), "--dtype", "float16"])
    assert "invalid choice: 'float16'" in capsys.readouterr().err


def test_a_model_that_does_not_say_its_input():
    with pytest.raises(RecipeError, match="this model does not say its own"):
        example_of(nn.Linear(3, 3), 1)
    assert example_of(nn.Linear(3, 3), 4, "3").shape == (4, 3)
