"""A folder that was pruned in blocks: loaded, inspected, packed, exported, and run again by a fresh process."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.llm import tiny

import openwork as ow
from openwork.cli import main
from openwork.errors import FileError
from openwork.llm import prune_blockwise
from openwork.llm.evaluation import load_model
from openwork.methods import sparsegpt
from openwork.ship.folder import companions, dense_bytes

FRESH = (
    "import sys, torch, openwork as ow; torch.set_num_threads(1); m, r = ow.load(sys.argv[1]);"
    "print(m(torch.arange(16)[None]).logits.double().flatten().tolist())"
)


@pytest.fixture(scope="module")
def pruned(root, tmp_path_factory):
    """Kept shares of 0.25 in blocks of 8 x 8, several shards, and a file of a tokenizer."""
    work = tmp_path_factory.mktemp("pruned")
    source = shutil.copytree(tiny.saved("llama", root, shard="20KB"), work / "source")
    (source / "tokenizer_config.json").write_text("{}")
    prune_blockwise(source, sparsegpt(0.25, ow.Block(8, 8)), tiny.ids(), out=work / "pruned")
    return work / "pruned"


def test_load_gives_model_and_result(pruned):
    model, result = ow.load(pruned)
    told = json.loads((pruned / "openwork.json").read_text())
    assert result.counts.kept == told["density"]["kept"]
    assert result.counts.targeted == told["density"]["targeted"]
    assert set(result.masks) == {r["name"] for r in told["tensors"] if not r["skipped"]}
    assert result.recipe.structure == ow.Block(8, 8)
    assert not model.training
    assert torch.equal(model(tiny.ids()).logits, tiny.load(pruned)(tiny.ids()).logits)


def test_export_runs_in_a_fresh_process_and_gives_the_same_answers(pruned, tmp_path, capsys):
    out = tmp_path / "packed"
    assert main(["export", str(pruned), "--out", str(out), "--plan", "always", "--threads", "1"]) == 0
    assert f"instead of {dense_bytes(pruned):,}" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "generation_config.json", "model.packed.safetensors", "openwork.json", "tokenizer_config.json",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", FRESH, str(out)], capture_output=True, text=True, check=True)
    expected = tiny.load(pruned)(torch.arange(16)[None]).logits.detach()
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)).view_as(expected), expected, rtol=1e-4, atol=1e-4)
    assert sum(type(m).__name__ == "PackedLinear" for m in load_model(out).modules()) >= 14


def test_a_packed_model_generates_the_same_tokens(pruned):
    model, result = ow.load(pruned)
    packed = ow.pack(model, result.recipe.structure, plan="always")
    prompt = tiny.ids()[:1]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(packed.generate(prompt, **options), model.generate(prompt, **options))


def test_bench_and_inspect_read_it(pruned, tmp_path, capsys):
    told = tmp_path / "told.json"
    options = ["--tokens", "16", "--threads", "1", "--rounds", "1", "--json", str(told)]
    assert main(["bench", str(pruned), *options]) == 0
    zeros, sizes, times = capsys.readouterr().out.splitlines()[-3:]
    assert zeros.startswith("zeros   59.2 % of 19,456 weights")
    assert f"instead of {dense_bytes(pruned):,} bytes on disk" in sizes
    assert "input 1x16, 1 thread" in times
    assert json.loads(told.read_text())["verdict"]["dense_bytes"] == dense_bytes(pruned)
    assert main(["inspect", str(pruned)]) == 0
    assert "sparsegpt" in capsys.readouterr().out


def test_a_model_in_bfloat16_is_compared_with_the_fastest_dense_one(root, tmp_path, capsys):
    source = tiny.saved("llama", root, torch.bfloat16)
    prune_blockwise(source, sparsegpt(0.25, ow.Block(8, 8)), tiny.ids(), out=tmp_path / "p")
    model, result = ow.load(tmp_path / "p")
    assert model.dtype == torch.bfloat16
    packed = ow.pack(model, result.recipe.structure, plan="always")
    found = ow.runtime.verdict(model, packed, {"input_ids": tiny.ids()}, rounds=1)
    assert model.dtype == torch.bfloat16  # the copy was widened, not the model
    assert found.error < 0.05
    ow.export(packed, result, tmp_path / "q")
    again = ow.load(tmp_path / "q")[0]
    assert torch.equal(again(tiny.ids()).logits, packed(tiny.ids()).logits)
    assert main(["export", str(tmp_path / "p"), "--out", str(tmp_path / "q"), "--plan", "always", "--overwrite"]) == 0
    stored, _ = ow.ship.read_packed(tmp_path / "q" / "model.packed.safetensors")
    assert {t.meta()["dtype"] for t in stored.values() if not isinstance(t, torch.Tensor)} == {"bfloat16"}


def test_folders_that_do_not_fit_their_index(pruned, tmp_path):
    folder = shutil.copytree(pruned, tmp_path / "copy")
    with pytest.raises(FileError, match="is a language model pruned in blocks, whose masks lie in its weights; use lo"):
        ow.ship.read_result(folder)
    with pytest.raises(FileError, match="is a whole Hugging Face folder, which needs no model=; leave it out"):
        ow.load(folder, tiny.build("llama"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.mlp.up_proj.weight"
    shard = folder / index[name]
    good = load_file(shard)
    save_file({**good, name: torch.ones_like(good[name])}, shard, metadata={"format": "pt"})
    with pytest.raises(FileError, match=r"up_proj.weight holds 1536 weights that are not zero, but openwork.json prom"):
        ow.load(folder)
    shard.unlink()
    with pytest.raises(FileError, match=r"copy: transformers cannot load it \("):
        ow.load(folder)
    np.save(folder / "ids.npy", np.arange(3))
    assert [p.name for p in companions(folder)] == [
        "config.json", "generation_config.json", "ids.npy", "tokenizer_config.json",
    ]  # fmt: skip
