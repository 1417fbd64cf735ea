"""What a user may get wrong on the command line of language models: one line, exit code 2, and nothing is left behind."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.unit.llm import tiny

from openwork.cli import main
from openwork.errors import DataError, RecipeError
from openwork.llm import prune_blockwise
from openwork.llm.calibration import read_text, refuse_long_windows
from openwork.methods import magnitude, wanda


@pytest.fixture
def refused(root, tmp_path, capsys):
    """Run ``prune-llm`` with wrong options; what it said. Nothing may be left behind."""
    np.save(tmp_path / "ids.npy", tiny.ids().numpy())
    np.save(tmp_path / "long.npy", np.zeros((3, 100), dtype=np.int64))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "some.txt").write_text("some words")
    (tmp_path / "pictures").mkdir()

    def run(*options, source=None, model="llama"):
        source = source or str(tiny.saved(model, root))
        place = {o.partition("=")[0]: o.partition("=")[2] for o in options if "=" in o}
        words = [w for o in options if "=" not in o for w in o.split()]
        calibration = str(tmp_path / place.get("text", "ids.npy"))
        extra = ["--evaluate", str(tmp_path / place["evaluate"])] if "evaluate" in place else []
        out = tmp_path / "out"
        code = main(["prune-llm", source, "--density", "0.5", "--calibration", calibration, "--out", str(out), *words,
                     *extra])  # fmt: skip
        assert code == 2
        assert not out.exists()
        assert not out.with_name("out.partial").exists()
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        return said

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["text=empty.txt"], "empty.txt: the text is empty"),  # the folder has no tokenizer either
        (["text=absent.txt"], "absent.txt: the text does not exist"),
        (["text=pictures"], "pictures: the folder holds no texts (.txt, .md"),
        (["text=some.txt"], "holds no tokenizer that works without the network"),
        (["text=some.txt", "--tokenizer gpt2"], "gpt2: holds no tokenizer that works without the network"),
        (["text=long.npy"], "windows of 100 tokens are longer than the model's context of 64; use fewer tokens"),
        (["evaluate=absent.txt"], "absent.txt: the text does not exist"),
        (["evaluate=some.txt"], "holds no tokenizer that works without the network"),
        (["--device quantum"], "device 'quantum' cannot be used here (Expected one of cpu, cuda"),
        (["--memory-gb nan"], "--memory-gb must be at least 0, got nan"),
        (["--memory-gb -1"], "--memory-gb must be at least 0, got -1.0"),
    ],
)
def test_wrong_options(refused, options, message):
    assert message in refused(*options)


def test_a_device_that_is_not_here(refused):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert "device 'cuda' cannot be used here (Torch not compiled" in refused("--device cuda")


def test_positions_that_a_model_does_not_have(refused):
    assert "longer than the model's context of 64" in refused("text=long.npy", model="gpt2")
    refuse_long_windows(10**6, object())  # a config that names no context has none


def test_names_of_a_hub_and_nonsense_in_a_config(refused, root, tmp_path):
    assert "gpt2: is no folder; models are never downloaded" in refused(source="gpt2")
    folder = shutil.copytree(tiny.saved("gpt2", root), tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": "many"}))
    assert "transformers does not know this architecture (Validation error for field 'n_embd'" in refused(
        source=str(folder)
    )


def test_the_same_in_python(tmp_path):
    model = tiny.build("llama")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for options, error, message in (
        ({"memory": -1}, RecipeError, "memory must be at least 0 bytes, got -1"),
        ({"device": "quantum"}, RecipeError, "device 'quantum' cannot be used here"),
        ({"calibration": torch.zeros(2, 65, dtype=torch.int64)}, DataError, "windows of 65 tokens are longer"),
    ):
        given = {"calibration": tiny.ids(), **options}
        with pytest.raises(error, match=message):
            prune_blockwise(model, wanda(0.5), given.pop("calibration"), **given)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(DataError, match=r"holds no texts \(\.txt, \.md"):
        read_text(tmp_path)
    assert prune_blockwise(model, magnitude(0.5), device="cpu").density == 0.5


def test_perplexity_of_windows_that_do_not_fit(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("openwork.llm.evaluation.load_tokenizer", lambda folder: spelled)
    text = tmp_path / "text.txt"
    text.write_text("a text that is long enough for two windows of the model, which has a context of 64 " * 3)
    source = str(tiny.saved("gpt2", root))
    assert main(["perplexity", source, "--text", str(text), "--length", "100"]) == 2
    assert "windows of 100 tokens are longer than the model's context of 64" in capsys.readouterr().err
    assert main(["perplexity", source, "--text", str(text), "--length", "0"]) == 2
    assert "length must be at least 2" in capsys.readouterr().err
    assert main(["perplexity", source, "--text", str(text)]) == 0
    assert main(["perplexity", source, "--text", str(tmp_path / "absent.txt")]) == 2
    assert "absent.txt: the text does not exist" in capsys.readouterr().err


def spelled(text, **_):
    return {"input_ids": [ord(c) % 64 for c in text]}
