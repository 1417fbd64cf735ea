"""Adapters merged under masks: zeros stay, kept weights get the product, losses are told."""

import importlib.util

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.errors import DivergedError, RecipeError
from openwork.methods import magnitude
from openwork.recovery import merge_low_rank, merge_peft


def pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    return model, ow.prune(model, magnitude(0.5)).masks


def factors(rank=2):
    rng = torch.Generator().manual_seed(1)
    return {"0.weight": (torch.randn(rank, 8, generator=rng), torch.randn(6, rank, generator=rng))}


def test_the_product_lands_on_kept_weights_only():
    model, masks = pruned()
    before, (down, up) = model[0].weight.detach().clone(), factors()["0.weight"]
    lost = merge_low_rank(model, masks, factors(), 0.5)
    mask, product = masks["0.weight"], 0.5 * up @ down
    assert bool((model[0].weight[~mask] == 0).all())
    torch.testing.assert_close(model[0].weight.detach()[mask], (before + product)[mask])
    assert lost["0.weight"] == pytest.approx(float((product * ~mask).square().sum() / product.square().sum()), rel=1e-5)
    other, _ = pruned()
    assert merge_low_rank(other, {}, factors())["0.weight"] == 0.0


class FakeLora(nn.Module):
    """The part of PEFT's LoRA layer that the merge uses."""

    def __init__(self, base, merged=False, dora=False):
        super().__init__()
        self.base_layer, self.merged, self.use_dora = base, merged, {"default": dora}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.active_adapters = ["default"]

    def get_delta_weight(self, adapter):
        return self.lora_B[adapter].weight @ self.lora_A[adapter].weight


class FakePeft(nn.Module):
    def __init__(self, model, **options):
        super().__init__()
        model[0] = FakeLora(model[0], **options)
        self.base_model = nn.Module()
        self.base_model.model = model

    def unload(self):
        model = self.base_model.model
        model[0] = model[0].base_layer
        return model


def test_the_interface_of_peft():
    model, masks = pruned()
    before = model[0].weight.detach().clone()
    wrapped = FakePeft(model)
    delta = wrapped.base_model.model[0].get_delta_weight("default").detach()
    base, lost = merge_peft(wrapped, masks)
    assert base is model
    assert list(lost) == ["0.weight"]
    torch.testing.assert_close(model[0].weight.detach(), before + delta * masks["0.weight"])


def test_peft_itself_keeps_the_sparsity_here_and_loses_it_alone():
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install 'openwork[peft]'")
    import peft

    for ours in (True, False):
        model, masks = pruned()
        config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        wrapped = peft.get_peft_model(model, config)
        merged = merge_peft(wrapped, masks)[0] if ours else wrapped.merge_and_unload()
        zeros = float((merged[0].weight == 0).double().mean())
        assert zeros == (0.5 if ours else 0.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, k: merge_low_rank(m, k, {"9.weight": factors()["0.weight"]}),
            RecipeError,
            "has no parameter 9.weight",
        ),
        (lambda m, k: merge_low_rank(m, k, {"2.weight": factors()["0.weight"]}), RecipeError, "but the factors are"),
        (lambda m, k: merge_low_rank(m, k, factors(), float("inf")), DivergedError, "NaN or infinite weights"),
        (lambda m, k: merge_peft(m, k), RecipeError, "needs a PeftModel with LoRA layers, got Sequential"),
        (lambda m, k: merge_peft(FakePeft(m, merged=True), k), RecipeError, "its adapter was merged already"),
        (lambda m, k: merge_peft(FakePeft(m, dora=True), k), RecipeError, "DoRA rescales whole rows"),
        (lambda m, k: merge_peft(FakePeft(m), {"7.weight": torch.ones(1).bool()}), RecipeError, "masks name 7.weight"),
    ],
)
def test_refusals(call, error, message):
    model, masks = pruned()
    with pytest.raises(error, match=message):
        call(model, masks)
