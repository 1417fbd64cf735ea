"""The demo, shortened: table, folder, reload in a fresh process."""

import json

import pytest
import torch

from openwork.cli import main
from openwork.data import load_data
from openwork.errors import VerificationFailed
from openwork.lab.demo import check_reload


def test_demo(tmp_path, capsys):
    out = tmp_path / "d"
    assert main(["demo", "--out", str(out), "--seeds", "2", "--steps", "120", "--json", str(tmp_path / "o.json")]) == 0
    printed = capsys.readouterr().out
    assert "outputs agree bit for bit" in printed
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [r["method"] for r in rows] == ["dense", *["magnitude", "acdc", "sequential_attention_pp", "spode"] * 2]
    assert all(r["after_std"] is not None for r in rows)
    assert {"compare.html", "report.html", "model.safetensors"} <= {p.name for p in out.iterdir()}
    model, _ = __import__("openwork").load(out)
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    with pytest.raises(VerificationFailed, match="gives other outputs than the one that was saved"):
        check_reload(model, out, load_data("digits"))
    with pytest.raises(VerificationFailed, match="could not be loaded in a fresh process"):
        check_reload(model, tmp_path / "nowhere", load_data("digits"))


def test_demo_refuses_nonsense(capsys):
    assert main(["demo", "--seeds", "0"]) == 2
    assert "seeds must be at least 1" in capsys.readouterr().err
