"""Multiply-accumulates against brute force, and targets with a unit."""

import pytest
import torch
from tests.unit.graph.nets import NETS, build
from torch.utils.flop_counter import FlopCounterMode

import openwork as ow
from openwork.cli.main import main
from openwork.core.protocols import Rule
from openwork.graph import build_graph, count_macs
from openwork.graph.cost import cost_of
from openwork.methods import gradual_magnitude, magnitude, taylor
from openwork.schedules import OneShot

BLIND = ("LSTM", "GRU", "grouped queries with rotary halves")  # torch's counter does not see these on a CPU


@pytest.mark.parametrize("name", [n for n in NETS if n not in BLIND])
def test_macs_are_half_the_operations_that_torch_counts(name):
    net, args, _ = build(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*args)
    assert 2 * count_macs(net, args) == counter.get_total_flops()


def test_attention_and_recurrence_by_hand():
    net, args, _ = build("grouped queries with rotary halves")
    tokens, heads, width = 5, 6, 4
    projections = tokens * 12 * (24 + 8 + 8 + 24)
    assert count_macs(net, args) == 2 * (projections + 2 * heads * tokens * tokens * width)
    net, args, _ = build("GRU")
    assert count_macs(net, args) == 2 * 5 * (3 * 7 * 12 + 3 * 7 * 7 + 7 * 5)


@pytest.mark.parametrize("name", ["residual", "grouped", "depthwise and squeeze-excite", "fused attention", "flatten"])
def test_a_prediction_is_what_the_small_model_costs(name):
    net, args, _ = build(name)
    cost = cost_of(net, build_graph(net, args))
    structure = ow.structure.Coupling(ow.graph.Example.of(args), ("channels", "heads"))
    result = ow.prune(net, magnitude(density=0.5, structure=structure))
    small = ow.compact(net, result)
    assert cost("macs", result.units) == count_macs(small, args)
    assert cost("params", result.units) == sum(p.numel() for p in small.parameters())
    assert cost("bytes", result.units) == 4 * cost("params", result.units)


@pytest.mark.parametrize("unit", ["macs", "params", "bytes"])
def test_a_target_is_met(unit):
    model, x = ow.build_model("resnet20").eval(), torch.randn(2, 3, 32, 32)
    dense = {"macs": count_macs(model, x), "params": sum(p.numel() for p in model.parameters())}
    recipe = magnitude(structure=ow.channels(example=x), scope="global")
    result = ow.prune(model, recipe, target={unit: 0.4})
    small = ow.compact(model, result)
    found = {"macs": count_macs(small, x), "params": sum(p.numel() for p in small.parameters())}
    key = "params" if unit == "bytes" else unit
    assert abs(found[key] / dense[key] - 0.4) <= 0.004
    assert result.manifest["budget"]["share"] == pytest.approx(found[key] / dense[key])


def test_a_target_with_a_statistic():
    model, x = ow.build_model("resnet8").eval(), torch.randn(4, 1, 28, 28)
    recipe = taylor(structure=ow.channels(example=x))
    batches = [(x, torch.tensor([0, 1, 2, 3]))]
    result = ow.prune(model, recipe, data=batches, loss=torch.nn.functional.cross_entropy, target={"macs": 0.3})
    assert abs(result.manifest["budget"]["share"] - 0.3) < 0.003


class Never(Rule):
    def update(self, now, phase, state):
        raise ow.RecipeError("not at any share")


def test_targets_that_cannot_be_met():
    model, x = ow.build_model("mlp"), torch.randn(2, 1, 8, 8)
    before = [p.clone() for p in model.parameters()]
    recipe = magnitude(structure=ow.channels(example=x, multiple=64))
    with pytest.raises(ow.DensityMissed, match="the closest reachable is"):
        ow.prune(model, recipe, target={"params": 0.37})
    never = ow.Recipe("never", ow.channels(example=x), Never(), OneShot(0.5))
    with pytest.raises(ow.DensityMissed, match="no share of units was accepted"):
        ow.prune(model, never, target={"macs": 0.5})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(ow.RecipeError, match="must name one unit"):
        ow.prune(model, recipe, target={"params": 0.5, "macs": 0.5})
    with pytest.raises(ow.RecipeError, match="unknown unit of a target 'mac'; did you mean 'macs'"):
        ow.prune(model, recipe, target={"mac": 0.5})
    with pytest.raises(ow.RecipeError, match="the share of macs that stays"):
        ow.prune(model, recipe, target={"macs": 50})
    with pytest.raises(ow.RecipeError, match="needs a coupled structure"):
        ow.prune(model, magnitude(), target={"macs": 0.5})
    with pytest.raises(ow.RecipeError, match="one-shot recipes only"):
        ow.prune(model, gradual_magnitude(structure=ow.channels(example=x), begin=0, end=4), target={"macs": 0.5})


def test_the_command_line_prints_groups(capsys):
    assert main(["inspect", "--model", "resnet20", "--graph", "--input", "1x3x32x32"]) == 0
    text = capsys.readouterr().out
    assert "10 groups" in text
    assert "stays: padding" in text
    assert main(["inspect", "--model", "resnet20", "--graph", "--input", "3,32"]) == 2
    assert "must read 1x3x32x32" in capsys.readouterr().err
