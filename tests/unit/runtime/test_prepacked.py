"""Layers in oneDNN's order follow their weights, and refuse what torch's own layers refuse."""

import io

import pytest
import torch
from torch import nn
from torch.func import functional_call

import openwork as ow
from openwork.runtime.prepacked import KEPT, prepacked, runs

pytestmark = pytest.mark.skipif(not runs(torch.float32), reason="needs oneDNN")


def made(kind, bias=True):
    """A dense layer, itself in oneDNN's order after one call, and an input."""
    torch.manual_seed(0)
    if kind == "linear":
        layer, x = nn.Linear(12, 7, bias=bias), torch.randn(5, 12)
    else:
        layer, x = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=bias), torch.randn(2, 6, 5, 4)
    layer.requires_grad_(False)
    fast = prepacked(layer)
    torch.testing.assert_close(fast(x), layer(x))
    return layer, fast, x


def same(fast, layer, x):
    """The outputs are those of a dense layer with the weights that the state dict shows."""
    layer.load_state_dict(fast.state_dict())
    torch.testing.assert_close(fast(x), layer(x))


both = pytest.mark.parametrize("kind", ["linear", "conv"])


@both
def test_changes_in_place_are_seen(kind):
    _, fast, x = made(kind)
    layer = made(kind)[0]
    for change in (
        lambda: fast.weight.mul_(2),
        lambda: fast.weight[0].zero_(),
        lambda: fast.weight.copy_(torch.zeros_like(fast.weight)),
        lambda: fast.bias.add_(1),
    ):
        before = fast(x)
        change()
        assert not torch.equal(fast(x), before)
        same(fast, layer, x)


def test_a_packed_model_computes_with_the_weights_it_shows():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU()).requires_grad_(False)
    packed = ow.pack(model, plan="always", override={"0": "onednn"})
    x = torch.randn(3, 16)
    packed(x)
    packed[0].weight.copy_(0)
    assert torch.equal(packed(x), packed[0].bias.relu().expand(3, -1))


@both
def test_other_tensors_in_the_place_of_a_weight_are_seen(kind):
    layer, fast, x = made(kind)
    for _ in range(3):  # a freed tensor may leave its place to the next
        fast.weight = torch.randn_like(fast.weight)
        same(fast, layer, x)
    fast.weight.data = torch.randn_like(fast.weight)
    same(fast, layer, x)
    fast.weight = nn.Parameter(torch.randn_like(layer.weight), requires_grad=False)
    same(fast, layer, x)
    fast.bias = None
    torch.testing.assert_close(fast(x), layer(x) - layer.bias.view(-1, *[1] * (x.dim() - 2)), rtol=1e-4, atol=1e-5)


@both
def test_functional_call_takes_the_weights_it_is_given(kind):
    layer, fast, x = made(kind)
    given = {"weight": torch.randn_like(layer.weight), "bias": torch.randn_like(layer.bias)}
    torch.testing.assert_close(functional_call(fast, given, (x,)), functional_call(layer, given, (x,)))
    torch.testing.assert_close(fast(x), layer(x))


@both
def test_weights_that_are_differentiated_get_their_gradient(kind):
    layer, fast, x = made(kind)
    for name in ("weight", "bias"):
        given = getattr(layer, name).clone().requires_grad_()
        functional_call(fast, {name: given}, (x,)).sum().backward()
        assert given.grad is not None
        with torch.no_grad():
            torch.testing.assert_close(functional_call(fast, {name: given}, (x,)), layer(x))


@both
def test_weights_of_another_kind_run_as_torch_does(kind):
    layer, fast, x = made(kind)
    with torch.inference_mode():
        fast.weight = torch.randn_like(layer.weight)
        for _ in range(2):  # torch does not count these changes
            fast.weight.add_(1)
            same(fast, layer, x)
        again = prepacked(layer)
    assert not again.weight.is_inference()
    with torch.inference_mode():
        hidden = type(layer)(*((12, 7) if kind == "linear" else (6, 8, 3)))
    assert hidden.weight.is_inference()
    fast = prepacked(hidden)
    assert not fast.weight.is_inference()


@both
def test_the_orders_kept_are_of_the_latest_weights(kind):
    layer, fast, x = made(kind)
    inputs = [torch.cat([x] * n) for n in range(1, KEPT + 4)]
    for _ in range(2):
        for given in inputs:
            same(fast, layer, given)
        assert len(fast._ready) == KEPT
        fast.weight.neg_()
    order = fast._ready[next(reversed(fast._ready))]
    fast.weight.neg_()
    same(fast, layer, inputs[-1])
    found = fast._ready[next(reversed(fast._ready))]
    assert found is not order
    fast(inputs[-1])
    assert fast._ready[next(reversed(fast._ready))] is found


@both
def test_pickles_of_earlier_versions_load(kind):
    layer, fast, x = made(kind)
    assert fast.__getstate__()["_ready"] == {}  # what they hold, too
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    again.weight.mul_(3)
    same(again, layer, x)


LINEAR = [torch.tensor(1.0), torch.randn(3, 11), torch.randn(0, 11), torch.ones(3, 12, dtype=torch.cfloat)]
CONV = [
    torch.tensor(1.0),
    torch.randn(6),
    torch.randn(1, 5, 5, 4),
    torch.randn(1, 12, 5, 4),
    torch.randn(1, 6, 0, 4),
    torch.randn(1, 6, 1, 4),
    torch.randn(1, 6, 5, 1, 1),
    torch.randn(1, 6, 5, 5, dtype=torch.cfloat),
]


@pytest.mark.parametrize(("kind", "x"), [("linear", x) for x in LINEAR] + [("conv", x) for x in CONV])
def test_wrong_inputs_get_the_error_of_torch(kind, x):
    if kind == "linear":
        layer = nn.Linear(12, 7)
    else:
        layer = nn.Conv2d(6, 8, 3, groups=2)
    layer.requires_grad_(False)
    fast = prepacked(layer)
    try:
        wanted, problem = fast_as_torch(layer, x), None
    except Exception as found:
        wanted, problem = None, found
    if problem is None:
        torch.testing.assert_close(fast(x), wanted)
        return
    with pytest.raises(type(problem)) as found:
        fast(x)
    assert str(found.value) == str(problem)


def fast_as_torch(layer, x):
    """The product by torch in the type of the input, as prepacked layers compute other types than their own."""
    bias = layer.bias.to(x.dtype)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, layer.weight.to(x.dtype), bias)
    return nn.functional.conv2d(x, layer.weight.to(x.dtype), bias, groups=layer.groups)


@both
def test_weights_that_do_not_fit_get_the_error_of_torch(kind):
    layer, fast, x = made(kind)
    for given in ({"weight": layer.weight[:, :1]}, {"weight": layer.weight[0]}, {"bias": torch.ones(3)}):
        with pytest.raises(RuntimeError) as wanted:
            functional_call(layer, given, (x,))
        with pytest.raises(RuntimeError) as found:
            functional_call(fast, given, (x,))
        assert str(found.value) == str(wanted.value)
    half = {"bias": layer.bias.double()}
    torch.testing.assert_close(functional_call(fast, half, (x,)), layer(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@both
def test_tangents_pass_through(kind):
    layer, fast, x = made(kind)
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        expected, got = (forward_ad.unpack_dual(m(dual)).tangent for m in (layer, fast))
    assert got is not None
    torch.testing.assert_close(got, expected)
