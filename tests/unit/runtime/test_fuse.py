"""Activations and sums moved into kernels: what is taken, what is left, and modules that stay what they were."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from tests.unit.runtime.models import always, thin
from torch import nn

from openwork.runtime.fuse import apply, fuse, is_fused, unfuse, word_of
from openwork.runtime.plain import is_plain


class Block(nn.Module):
    """Two convolutions around a shortcut, activations as functions."""

    def __init__(self, shortcut=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.drop = nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.5)
        self.skip = nn.Conv2d(8, 8, 1) if shortcut else None

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.drop(self.conv2(out))
        return F.relu(out + (x if self.skip is None else self.skip(x)))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)


def two(forward):
    return thin(type("Made", (Two,), {"forward": forward})(), 0.5)


def images():
    return torch.randn(2, 8, 6, 6)


@pytest.mark.parametrize("shortcut", [True, False])
def test_functions_and_sums_are_taken_over(shortcut):
    model, x = thin(nn.Sequential(Block(shortcut), Block())), images()
    packed = always(model)
    wanted = {"conv1": ["relu"], "conv2": ["residual", "relu"]}
    assert packed.openwork_inside == {"0": wanted, "1": wanted}
    assert packed[0].conv2.activation == "relu"
    assert is_fused(packed[0])
    assert not is_fused(packed)
    torch.testing.assert_close(packed(x), model(x))
    assert always(model, fold=False).openwork_inside == {}


def test_a_fused_module_is_what_it_was():
    model, x = thin(nn.Sequential(Block())), images()
    packed = always(model)
    assert isinstance(packed[0], Block)
    assert type(packed[0]).__name__ == "Block"
    assert list(dict(packed.named_modules())) == list(dict(model.named_modules()))
    seen = []
    packed[0].skip.register_forward_hook(lambda m, a, y: seen.append(m))
    wanted = packed(x)
    assert seen == [packed[0].skip]
    for again in (copy.deepcopy(packed), copy.copy(packed), pickle.loads(pickle.dumps(always(model)))):
        assert torch.equal(again(x), wanted)
        assert is_fused(again[0])
    again = copy.deepcopy(packed)
    again[0].conv2.bias.fill_(100.0)
    assert torch.equal(packed(x), wanted)
    unfuse(packed)
    assert type(packed[0]) is Block
    assert packed[0].conv2.activation == "none"
    torch.testing.assert_close(packed(x), wanted)
    assert fuse(packed) == {"0": {"conv1": ["relu"], "conv2": ["residual", "relu"]}}


def read_twice(self, x):
    y = self.a(x)
    return F.relu(y) + y


def called_twice(self, x):
    return F.relu(self.a(x)) + F.relu(self.a(-x))


def number(self, x):
    return self.a(x) + 1.0


def twice_itself(self, x):
    y = self.a(x)
    return y + y


def scaled(self, x):
    return torch.add(self.a(x), x, alpha=2)


def changed_between(self, x):
    y = self.a(x)
    x.mul_(2)
    return y + x


def act_before_sum(self, x):
    return F.relu(self.a(x)) + x


def relu_of_sum(self, x):
    y = self.a(x)
    y += self.b(x)
    return y.relu()


def no_kernel(self, x):
    return torch.tanh(self.a(x)) + F.leaky_relu(self.b(x))


CASES = {
    read_twice: None, called_twice: None, number: None, twice_itself: None, scaled: None, changed_between: None,
    no_kernel: None, act_before_sum: {"a": ["relu"]}, relu_of_sum: {"a": ["residual", "relu"]},
}  # fmt: skip


@pytest.mark.parametrize("forward", CASES, ids=lambda f: f.__name__)
def test_only_what_means_the_same_is_taken(forward):
    model, x = two(forward), torch.randn(3, 8)
    packed = always(model)
    assert packed.openwork_inside == ({"": CASES[forward]} if CASES[forward] else {})
    torch.testing.assert_close(packed(x.clone()), model(x.clone()))


def test_sums_that_broadcast_or_promote_are_left_to_torch():
    model = two(lambda self, x, more: x)
    type(model).forward = with_more
    packed = always(model)
    assert packed.openwork_inside == {"": {"a": ["residual", "relu"]}}
    x = torch.randn(3, 8)
    for more in (torch.randn(8), torch.randn(2, 3, 8), torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8)):
        y, wanted = packed(x, more), model(x, more)
        assert y.dtype == wanted.dtype
        torch.testing.assert_close(y, wanted)
    block = always(thin(Wide()))
    assert block.openwork_inside == {"": {"conv": ["residual"]}}
    x = images()
    torch.testing.assert_close(block(x, x.mean((2, 3), keepdim=True)), block.conv(x) + x.mean((2, 3), keepdim=True))


def with_more(self, x, more):
    return F.relu(self.a(x) + more)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x, more):
        return self.conv(x) + more


def optional(self, x, mask=None):
    return F.relu(self.a(x)) if mask is None else x


def asks(self, x):
    return F.relu(self.a(x)) if x is not None else x


def stores(self, x):
    self.last = F.relu(self.a(x))
    return self.last


def without_gradient(self, x):
    with torch.no_grad():
        return F.relu(self.a(x))


def helps(self, x):
    return own_relu(self.a(x))


def looks(self, x):
    return F.relu(self.a(x)) if isinstance(x, torch.Tensor) else x


def by_value(self, x):
    return F.relu(self.a(x)) if x.sum() > -1e9 else x


def by_method(self, x):
    return F.relu(self.extra_repr(x))


def own_relu(x):
    return F.relu(x)


@pytest.mark.parametrize(
    "forward", [optional, asks, stores, without_gradient, helps, looks, by_value, by_method], ids=lambda f: f.__name__
)
def test_forwards_that_a_trace_would_misread_are_left_alone(forward):
    model = two(forward)
    assert is_plain(model) == (forward is by_value)  # which cannot be traced
    assert always(model).openwork_inside == {}


def test_forwards_of_torch_and_forwards_without_a_source_are_left_alone():
    assert not is_plain(nn.Sequential(nn.Linear(2, 2)))
    model = two(relu_of_sum)
    model.forward = lambda x: x
    assert not is_plain(model)
    space = {}
    exec("def forward(self, x):\n    return self.a(x) + x", space)
    assert not is_plain(two(space["forward"]))


def test_activations_of_any_make_are_recognised():
    class Own(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.act = act

        def forward(self, x):
            return self.act(x)

    assert [word_of(Own(a)) for a in (F.gelu, F.silu, F.relu, torch.tanh)] == ["gelu", "silu", "relu", None]
    assert word_of(nn.GELU(approximate="tanh")) == "gelu_tanh"
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    assert word_of(hooked) is None
    assert word_of(nn.Linear(2, 2)) is None


def test_what_was_fused_must_be_there_again():
    packed = always(two(no_kernel))
    with pytest.raises(ValueError, match="the model does not compute what was fused in it: {'a': "):
        apply(packed, {"": {"a": ["relu"]}})
