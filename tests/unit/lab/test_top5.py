"""Top-5 accuracy: of more than ten classes, beside top-1, in every file of a comparison; older results have none."""

import csv
import io
import json

import pytest
import torch
from tests.unit.lab.tiny import TINY

from openwork.lab import worker
from openwork.lab.compare import compare
from openwork.lab.evaluate import evaluate
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import _top5
from openwork.report.suite_files import suite_files
from openwork.report.suite_page import suite_html

DATA = """
import torch
from openwork.data import DataSet

def classes(count=12):
    torch.manual_seed(0)
    y = torch.arange(240) % count
    x = torch.rand(240, 1, 4, 4) + y.view(-1, 1, 1, 1) / count
    return DataSet("classes", x, y, x[:120], y[:120], count)
"""


class Ranked(torch.nn.Module):
    """Logits that fall from class to class."""

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("logits", -torch.arange(float(classes)))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    (tmp_path / "many_classes.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    setting = {"model": "mlp", "data": "many_classes:classes", "model_options": {"hidden": [16]}}
    setting["budget"] = {"epochs": 2, "finetune_epochs": 1, "batch_size": 64, "lr": 0.1, "finetune_lr": 0.05}
    rest = {"methods": {"magnitude": None}, "densities": [0.5], "seeds": [0, 1], "tune": {}, "controls": ["dense"]}
    return {**TINY, **rest, "settings": {"s": setting}}


def test_by_hand():
    x, y = torch.zeros(6, 1), torch.tensor([0, 4, 5, 1, 10, 0])
    found = evaluate(Ranked(11), x, y, batch_size=4)
    assert found["accuracy"] == pytest.approx(2 / 6)
    assert found["top5"] == pytest.approx(4 / 6)
    assert "top5" not in evaluate(Ranked(10), x, y.clamp(max=9))


def test_a_comparison_tells_it(local, grid, tmp_path):
    results = compare(read_suite(grid), tmp_path / "o", 1)
    for record in results["cells"]:
        found = record["metrics"]["finetuned"]
        assert found["accuracy"] <= found["top5"] <= 1
    row = next(r for r in results["rows"] if r["method"] == "magnitude")
    runs = [r for r in results["cells"] if r["method"] == "magnitude"]
    assert row["top5"]["values"] == [r["metrics"]["finetuned"]["top5"] for r in runs]
    (table,) = [r for r in csv.DictReader(io.StringIO(suite_files(results)["table.csv"])) if r["method"] == "magnitude"]
    assert float(table["top5_mean"]) == pytest.approx(row["top5"]["mean"])
    assert "top-5" in suite_html(results)
    for file in (tmp_path / "o" / "cells").glob("*.json"):  # as an older version left them
        record = json.loads(file.read_text())
        record["metrics"] = {s: {k: v for k, v in m.items() if k != "top5"} for s, m in record["metrics"].items()}
        file.write_text(json.dumps(record))
    older = compare(read_suite(grid), tmp_path / "o", 1, resume=True)
    assert all("top5" not in r for r in older["rows"])
    assert "top-5" not in suite_html(older)
    assert "top5_mean" not in suite_files(older)["table.csv"]


def test_a_run_that_diverged_counts_as_guessing(local, grid, tmp_path, monkeypatch):
    def explodes(*_):
        raise worker.DivergedError("the loss is nan")

    monkeypatch.setattr(worker, "_run", explodes)
    grid["methods"], grid["controls"] = {"random": {"at": "init"}}, []
    results = compare(read_suite(grid), tmp_path / "o", 1)
    assert [r["top5"]["mean"] for r in results["rows"]] == [pytest.approx(5 / 12)]
    assert results["rows"][0]["collapsed"] == 2
    assert _top5([{"metrics": {"finetuned": {"top5": 0.5}}}, {"metrics": {"finetuned": {}}}]) == {}
