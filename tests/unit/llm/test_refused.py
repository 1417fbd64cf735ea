"""Everything that cannot be done as asked is said in one sentence, before the work, and changes nothing."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.llm import tiny
from torch import nn

import openwork as ow
from openwork.errors import (
    DataError,
    DivergedError,
    FileError,
    MissingStatistic,
    OpenworkError,
    RecipeError,
    StructureError,
)
from openwork.llm import prune_blockwise
from openwork.llm.blocks import BlockPruner, Rooted
from openwork.llm.calibration import token_ids
from openwork.llm.naming import Stored, stored_as
from openwork.methods import gradual_magnitude, magnitude, sparsegpt, taylor

HALF = sparsegpt(0.5)


def go(source, out, recipe=HALF, calibration=None, **options):
    ids = tiny.ids() if calibration is None else calibration
    return prune_blockwise(source, recipe, ids, out=out, **options)


@pytest.fixture
def copy(root, tmp_path):
    """A folder that a test may damage."""
    return shutil.copytree(tiny.saved("llama", root, shard="20KB"), tmp_path / "copy")


def change(folder, **config):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_damaged_folders(copy, tmp_path):
    out = tmp_path / "out"
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    shard = copy / sorted(set(index["weight_map"].values()))[1]
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    with pytest.raises(FileError, match=f"{shard.name}: corrupt or truncated, not readable"):
        go(copy, out)
    shard.unlink()
    with pytest.raises(FileError, match=rf"1 shards that the index names are missing, first {shard.name}"):
        go(copy, out)
    shard.write_bytes(good)
    absent = {**index["weight_map"], "model.layers.9.ghost.weight": shard.name}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": absent}))
    with pytest.raises(FileError, match=r"names model.layers.9.ghost.weight in .*, which does not hold it"):
        go(copy, out)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(FileError, match="weight_map must map tensor names to files"):
        go(copy, out)
    (copy / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(FileError, match="must hold a JSON object, got list"):
        go(copy, out)
    (copy / "model.safetensors.index.json").unlink()
    with pytest.raises(FileError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        go(copy, out)
    (copy / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(FileError, match=r"holds weights only as pickles \(.bin\); convert them"):
        go(copy, out)
    (copy / "config.json").write_text("{")
    with pytest.raises(FileError, match="must be a readable JSON file of a Hugging Face model"):
        go(copy, out)
    assert not out.exists()
    assert not (tmp_path / "out.partial").exists()


def test_weights_that_do_not_belong_to_the_config(root, copy, tmp_path):
    change(copy, intermediate_size=40)
    with pytest.raises(FileError, match=r"mlp.gate_proj.weight is \(48, 32\), but the config asks for \(40, 32\)"):
        go(copy, tmp_path / "out")
    change(copy, intermediate_size=48, num_hidden_layers=3)
    with pytest.raises(
        FileError, match=r"model.layers.2.self_attn.q_proj.weight .* is in the model of config.json, but in"
    ):
        go(copy, tmp_path / "out")
    mixed = shutil.copytree(tiny.saved("mixtral", root), tmp_path / "mixed")
    change(mixed, intermediate_size=40)
    with pytest.raises(FileError, match=r"the experts of model.layers.0.mlp.experts.gate_up_proj are .* but must be"):
        go(mixed, tmp_path / "out")


def test_quantised_checkpoints(copy, root, tmp_path):
    change(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(DataError, match=r"the checkpoint is quantised \(gptq\); prune the floating-point checkpoint"):
        go(copy, tmp_path / "out")
    single = shutil.copytree(tiny.saved("llama", root), tmp_path / "single")
    tensors = load_file(single / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, single / "model.safetensors")
    with pytest.raises(DataError, match="is stored as I8; quantised weights cannot be pruned"):
        go(single, tmp_path / "out")


def test_architectures(copy, root, tmp_path):
    change(copy, model_type="llamatron")
    with pytest.raises(RecipeError, match="transformers does not know this architecture"):
        go(copy, tmp_path / "out")
    (copy / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(RecipeError, match="not a language model that transformers can build"):
        go(copy, tmp_path / "out")
    source = tiny.saved("llama", root)
    with pytest.raises(
        StructureError, match=r"blocks 'model.blocks' must name a list of modules of the model; known: model.l"
    ):
        go(source, tmp_path / "out", blocks="model.blocks")
    assert go(source, tmp_path / "out", blocks="model.layers.*").density == 0.5

    class Odd(nn.Module):
        config = SimpleNamespace(num_hidden_layers=5, vocab_size=64)

        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(4, 4)])

    with pytest.raises(StructureError, match="Odd: no list of 5 decoder blocks was found; name it with"):
        prune_blockwise(Odd(), HALF, tiny.ids())
    Odd.config = None
    with pytest.raises(RecipeError, match="Odd: needs a config with vocab_size, as models of transformers have"):
        prune_blockwise(Odd(), HALF, tiny.ids(), blocks="parts")


class Between(nn.Module):
    """Something happens between the blocks."""

    config = SimpleNamespace(num_hidden_layers=2, vocab_size=64, hidden_size=8)

    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Embedding(64, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, tokens, use_cache=False):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x) * 2
        return x


def test_blocks_must_hand_on_their_hidden_states():
    with pytest.raises(
        StructureError, match="Between: its blocks do not hand their hidden states straight to the next"
    ):
        prune_blockwise(Between(), HALF, tiny.ids())


class Tuples(Between):
    """Blocks in the older style: they return tuples."""

    class Block(nn.Linear):
        def forward(self, hidden_states):
            return (super().forward(hidden_states),)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Tuples.Block(8, 8) for _ in range(2))

    def forward(self, tokens, use_cache=False):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(hidden_states=x)[0]
        return x


def test_blocks_that_return_tuples_are_understood():
    assert prune_blockwise(Tuples(), HALF, tiny.ids()).density == 0.5


def test_recipes_that_are_not_for_blocks(root, tmp_path):
    source, out = tiny.saved("llama", root), tmp_path / "out"
    for recipe, error, message in (
        (gradual_magnitude(0.5, begin=0, end=5), RecipeError, "gradual_magnitude works over training steps"),
        (taylor(0.5), MissingStatistic, "taylor needs a loss, which one block alone does not have"),
        ("sparsegpt", RecipeError, "a recipe must be a Recipe, got str; call a method"),
        (sparsegpt(structure=ow.NM(2, 5)), StructureError, "2 of 5 needs dimension 1 divisible by 5"),
        (sparsegpt(0.5, where=ow.Select(include=("lm_head",))), StructureError, "outside the blocks"),
        (
            sparsegpt(0.5, where=ow.Select(include=("*.w1",))),
            StructureError,
            "include pattern '.*w1' matches no parameter",
        ),
    ):
        with pytest.raises(error, match=message):
            go(source, out, recipe)
    with pytest.raises(RecipeError, match="density must be a kept share in"):
        sparsegpt(50)
    with pytest.raises(RecipeError, match=r"keeps 0.5 by definition, but density 0.3 was asked"):
        sparsegpt(0.3, ow.NM(2, 4))
    with pytest.raises(MissingStatistic, match="sparsegpt needs calibration data; pass token ids, a text file"):
        prune_blockwise(source, HALF, out=out)
    with pytest.raises(RecipeError, match="a folder is never changed in place; pass out="):
        prune_blockwise(source, HALF, tiny.ids())
    for shares, message in (
        ({"model.layers.7": 0.5}, "'model.layers.7' is neither a block nor a targeted tensor"),
        ({"model.layers.0": 1.5}, r"shares: model.layers.0 must be a density in \(0, 1\], got 1.5"),
    ):
        with pytest.raises(RecipeError, match=message):
            go(source, out, shares=shares)
    with pytest.raises(RecipeError, match="fixes the density of model.layers.0, so shares have no room"):
        go(source, out, sparsegpt(structure=ow.NM(2, 4)), shares={"model.layers.0": 0.4})
    with pytest.raises(RecipeError, match="batch must be at least 1 window, got 0"):
        go(source, out, batch=0)
    with pytest.raises(RecipeError, match="samples and length must be at least 1, got 0 and None"):
        go(source, out, samples=0)
    assert not list(tmp_path.iterdir())


def test_calibration(root, tmp_path):
    source, out = tiny.saved("llama", root), tmp_path / "out"
    empty, binary, floats, junk = (tmp_path / n for n in ("empty.txt", "binary.txt", "floats.npy", "junk.npy"))
    empty.write_text("  \n")
    binary.write_bytes(b"\xff\xfe\x00")
    np.save(floats, np.zeros(5))
    junk.write_text("no")
    text = tmp_path / "text.txt"
    text.write_text("some words")
    for given, message in (
        (floats, "token ids must be integers, got float64"),
        (junk, "not a .npy file of token ids"),
        (torch.zeros(0), r"calibration must be \[tokens\] or \[windows, length\], got shape \(0,\)"),
        (torch.tensor([1, 64] * 40), "the text holds token id 64, but the model knows 0 to 63"),
        (torch.tensor([1, -3] * 40), "the text holds token id -3, but"),
        (torch.arange(20), "calibration has 20 tokens, one window needs 64; give more text"),
        (text, "holds no tokenizer that works without the network"),
    ):
        with pytest.raises(DataError, match=message):
            go(source, out, calibration=given)

    def tokenizer(text, **_):
        return {"input_ids": [ord(c) % 64 for c in text]}

    for path, message in (
        (tmp_path / "nowhere.txt", "the text does not exist"),
        (empty, "empty.txt: the text is empty"),
        (binary, "binary.txt: must be UTF-8 text"),
    ):
        with pytest.raises(DataError, match=message):
            go(source, out, calibration=path, tokenizer=tokenizer)
    with pytest.raises(DataError, match="text needs a tokenizer; pass tokenizer= or token ids"):
        token_ids(text, None)
    np.save(floats, np.arange(200) % 64)
    assert go(source, out, calibration=floats, samples=3).manifest["calibration"]["shape"] == [3, 64]


def test_broken_models(root, copy, tmp_path):
    model = tiny.build("llama")
    model.model.embed_tokens.weight.data[3] = float("nan")
    with pytest.raises(DataError, match="the calibration activations before the first block hold NaN"):
        prune_blockwise(model, HALF, torch.full((2, 8), 3))
    model = tiny.build("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(DivergedError, match=r"model.layers.1: the calibration activations behind this block hold NaN"):
        prune_blockwise(model, HALF, tiny.ids())
    model = tiny.build("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0] = float("nan")
    with pytest.raises(DivergedError, match=r"model.layers.1.mlp.up_proj.weight: weights must be finite"):
        prune_blockwise(model, HALF, tiny.ids())
    dead = tiny.build("llama")
    dead.model.embed_tokens.weight.data.zero_()  # all inputs are zero: dead columns everywhere, and no crash
    result = prune_blockwise(dead, HALF, tiny.ids())
    rows = {t["name"]: t for t in result.tensors}
    assert rows["model.layers.0.self_attn.q_proj.weight"]["dead_inputs"] == 32


def test_rules_that_write_nonsense_are_caught():
    block = Rooted("b.0", nn.Linear(4, 4))
    pruner = BlockPruner(magnitude(0.5), {}, {}, None, 0)
    weight = block.get_parameter("b.0.weight")
    with pytest.raises(OpenworkError, match=r"b.0.weight: \d+ pruned entries are not zero after the block was written"):
        pruner._check({"b.0.weight": weight}, {"b.0.weight": torch.zeros(4, 4, dtype=torch.bool)})
    weight.data.fill_(float("nan"))
    with pytest.raises(DivergedError, match="the pruned weights hold NaN or infinity"):
        pruner._check({"b.0.weight": weight}, {"b.0.weight": torch.ones(4, 4, dtype=torch.bool)})


def test_stored_experts_join_and_split(root):
    shapes = {f"l.experts.{e}.{n}.weight": (3, 5) for e in range(2) for n in ("gate_proj", "up_proj")}
    checkpoint = SimpleNamespace(shapes=shapes, folder="f")
    stored = stored_as("l.experts.gate_up_proj", (2, 6, 5), checkpoint, "")
    tensors = {n: torch.randn(3, 5) for n in shapes}
    joined = stored.join(tensors)
    assert torch.equal(joined[1, 3:], tensors["l.experts.1.up_proj.weight"])
    assert all(torch.equal(v, tensors[n]) for n, v in stored.split(joined, shapes).items())
    assert stored_as("transformer.h.0.w", (2, 2), SimpleNamespace(shapes={"h.0.w": (2, 2)}), "transformer") == Stored(
        (("h.0.w",),)
    )
    assert stored_as("h.0.w", (2, 2), SimpleNamespace(shapes={"x": (2, 2)}), "transformer") is None
