"""A block as its own task: SpODE as a criterion, SequentialAttention++ as criterion and recovery."""

import json

import numpy as np
import pytest
import torch
from tests.unit.llm import tiny
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.errors import DivergedError, MissingStatistic, RecipeError
from openwork.llm import Reconstruction, prune_blockwise
from openwork.llm.blocks import Rooted
from openwork.llm.reconstruction import Targeted
from openwork.methods import gradual_magnitude, imp, magnitude, sequential_attention_pp, spode, taylor


def attention(**options):
    return sequential_attention_pp(0.5, ow.Block(8, 8), steps=30, min_blocks=2, **options)


@torch.no_grad()
def distance(model):
    """Squared change of the logits, relative to those of the dense model."""
    dense = tiny.build("llama")(tiny.ids()).logits
    return float((model(tiny.ids()).logits - dense).square().sum() / dense.square().sum())


def by_magnitude(structure):
    model = tiny.build("llama")
    prune_blockwise(model, magnitude(0.5, structure), tiny.ids())
    return distance(model)


def test_spode_moves_the_mask_of_every_block_and_no_weight():
    dense, model = tiny.build("llama"), tiny.build("llama")
    result = prune_blockwise(model, spode(0.5, steps=20), tiny.ids(), reconstruction=Reconstruction(), batch=3)
    assert result.density == pytest.approx(0.5, abs=0.01)
    for name, mask in result.masks.items():
        assert torch.equal(model.get_parameter(name), dense.get_parameter(name) * mask)
    rows = result.log[1]["log"]["path"]
    assert rows[0]["energy"] == pytest.approx(0, abs=1e-9)  # a dense block reconstructs itself
    assert rows[-1]["energy"] > 0.001
    assert distance(model) < by_magnitude(ow.Element())


def test_attention_trains_each_block_to_the_density_and_recovers():
    model = tiny.build("llama")
    result = prune_blockwise(model, attention(), tiny.ids(), reconstruction=Reconstruction(3e-3))
    assert result.density == 0.5
    assert all(not hasattr(m, "parametrizations") for m in model.modules())
    assert all(bool((model.get_parameter(n)[~m] == 0).all()) for n, m in result.masks.items())
    assert result.log[0]["log"]["reconstruction"]["steps"] == 30
    assert distance(model) < by_magnitude(ow.Block(8, 8))
    assert model.training is False
    assert all(p.grad is None for p in model.parameters())


def test_gradual_recipes_train_blocks_too():
    recipe = gradual_magnitude(0.5, begin=0, end=10)
    result = prune_blockwise(tiny.build("gpt2"), recipe, tiny.ids(), reconstruction=Reconstruction())
    assert result.density == pytest.approx(0.5, abs=0.01)


def test_dropout_is_off_whatever_a_statistic_asks_for():
    block = Rooted("a.0", nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    assert not any(m.training for m in block.train().modules())


def test_from_folder_to_folder_on_the_command_line(root, tmp_path):
    source = str(tiny.saved("llama", root))
    np.save(tmp_path / "ids.npy", tiny.ids().numpy())
    out = tmp_path / "out"
    options = ["--method", "spode", "--density", "0.5", "--set", "steps=4", "--reconstruct", "1e-3", "--quiet"]
    given = ["--calibration", str(tmp_path / "ids.npy"), "--out", str(out)]
    assert main(["prune-llm", source, *options, *given]) == 0
    told = json.loads((out / "openwork.json").read_text())
    assert told["density"]["targeted"] == pytest.approx(0.5, abs=0.01)
    in_memory = tiny.build("llama")
    prune_blockwise(in_memory, spode(0.5, steps=4), tiny.ids(), reconstruction=Reconstruction(1e-3))
    assert torch.equal(tiny.load(out)(tiny.ids()).logits, in_memory(tiny.ids()).logits)


def test_refusals():
    for options, error, message in (
        ({"recipe": taylor(0.5)}, RecipeError, "taylor asks for .*, but a dense block reconstructs itself exactly, so"),
        ({"recipe": imp(0.5, rounds=2)}, RecipeError, "imp works in rounds of training; use ow.cycle on the whole mo"),
        ({"recipe": attention(), "reconstruction": None}, RecipeError, "works over training steps; pass reconstruct"),
        ({"recipe": spode(0.5), "reconstruction": None}, MissingStatistic, "spode needs a loss, which one block alone"),
        ({"recipe": spode(0.5), "ids": None}, MissingStatistic, "spode needs calibration data"),
        (
            {"recipe": attention(), "shares": {"model.layers.0": 0.4}},
            RecipeError,
            "sequential_attention_pp trains to one density; leave shares out",
        ),
    ):
        model = tiny.build("llama")
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        given = {"reconstruction": Reconstruction(), "ids": tiny.ids(), **options}
        with pytest.raises(error, match=message):
            prune_blockwise(model, given.pop("recipe"), given.pop("ids"), **given)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(RecipeError, match="Reconstruction: lr must be positive, got 0"):
        Reconstruction(0)


def test_a_rate_that_is_too_high_is_named():
    block = Rooted("a.0", nn.Linear(4, 4))
    hidden = torch.full((2, 3, 4), float("inf"))
    data = Targeted([{"hidden": hidden, "args": (), "kwargs": {}}], [torch.zeros(2, 3, 4)])
    with pytest.raises(DivergedError, match=r"Reconstruction: the loss is nan at step 0; lower the rate"):
        Reconstruction().train(block, gradual_magnitude(0.5, begin=0, end=2), {"a.0.weight": None}, data, 0)
