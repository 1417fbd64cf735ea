"""Models that are no use as they are: wrapped, quantised, random, or that take another way for other inputs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.methods import magnitude, woodfisher

X = torch.randn(4, 8)


def net(middle=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, middle), nn.ReLU(), nn.Dropout(0.5), nn.Linear(middle, 4))


def halved(model, example=X, **bounds):
    return ow.prune(model, magnitude(density=0.5, structure=ow.channels(example=example, **bounds)))


def compiled(model):
    """What torch.compile makes, without the half minute that it takes to import."""
    wrapper = nn.Module()
    wrapper._orig_mod, wrapper.forward = model, model.forward
    return wrapper


@pytest.mark.parametrize(("wrap", "inside"), [(compiled, "torch.compile"), (nn.DataParallel, "DataParallel")])
def test_wrappers_are_taken_off_first(wrap, inside):
    model = net()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(ow.RecipeError, match=rf"the model is wrapped in {inside}, which renames its parameters; give"):
        halved(wrap(model))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_quantised_models():
    layer = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.linear"})
    model = net()
    model[3] = layer(16, 4)
    with pytest.raises(ow.StructureError, match=r"3 \(Linear\) is quantised, so its weights cannot be ranked or cut"):
        halved(model)
    with pytest.raises(ow.StructureError, match="prune the floating-point model and quantise the result"):
        ow.prune(model, magnitude(density=0.5))
    weight = type("Int8Params", (nn.Parameter,), {"__module__": "bitsandbytes.nn.modules"})
    model = net()
    model[0].weight = weight(model[0].weight.detach())
    with pytest.raises(ow.StructureError, match=r"0 \(Linear\) is quantised"):
        halved(model)


def test_dropout_in_training_mode_does_not_matter():
    model = net().train()
    small = ow.compact(model, halved(model))
    assert small.training
    assert model[2].training
    assert ow.verify(small, model, X).max_error < 1e-5


def test_a_forward_pass_that_is_always_random():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.b(F.dropout(self.a(x).relu(), 0.5))

    model = Noisy()
    result = halved(model)
    with pytest.raises(ow.VerificationFailed, match="two runs of the pruned model itself differ, so nothing can be"):
        ow.compact(model, result)


class BySize(nn.Module):
    """Long inputs take another layer."""

    def __init__(self):
        super().__init__()
        self.a, self.short, self.long, self.end = (nn.Linear(*s) for s in ((8, 16), (16, 16), (16, 16), (16, 4)))

    def forward(self, x):
        hidden = self.a(x).relu()
        return self.end((self.long if x.shape[0] > 8 else self.short)(hidden).relu())


def test_inputs_that_take_another_way():
    model = BySize()
    result = halved(model)
    assert "not used in the forward pass of the example: 2 tensors" in result.report()
    said = "long.weight, long.bias did not run on the example and keep their shapes"
    assert f"note: {said}" in ow.plan_compaction(model, result).explain()
    small = ow.compact(model, result)
    assert ow.verify(small, model, X).max_error < 1e-5
    with pytest.raises(ow.VerificationFailed, match=rf"does not run on this example, on which .* {said}"):
        ow.verify(small, model, torch.randn(16, 8))


@pytest.mark.parametrize("bounds", [{"multiple": 16}, {"at_least": 16}, {"multiple": 100}])
def test_bounds_that_keep_everything_are_no_result(bounds):
    model = net()
    with pytest.raises(
        ow.DensityMissed, match=r"density 0.5 was asked, but multiple= and at_least= of channels\(\) keep"
    ):
        halved(model, **bounds)
    assert not (model[0].weight == 0).any()


def test_single_weights_of_units_in_several_tensors():
    recipe = woodfisher(density=0.5, structure=ow.layers(example=X))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.b(self.a(x).relu())

    data = [(X, torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ow.RecipeError, match="layers: BrainSurgeon removes single weights"):
        ow.prune(nn.Sequential(Block(), Block()), recipe, data=data, loss=F.cross_entropy)
