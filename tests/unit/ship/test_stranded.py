"""Stranded sparse checkpoints come back as the dense weights they were made of."""

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.unit.ship.stranding import strand

from openwork.errors import FileError
from openwork.ship import read_stranded


def state(dtype=torch.float32, cols=20):
    """Two sparse weights with ragged rows (one of them empty) and a dense rest."""
    weights = {f"layers.{i}.proj.weight": torch.randn(6, cols) * (torch.rand(6, cols) < 0.4) for i in range(2)}
    weights["layers.0.proj.weight"][3] = 0
    return {n: w.to(dtype) for n, w in weights.items()} | {
        "layers.0.proj.bias": torch.randn(6, dtype=dtype),
        "embed.weight": torch.randn(11, 5, dtype=dtype),
    }


def equal(found, wanted):
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("two_of_four", [False, True])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_round_trip(tmp_path, dtype, two_of_four, old, shards):
    dense = state(dtype)
    sparse = [n for n in dense if "proj.weight" in n]
    if two_of_four:
        for name in sparse:
            quads = dense[name].view(-1, 4)
            quads[:, 1:3] = 0
    equal(read_stranded(strand(tmp_path / "m", dense, sparse, two_of_four=two_of_four, old=old, shards=shards)), dense)


def test_the_oldest_layout_compresses_every_parameter(tmp_path):
    dense = {
        **state(),
        "conv.weight": torch.randn(3, 2, 3, 3) * (torch.rand(3, 2, 3, 3) < 0.5),
        "n.bias": torch.tensor([0.0, 2, 0]),
    }
    equal(read_stranded(strand(tmp_path / "m", dense, list(dense), old=True, where=None)), dense)


@pytest.mark.parametrize("cols", [1, 7, 8, 9])
def test_ragged_columns(tmp_path, cols):
    dense = state(cols=cols)
    equal(read_stranded(strand(tmp_path / "m", dense, list(dense)[:2], where="compression_config")), dense)


def test_2_of_4_with_six_columns_counts_along_the_whole_tensor(tmp_path):
    weight = torch.randn(2, 6)
    weight.view(-1, 4)[:, 2:] = 0
    equal(
        read_stranded(strand(tmp_path / "m", {"a.weight": weight}, ["a.weight"], two_of_four=True)),
        {"a.weight": weight},
    )


@pytest.mark.slow  # importing transformers takes seconds
def test_transformers_takes_the_weights(tmp_path):
    pytest.importorskip("transformers")
    from transformers import AutoConfig, BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, max_position_embeddings=12
    )  # fmt: skip
    model = BertModel(config).eval()
    sparse = [n for n, p in model.named_parameters() if "dense.weight" in n]
    for name in sparse:
        model.get_parameter(name).data[torch.rand(model.get_parameter(name).shape) < 0.7] = 0
    strand(tmp_path / "m", model.state_dict(), sparse, config=json.loads(config.to_json_string()))
    described = AutoConfig.from_pretrained(tmp_path / "m")
    del described.quantization_config
    again = BertModel.from_pretrained(None, config=described, state_dict=read_stranded(tmp_path / "m")).eval()
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)


def edit(name, change):
    """Rewrite one tensor of the folder's only file; ``None`` takes it away."""

    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        value = change(tensors.pop(name, None))
        if value is not None:
            tensors[name] = value
        save_file(tensors, folder / "model.safetensors")

    return apply


def config(change):
    def apply(folder):
        data = json.loads((folder / "config.json").read_text())
        change(data["quantization_config"])
        (folder / "config.json").write_text(json.dumps(data))

    return apply


def flip(tensor):
    tensor[0, 0] ^= 1
    return tensor


P = "layers.0.proj"
DAMAGE = [
    (lambda f: (f / "config.json").unlink(), "config.json: cannot be read .No such file or directory.; a Hugging Face folder"),
    (lambda f: (f / "config.json").write_text("{"), "config.json: not readable as JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "sparsity_config.format must be one of sparse-bitmask, sparse-24-bitmask, got None"),
    (config(lambda q: q["sparsity_config"].update(format=["a"])), r"got \['a'\]; dense checkpoints need no reader"),
    (config(lambda q: q.update(format="float-quantized")), "the weights are quantised too .'float-quantized'.; only"),
    (config(lambda q: q.update(config_groups={"g": {}})), "the weights are quantised too"),
    (lambda f: (f / "model.safetensors").unlink(), "holds no .*safetensors; other kinds of checkpoints are not read"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\x08"), "model.safetensors: not a whole safetensors file"),
    (lambda f: (f / "other.safetensors").write_bytes((f / "model.safetensors").read_bytes()), "is in model.safetensors too; the folder mixes two"),
    (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "index.json: must hold a weight_map .KeyError"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "shards must be files of this folder, got '../x'"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x"}}'), "x: the shard is missing; download"),
    (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}'), "promises a, which no shard holds"),
    (edit(f"{P}.bitmask", lambda t: None), f"{P}.bitmask: the tensor is missing; download the checkpoint again"),
    (edit("stray.bitmask", lambda t: torch.zeros(2)), "stray.bitmask: belongs to no compressed tensor; is the format"),
    (edit(f"{P}.weight", lambda t: torch.zeros(2)), f"{P}.weight: is there twice, dense and compressed"),
    (edit(f"{P}.shape", lambda t: t.float()), r"shape must hold 1 to 8 whole numbers, got \(2,\) torch.float32"),
    (edit(f"{P}.shape", lambda t: -t), r"shape must not be negative, got \(-6, -20\)"),
    (edit(f"{P}.shape", lambda t: t + 8), r"bitmask must be uint8 \(14, 4\) for \(14, 28\), got torch.uint8 \(6, 3\)"),
    (edit(f"{P}.shape", lambda t: t - torch.tensor([0, 3])), "bitmask has bits beyond the last column; the file is damaged"),
    (edit(f"{P}.compressed", lambda t: t.double()), "compressed must be float32, float16 or bfloat16, got torch.float64"),
    (edit(f"{P}.compressed", lambda t: t[1:]), r"bitmask marks \d+ places, compressed holds \d+ values"),
    (edit(f"{P}.row_offsets", lambda t: t + 1), "row_offsets do not agree with bitmask; the file is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_folders(tmp_path, damage, message):
    dense = state()
    for name in list(dense)[:2]:
        dense[name][:, -1] = 1.0
    strand(tmp_path / "m", dense, list(dense)[:2])
    damage(tmp_path / "m")
    with pytest.raises(FileError, match=message):
        read_stranded(tmp_path / "m")


def test_a_bitmask_that_is_not_2_of_4(tmp_path):
    dense = torch.randn(4, 8)
    strand(tmp_path / "m", {"a.weight": dense}, ["a.weight"], two_of_four=True)
    swap = {"a.bitmask": torch.tensor([[0b00001111]] * 4, dtype=torch.uint8)}
    save_file({**load_file(tmp_path / "m" / "model.safetensors"), **swap}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(FileError, match="a: bitmask must mark 2 of every 4 entries; the file is damaged"):
        read_stranded(tmp_path / "m")


def test_a_tensor_that_cannot_be_read(tmp_path, monkeypatch):
    strand(tmp_path / "m", state(), list(state())[:2])

    class Broken:
        def __init__(self, file):
            self.keys = file.keys

        def get_tensor(self, name):
            raise OSError("Input/output error")

    @contextmanager
    def opened(*arguments, **options):
        with safe_open(*arguments, **options) as file:
            yield Broken(file)

    monkeypatch.setattr("openwork.ship.stranded.safe_open", opened)
    with pytest.raises(FileError, match=r"embed.weight: cannot be read .Input/output error"):
        read_stranded(tmp_path / "m")
