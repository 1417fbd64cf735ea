"""Tasks of lm-evaluation-harness on dense, pruned and packed folders, without the network; refusals."""

import json
import sys

import pytest
import torch
from tests.unit.llm import tiny
from tests.unit.llm.asking import WORDS, questions, speller

import openwork as ow
from openwork.cli import main
from openwork.errors import DataError, FileError, RecipeError
from openwork.llm.harness import evaluate_tasks
from openwork.methods import sparsegpt


@pytest.fixture(scope="module")
def harness():
    return pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'openwork[lm-eval]'"
    )


@pytest.fixture
def source(root, tmp_path):
    return speller(tmp_path / "model")


@pytest.fixture
def task(tmp_path):
    return questions(tmp_path)


def by_hand(folder, asked):
    """The share of questions whose answer is the most likely of the three behind the question and a space."""
    model, right = tiny.load(folder), 0
    for doc in asked:
        ids = torch.tensor([[WORDS.index(c) + 3 for c in doc["question"]] + [2]])
        with torch.no_grad():
            last = model(ids).logits[0, -1].log_softmax(0)
        right += int(torch.stack([last[WORDS.index(c) + 3] for c in doc["choices"]]).argmax()) == doc["answer"]
    return right / len(asked)


def test_dense_pruned_and_packed_folders(harness, source, task, tmp_path, capsys):
    place, asked = task
    pruned, packed = tmp_path / "pruned", tmp_path / "packed"
    result = ow.prune_blockwise(source, sparsegpt(0.3, ow.Block(4, 1)), tiny.ids(), out=pruned)
    model, result = ow.load(pruned)
    example = {"input_ids": tiny.ids(1)}
    ow.export(ow.pack(model, ow.Block(4, 1), example=example), result, packed)
    found = {f.name: evaluate_tasks(f, ["local_pairs"], include=place, tokenizer=source, batch=5)
             for f in (source, pruned, packed)}  # fmt: skip
    want = {"model": by_hand(source, asked), "pruned": by_hand(pruned, asked)}
    assert want["model"] != want["pruned"]
    for name, value in {**want, "packed": want["pruned"]}.items():
        assert found[name]["tasks"] == {"local_pairs": {"acc": pytest.approx(value)}}
        assert found[name]["samples"] == {"local_pairs": 12}
    told = tmp_path / "told.json"
    options = ["--tasks", "local_pairs", "--include", str(place), "--limit", "5", "--json", str(told)]
    assert main(["eval-llm", str(source), *options]) == 0
    assert f"{by_hand(source, asked[:5]):.4f}  (5 questions)" in capsys.readouterr().out
    assert json.loads(told.read_text())["limit"] == 5


def test_tasks_that_cannot_be_run(harness, source, task, tmp_path, monkeypatch, capsys):
    place, _ = task
    with pytest.raises(FileError, match="nowhere: include must be a folder with task files"):
        evaluate_tasks(source, ["local_pairs"], include=tmp_path / "nowhere")
    (tmp_path / "asked.json").unlink()
    with pytest.raises(DataError, match=r"local_pairs: could not be run, its data may not be here \(.*asked\.json"):
        evaluate_tasks(source, ["local_pairs"], include=place)
    index = type("Index", (), {"all_tasks": ["a", "b"], "__init__": lambda self, **_: None})
    monkeypatch.setattr("lm_eval.tasks.TaskManager", index)  # its own index takes it many seconds
    assert main(["eval-llm", str(source), "--tasks", "a,hellaswamp"]) == 2
    assert "knows no task 'hellaswamp'; 2 are known" in capsys.readouterr().err


def test_refusals(root, monkeypatch, capsys):
    source = tiny.saved("llama", root)
    for options in ({"tasks": []}, {"tasks": "a"}, {"batch": 0}, {"limit": 0}, {"shots": -1}):
        given = {"tasks": ["a"], **options}
        with pytest.raises(
            RecipeError, match="evaluate_tasks needs a list of tasks, batch and limit of at least 1, and"
        ):
            evaluate_tasks(source, given.pop("tasks"), **given)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval-llm", str(source), "--tasks", "a"]) == 2
    assert "needs lm-evaluation-harness" in (said := capsys.readouterr().err)
    assert "pip install 'openwork[lm-eval]'" in said
