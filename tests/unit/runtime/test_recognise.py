"""Convolutions of other libraries: recognised when they only pad with zeros and convolve, left alone otherwise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import openwork as ow
from openwork.runtime.inputs import call
from openwork.runtime.recognise import as_conv2d, recognise


class Same(nn.Conv2d):
    """Pads by a module before it convolves, as EfficientNets with static sizes do."""

    def __init__(self, *args, sides=(1, 1, 1, 1), **kwargs):
        super().__init__(*args, **kwargs)
        self.before = nn.ZeroPad2d(sides) if any(sides) else nn.Identity()

    def forward(self, x):
        return F.conv2d(self.before(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Called(nn.Conv2d):
    """A forward that is given."""

    def __init__(self, *args, how, **kwargs):
        super().__init__(*args, **kwargs)
        self.how = how

    def forward(self, x):
        return self.how(self, x)


class Renamed(nn.Conv2d):
    pass


ONES = torch.ones(6)


def own(c, x):
    return F.conv2d(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)


ALIKE = {
    "renamed": lambda: Renamed(4, 6, 3, stride=2, padding=(1, 2), dilation=2),
    "module": lambda: Same(4, 6, 3, stride=2, sides=(2, 2, 1, 1)),
    "module and its own": lambda: Same(4, 6, (3, 1), padding=1, bias=False),
    "nothing to pad": lambda: Same(4, 6, 1, sides=(0, 0, 0, 0)),
    "groups": lambda: Same(4, 8, 3, groups=2),
    "function": lambda: Called(4, 6, 3, how=lambda c, x: own(c, F.pad(x, (1, 1, 2, 2)))),
    "twice": lambda: Called(4, 6, 3, how=lambda c, x: own(c, F.pad(F.pad(x, (1, 0, 0, 0)), [0, 1, 0, 0], value=0.0))),
    "named": lambda: Called(4, 6, 3, how=lambda c, x: F.conv2d(x, weight=c.weight, bias=c.bias, padding=1)),
    "method": lambda: Called(4, 6, 3, padding=1, how=lambda c, x: c._conv_forward(x, c.weight, c.bias)),
}


@pytest.mark.parametrize("name", list(ALIKE))
def test_what_pads_and_convolves_is_a_plain_convolution(name):
    torch.manual_seed(0)
    layer, x = ALIKE[name]().eval(), torch.randn(2, 4, 9, 11)
    plain = as_conv2d(layer)
    assert type(plain) is nn.Conv2d
    assert plain.weight is layer.weight
    assert plain.bias is layer.bias
    assert torch.equal(plain(x), layer(x))


OTHER = {
    "unequal sides": lambda: Same(4, 6, 3, sides=(0, 1, 0, 1)),
    "crop": lambda: Same(4, 6, 3, sides=(-1, -1, 0, 0)),
    "scaled weights": lambda: Called(4, 6, 3, how=lambda c, x: F.conv2d(x, c.weight * 2, c.bias)),
    "scaled output": lambda: Called(4, 6, 3, how=lambda c, x: own(c, x) * 2),
    "scaled input": lambda: Called(4, 6, 3, how=lambda c, x: own(c, x * 2)),
    "input added": lambda: Called(4, 4, 3, padding=1, how=lambda c, x: own(c, x) + x),
    "no bias after all": lambda: Called(4, 6, 3, how=lambda c, x: F.conv2d(x, c.weight)),
    "another bias": lambda: Called(4, 6, 3, how=lambda c, x: F.conv2d(x, c.weight, -c.bias)),
    "a constant bias": lambda: Called(4, 6, 3, how=lambda c, x: F.conv2d(x, c.weight, ONES)),
    "computed in vain": lambda: Called(4, 4, 3, how=lambda c, x: (own(c, x), x)[1]),
    "two steps, one read": lambda: Called(4, 6, 3, how=lambda c, x: (F.pad(x, (1, 1, 1, 1)), own(c, x))[1]),
    "ones at the sides": lambda: Called(4, 6, 3, how=lambda c, x: own(c, F.pad(x, (1, 1, 1, 1), value=1.0))),
    "reflected": lambda: Called(4, 6, 3, how=lambda c, x: own(c, F.pad(x, (1, 1, 1, 1), mode="reflect"))),
    "channels padded": lambda: Called(6, 6, 3, how=lambda c, x: own(c, F.pad(x, (0, 0, 0, 0, 1, 1)))),
    "by the size": lambda: Called(4, 6, 3, how=lambda c, x: own(c, F.pad(x, (x.shape[3] % 2,) * 4))),
    "by the data": lambda: Called(4, 6, 3, how=lambda c, x: own(c, x if x.sum() > 0 else -x)),
    "in words": lambda: Called(4, 6, 3, how=lambda c, x: F.conv2d(x, c.weight, c.bias, padding="same")),
    "not a convolution": lambda: Called(4, 4, 3, how=lambda c, x: x.relu()),
    "nothing": lambda: Called(4, 4, 3, how=lambda c, x: x),
    "parametrized": lambda: parametrizations.weight_norm(Renamed(4, 6, 3)),
}


@pytest.mark.parametrize("name", list(OTHER))
def test_what_computes_anything_else_is_left_alone(name):
    assert as_conv2d(OTHER[name]()) is None


def test_hooks_and_more_state_are_left_alone():
    hooked, padded, richer = Renamed(4, 6, 3), Same(4, 6, 3), Renamed(4, 6, 3)
    hooked.register_forward_hook(lambda m, x, y: None)
    padded.before.register_forward_pre_hook(lambda m, x: None)
    richer.register_buffer("seen", torch.zeros(1))
    assert [as_conv2d(layer) for layer in (hooked, padded, richer)] == [None] * 3


def test_a_model_of_them_is_packed_exported_and_loaded(tmp_path):
    torch.manual_seed(0)

    def build():
        layers = Same(16, 32, 1, sides=(0,) * 4), nn.BatchNorm2d(32), nn.ReLU(), Same(32, 32, 3, sides=(0, 1, 0, 1))
        return nn.Sequential(*layers, Same(32, 16, 3, sides=(1, 1, 1, 1)), nn.Flatten(), nn.Linear(16 * 49, 4)).eval()

    model, x = build(), torch.randn(2, 16, 8, 8)
    result = ow.prune(model, ow.methods.magnitude(density=0.1, structure=ow.GroupOf(4, dim=0)))
    packed = ow.pack(model, ow.GroupOf(4, dim=0), "always", example=x)
    kinds = [type(m).__name__ for m in packed]
    assert kinds[:5] == ["PackedConv2d", "Identity", "Identity", "Same", "PackedConv2d"]
    assert type(model[0]) is Same
    reasons = {c.name: c.reason for c in packed.openwork_plan.choices}
    assert reasons["3.weight"] == "weight of Same, no packed layer for it"
    torch.testing.assert_close(packed(x), model(x).detach(), atol=1e-5, rtol=1e-5)
    ow.export(packed, result, tmp_path / "p")
    again, _ = ow.load(tmp_path / "p", build())
    assert torch.equal(call(again, x), call(packed, x))


def test_names_of_what_was_replaced():
    model = nn.Sequential(Same(4, 4, 1, sides=(0,) * 4), nn.Conv2d(4, 4, 1), Same(4, 4, 3, sides=(0, 1, 0, 1)))
    assert recognise(model) == ["0"]
