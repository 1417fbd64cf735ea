"""ResNets and VGGs for photographs, and the network for click data: sizes, names, shapes, refusals."""

import pytest
import torch

from openwork.errors import RecipeError
from openwork.zoo import build_model, click_mlp, rebuild_model, resnet18, resnet50, vgg16_bn, vgg19_bn
from openwork.zoo.registry import table_options


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (resnet50, 25_557_032),
        (resnet18, 11_689_512),
        (lambda: resnet18((3, 32, 32), 10, stem="small"), 11_173_962),
        (lambda: resnet18(widths=[64, 128, 256, 512]), 11_689_512),
        (vgg16_bn, 14_728_266),
        (vgg19_bn, 20_040_522),
        (lambda: click_mlp(sizes=[100_000] * 26),
         26 * 100_000 * 10 + 273 * 400 + 400 + 2 * (400 * 400 + 400) + 400 * 2 + 2),
        (lambda: click_mlp((7,), hidden=()), 7 * 2 + 2),
    ],
)  # fmt: skip
def test_published_sizes(model, parameters):
    assert size(model()) == parameters


def test_resnet50_has_the_names_of_torchvision():
    shapes = {name: tuple(tensor.shape) for name, tensor in resnet50(classes=7).state_dict().items()}
    assert len(shapes) == 320
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer1.0.downsample.1.running_mean"] == (256,)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.2.bn3.num_batches_tracked"] == ()
    assert shapes["fc.weight"] == (7, 2048)
    assert "layer2.1.downsample.0.weight" not in shapes
    model = resnet50()
    assert model.get_submodule("layer2.0.conv1").stride == (1, 1)
    assert model.get_submodule("layer2.0.conv2").stride == (2, 2)


@pytest.mark.parametrize(("stem", "side"), [("photo", 16), ("small", 64)])
@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_the_stem_sets_the_resolution(make, stem, side):
    model = make((3, 64, 64), 5, width=8, stem=stem)
    seen = []
    for stage in ("layer1", "layer4"):
        model.get_submodule(stage).register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
    x = torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, 5)
    assert seen == [side, side // 8]


@pytest.mark.parametrize("make", [vgg16_bn, vgg19_bn])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 64), (1, 5, 9)])
def test_vgg_takes_every_shape(make, shape):
    model = make(shape, 7, widths=(4, 4, 8, 8, 8))
    out = model(torch.randn(2, *shape))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_vgg16_counts_its_layers():
    names = list(dict(vgg16_bn(widths=(2, 2, 2, 2, 2)).named_parameters()))
    assert "features.40.weight" in names  # the 13th convolution, as in torchvision
    assert len([n for n in names if n.startswith("features") and n.endswith("weight")]) == 2 * 13


def test_click_mlp_looks_categories_up_in_their_own_tables():
    model = click_mlp((4,), sizes=(3, 5), embedding=2, hidden=())
    with torch.no_grad():
        model.embedding.weight.copy_(torch.arange(16.0).view(8, 2))
    seen = []
    model.layers[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(torch.tensor([[0.5, -1.0, 2.0, 0.0], [0.25, 7.0, 0.0, 4.0]]))
    assert seen[0].tolist() == [[0.5, -1.0, 4.0, 5.0, 6.0, 7.0], [0.25, 7.0, 0.0, 1.0, 14.0, 15.0]]


def test_click_mlp_in_its_usual_forms():
    criteo = click_mlp((39,), sizes=[50] * 26)
    assert criteo.layers[0].weight.shape == (400, 13 + 26 * 10)
    movielens = click_mlp((24,), sizes=(943, 1682, 7, 2, 21, *[2] * 19))
    assert movielens.layers[0].weight.shape == (400, 240)
    assert [n for n, p in movielens.named_parameters() if p.dim() == 2] == [
        "embedding.weight", "layers.0.weight", "layers.2.weight", "layers.4.weight", "layers.6.weight",
    ]  # fmt: skip
    assert "offsets" not in movielens.state_dict()
    out = movielens(torch.zeros(3, 24))
    assert out.shape == (3, 2)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in movielens.parameters())


def test_a_table_tells_its_sizes_only_to_models_that_ask():
    assert table_options("click_mlp", (3, 5)) == {"sizes": [3, 5]}
    assert table_options("mlp", (3, 5)) == table_options("click_mlp", ()) == table_options("own:make", (3, 5)) == {}
    model = build_model("click_mlp", (4,), 2, **table_options("click_mlp", (3, 5)))
    again = rebuild_model(model.openwork_source)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet50(stem="large"), "resnet50: stem must be 'photo' or 'small', got 'large'"),
        (lambda: resnet18(width=0), "resnet18: width must be at least 1, got 0"),
        (lambda: resnet18(widths=[8, 16, 32]), "resnet18: widths must be 4 integers above 0 that do not fall, one for"),
        (lambda: resnet50(widths=[8, 16, 12, 32]), r"one for each stage, got \[8, 16, 12, 32\]; leave them out to"),
        (lambda: resnet18(widths=5), "widths must be 4 integers above 0 that do not fall, one for each stage, got 5"),
        (lambda: resnet18(widths=[0, 1, 2, 3]), "resnet18: widths must be 4 integers above 0"),
        (lambda: resnet18((224, 224)), r"resnet18: input_shape must be \(channels, height, width\)"),
        (lambda: vgg16_bn(widths=(64, 128)), r"vgg16_bn: widths must be five sizes above 0, got \(64, 128\)"),
        (lambda: vgg19_bn(widths=(1, 1, 1, 1, 0)), "vgg19_bn: widths must be five sizes above 0"),
        (lambda: click_mlp((2,), sizes=(3, 3, 3)), "click_mlp: sizes must name at most the 2 fields of a row, got 3"),
        (lambda: click_mlp(()), r"click_mlp: input_shape must have sizes above 0, got \(\)"),
        (lambda: click_mlp(sizes=(0,)), "click_mlp: width must be at least 1, got 0"),
    ],
)
def test_refused_arguments(build, message):
    with pytest.raises(RecipeError, match=message):
        build()
