"""The models: sizes counted by hand, published weights, and arguments that are refused."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from openwork.data import load_data
from openwork.errors import RecipeError
from openwork.zoo import lenet, lenet300, mlp, resnet8, resnet20, vit


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (mlp, 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        (lambda: mlp(hidden=()), 64 * 10 + 10),
        (lenet300, 266_610),
        (lenet, 215_370),
        (lambda: resnet8(stem_stride=2), 77_754),
        (resnet8, 77_754),
        (lambda: resnet8(width=32), 308_074),
        (lambda: resnet8(shortcut="pad"), 75_002),
        (lambda: resnet8(widths=[16, 32, 64]), 77_754),
        (lambda: resnet8(widths=(4, 7, 15)), 4_436),
        (resnet20, 269_722),
        (lambda: resnet20((1, 28, 28), stem_stride=2, shortcut="projection"), 272_186),
    ],
)
def test_parameter_counts(model, parameters):
    assert size(model()) == parameters


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 8, 12)])
@pytest.mark.parametrize("model", [mlp, lenet300, lenet, resnet8, resnet20, vit])
def test_every_model_learns_on_every_shape(model, shape):
    net = model(input_shape=shape, classes=7)
    out = net(torch.randn(2, *shape))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_stem_stride_halves_the_resolution():
    seen = []
    for stride in (1, 2):
        net = resnet8(stem_stride=stride)
        net.layer1.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
        net(torch.zeros(1, 1, 28, 28))
    assert seen == [(1, 16, 28, 28), (1, 16, 14, 14)]


def test_pad_shortcut_keeps_every_second_pixel_between_zero_channels():
    shortcut = resnet8(shortcut="pad").layer2[0].shortcut
    x = torch.randn(1, 16, 4, 4)
    out = shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_resnet20_reads_published_weights(assets):
    model = resnet20()
    weights = load_file(assets / "resnet20_cifar10.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    data = load_data("cifar10-jpeg", train=10, test=500)  # fifty of each class
    model.eval()
    with torch.no_grad():
        right = model(data.x_test).argmax(1) == data.y_test
    assert float(right.float().mean()) >= 0.78  # the whole test set gives 0.81; JPEG costs ten points


def test_vit_counts_and_sees_every_patch():
    model = vit(patch=8, dim=12, depth=2, heads=3, hidden=20)
    block = 4 * (12 * 12 + 12) + 2 * 24 + (12 * 20 + 20) + (20 * 12 + 12)
    assert size(model) == (3 * 64 * 12 + 12) + 12 + 17 * 12 + 2 * block + 24 + (12 * 10 + 10)
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    model(x)[0, 0].backward()
    reached = x.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((0, 1, 4, 5))
    assert (reached > 0).all()


def test_vit_reads_the_class_token():
    model = vit(depth=1)
    for layer in (model.blocks[0].attention.out, model.blocks[0].down):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(model.token)
    expected = model.head(model.norm(model.token[:, 0] + model.positions[:, 0]))
    torch.testing.assert_close(model(torch.randn(1, 3, 32, 32)), expected)


def test_vit_attention_is_the_textbook_formula():
    attention = vit(dim=8, heads=2).blocks[0].attention.double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    heads = []
    for rows in (slice(0, 4), slice(4, 8)):
        q, k, v = (layer(x)[..., rows] for layer in (attention.q, attention.k, attention.v))
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 4**0.5, dim=-1) @ v)
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, dim=-1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(input_shape=()), r"mlp: input_shape must have sizes above 0, got \(\)"),
        (lambda: mlp(hidden=(8, 0)), "mlp: width must be at least 1, got 0"),
        (lambda: lenet((1, 3, 28)), "lenet: pictures must be at least 4x4, got 3x28"),
        (lambda: lenet(hidden=0), "lenet: hidden must be at least 1, got 0"),
        (
            lambda: lenet((28, 28)),
            r"lenet: input_shape must be \(channels, height, width\).*, got \(28, 28\)",
        ),
        (lambda: resnet8(classes=0), "resnet8: classes must be at least 1, got 0"),
        (lambda: resnet20(stem_stride=3), "resnet20: stem_stride must be 1 or 2, got 3"),
        (lambda: resnet20(shortcut="A"), "resnet20: shortcut must be 'pad' or 'projection', got 'A'"),
        (lambda: resnet8(width=0), "resnet8: width must be at least 1, got 0"),
        (lambda: vit(patch=5), "vit: patch 5 must divide height and width, got 32x32"),
        (lambda: vit(heads=5), "vit: heads 5 must divide dim, got 64"),
        (lambda: vit(depth=0), "vit: depth must be at least 1, got 0"),
    ],
)
def test_arguments_that_make_no_model_are_refused(build, message):
    with pytest.raises(RecipeError, match=message):
        build()
