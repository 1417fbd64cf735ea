"""Layers that have no packed form: oneDNN runs them where it is faster, and the whole keeps its promise to it too."""

import sys

import pytest
import torch
from tests.unit.runtime.models import always, mlp, thin, timed
from torch import nn

from openwork.errors import OpenworkError
from openwork.kernels.ops import ACTIVATIONS, activated
from openwork.runtime import pack
from openwork.runtime.layers import Packed
from openwork.runtime.prepacked import PrepackedConv2d, PrepackedLinear, prepacked

FASTER = {"dense": 3.0, "onednn": 1.0, "column": 2.0}


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, as MobileNets have them."""

    def __init__(self):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.act, self.pointwise = nn.ReLU6(), nn.Conv2d(8, 16, 1)

    def forward(self, x):
        return self.pointwise(self.act(self.norm(self.depthwise(x)))).mean((2, 3))


def separable():
    return thin(Separable(), 0.3), 3 * torch.randn(2, 8, 6, 6)


def test_a_depthwise_convolution_runs_in_onednn_with_its_activation(monkeypatch):
    model, x = separable()
    timed(monkeypatch, FASTER | {"column": 0.5})
    packed = pack(model, example=x)
    choice = packed.openwork_plan["depthwise"]
    assert (choice.chosen, choice.format, choice.reason) == ("onednn", "", "a convolution in 8 groups")
    assert set(choice.times) == {"dense", "onednn"}
    assert isinstance(packed.depthwise, PrepackedConv2d)
    assert packed.depthwise.activation == "relu6"
    assert isinstance(packed.pointwise, Packed)
    torch.testing.assert_close(packed(x), model(x))
    again = torch.compile(packed, backend="eager")
    torch.testing.assert_close(again(x), model(x))


def test_nothing_is_measured_and_nothing_replaced_without_a_plan():
    model, _ = separable()
    packed = always(model)
    assert type(packed.depthwise) is nn.Conv2d
    assert packed.openwork_plan["depthwise"].reason == "a convolution in 8 groups"


def test_overrides_reach_them(monkeypatch):
    model, x = separable()
    timed(monkeypatch, FASTER)
    assert type(pack(model, example=x, override={"depthwise": "dense"}).depthwise) is nn.Conv2d
    assert isinstance(always(model, override={"depthwise": "onednn"}).depthwise, PrepackedConv2d)
    with pytest.raises(OpenworkError, match="override for depthwise must be one of dense, onednn, got 'column'"):
        always(model, override={"depthwise": "column"})


def test_a_model_without_a_layer_to_pack_says_why():
    with pytest.raises(OpenworkError, match=r"no layer of Conv2d can be packed \(a convolution in 8 groups\)"):
        always(nn.Conv2d(8, 8, 3, groups=8))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_onednns_convolutions(activation):
    layer, x = nn.Conv2d(4, 8, 3, padding=1), 4 * torch.randn(2, 4, 9, 9)
    fast = prepacked(layer)
    fast.activation = activation
    torch.testing.assert_close(fast(x), activated(layer(x), None, activation), rtol=1e-4, atol=1e-5)
    strange = x.double()  # torch computes it
    torch.testing.assert_close(fast(strange).float(), activated(layer(x), None, activation), rtol=1e-4, atol=1e-5)


def test_the_promise_is_kept_to_the_faster_dense_model(monkeypatch):
    """Slower than a model that oneDNN runs as a whole: every packed layer goes back, and to oneDNN."""
    model, x = mlp(), torch.randn(9, 48)
    timed(monkeypatch, {"dense": 3.0, "onednn": 2.0, "column": 1.0}, whole=lambda _: 1.0, onednn=0.9)
    packed = pack(model, example=x)
    assert [type(packed[i]) for i in (0, 2)] == [PrepackedLinear] * 2
    for name in ("0", "2"):
        choice = packed.openwork_plan[name]
        assert (choice.chosen, choice.reason) == ("onednn", "slower end to end")
        assert choice.error < 1e-5
    torch.testing.assert_close(packed(x), model(x))


def test_torchs_own_layers_come_back_where_its_model_is_faster(monkeypatch):
    model, x = mlp(), torch.randn(9, 48)
    timed(monkeypatch, FASTER, whole=lambda new: 1.0 + 0.1 * sum(isinstance(m, PrepackedLinear) for m in new), onednn=2)
    packed = pack(model, example=x)
    assert [type(packed[i]) for i in (0, 2)] == [nn.Linear] * 2
    assert {c.reason for c in packed.openwork_plan.choices} == {"slower end to end"}


def test_without_a_packed_layer_images_keep_their_order(monkeypatch):
    """Turned for packed layers' sake: when they all go back, so does the order, and oneDNN takes what it can."""
    model, x = separable()
    timed(
        monkeypatch,
        FASTER | {"column": 0.5},
        whole=lambda new: (
            0.5 if isinstance(new.pointwise, PrepackedConv2d) and not new.pointwise.channels_last else 3.0
        ),
        onednn=0.9,
    )
    monkeypatch.setattr(sys.modules["openwork.runtime.pack"], "_total", lambda made: len(totals.append(0) or totals))
    totals = []
    packed = pack(model, example=x)
    assert packed.openwork_last is False
    assert {c.name: c.chosen for c in packed.openwork_plan.choices} == {"depthwise": "onednn", "pointwise": "onednn"}
    assert [c.reason for c in packed.openwork_plan.choices] == ["slower end to end", "a convolution in 8 groups"]
    assert packed.depthwise.activation == "relu6"
    torch.testing.assert_close(packed(x), model(x))


def test_onednn_may_gain_by_the_whole_alone(monkeypatch):
    """No layer is faster for itself, the model is."""
    model, x = mlp(), torch.randn(9, 48)
    times = {"dense": 1.0, "onednn": 1.1, "column": 2.0}
    timed(monkeypatch, times, whole=lambda new: 0.5 if isinstance(new[0], PrepackedLinear) else 1.0, onednn=0.5)
    packed = pack(model, example=x)
    assert [type(packed[i]) for i in (0, 2)] == [PrepackedLinear] * 2
    assert {c.reason for c in packed.openwork_plan.choices} == {"faster end to end"}


def test_without_onednn_the_promise_is_kept_to_torch(monkeypatch):
    model, x = mlp(), torch.randn(9, 48)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    timed(monkeypatch, {"dense": 2.0, "column": 1.0}, whole=lambda new: 1.0 + isinstance(new[0], Packed))
    packed = pack(model, example=x)
    assert type(packed[0]) is nn.Linear
    assert packed.openwork_plan["0"].reason == "slower end to end"
