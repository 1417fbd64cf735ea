"""Packed models of 16-bit weights: no larger than the dense file, and equal to the bit when they are loaded."""

import copy

import pytest
import torch
from safetensors.torch import save
from tests.unit.runtime.models import always
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.methods import magnitude
from openwork.runtime import Packed, pack
from openwork.ship import export, read_packed
from openwork.ship.export import PACKED

BF16, F16 = torch.bfloat16, torch.float16


def made(dtype, density=0.5, size=256):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size)).to(dtype).eval()
    return model, ow.prune(model, magnitude(density=density))


def weights(model):
    layers = (m for m in model.modules() if hasattr(m, "weight") or isinstance(m, Packed))
    return [m.dense_weight() if isinstance(m, Packed) else m.weight for m in layers]


def share(model, folder):
    """Bytes of the packed file over those of the dense one."""
    return (folder / PACKED).stat().st_size / len(save(dict(model.state_dict())))


@pytest.mark.parametrize(
    ("dtype", "density", "choice", "limit"),
    [
        (BF16, 0.5, "column", 0.6),
        (BF16, 0.5, "dense", 0.6),
        (BF16, 0.1, "column", 0.18),
        (BF16, 0.1, "dense", 0.18),
        (F16, 0.1, "column", 0.32),
        (F16, 0.1, "dense", 0.32),
        (F16, 0.5, "dense", 1.01),
    ],
)
def test_sizes_and_bits(tmp_path, dtype, density, choice, limit):
    model, result = made(dtype, density)
    packed = always(model, override=dict.fromkeys(("0", "2"), choice))
    folder = export(packed, result, tmp_path / "p")
    assert share(model, folder) < limit
    again, read = ow.load(folder, copy.deepcopy(model))
    for found, wanted in zip(weights(again), weights(model), strict=True):
        assert torch.equal(found.to(dtype), wanted)
    x = torch.randn(3, 256, dtype=dtype)
    assert torch.equal(again(x), packed(x))
    assert again(x).dtype == dtype
    assert read.counts == result.counts
    second = export(again, read, tmp_path / "q")
    assert (second / PACKED).read_bytes() == (folder / PACKED).read_bytes()


def test_a_dense_layer_that_would_grow_stays_as_it_is(tmp_path):
    model, result = made(F16, 0.9)
    packed = always(model, override=dict.fromkeys(("0", "2"), "dense"))
    stored, _ = read_packed(export(packed, result, tmp_path / "p") / PACKED)
    assert stored["0.weight"].dtype == F16


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_convolutions_that_run_dense(tmp_path, dtype):
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 1)).to(dtype).eval()
    result = ow.prune(model, magnitude(density=0.2))
    folder = export(always(model, override={"0": "dense", "1": "dense"}), result, tmp_path / "p")
    again, _ = ow.load(folder, copy.deepcopy(model))
    assert not isinstance(read_packed(folder / PACKED)[0]["0.weight"], torch.Tensor)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())


def test_each_layer_is_stored_in_its_own_type():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16).to(BF16), nn.Linear(16, 16).to(F16))
    ow.prune(model, magnitude(density=0.5))
    kinds = [layer.format.meta()["dtype"] for layer in always(model)]
    assert kinds == ["float32", "bfloat16", "float32"]
    assert {layer.format.meta()["dtype"] for layer in always(model, dtype=torch.float32)} == {"float32"}
    assert {layer.format.meta()["dtype"] for layer in always(model, dtype=torch.int8)} == {"int8"}


def test_measured_layers_are_stored_in_their_own_type():
    model, _ = made(BF16, 0.1)
    packed = pack(model, example=torch.randn(4, 256, dtype=BF16), override={"0": "column"})
    assert packed[0].format.meta()["dtype"] == "bfloat16"


def test_the_command_takes_the_type_of_the_weights_unless_told(tmp_path, capsys):
    model = ow.build_model("mlp", (1, 8, 8), 10)
    result = ow.prune(model, magnitude(density=0.25))
    ow.save(model, result, tmp_path / "r")
    kinds = []
    for more in ([], ["--dtype", "bfloat16"]):
        assert (
            main(["export", str(tmp_path / "r"), "--out", str(tmp_path / f"p{len(more)}"), "--plan", "always", *more])
            == 0
        )
        stored, _ = read_packed(tmp_path / f"p{len(more)}" / PACKED)
        kinds.append({f.meta()["dtype"] for f in stored.values() if not isinstance(f, torch.Tensor)})
    assert kinds == [{"float32"}, {"bfloat16"}]
    capsys.readouterr()
