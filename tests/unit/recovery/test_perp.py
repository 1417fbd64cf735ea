"""PERP: adapters start as nothing, merge without a change, keep zeros, and reach the masked least squares optimum."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import DivergedError, RecipeError
from openwork.methods import magnitude
from openwork.recovery import Perp
from openwork.recovery.perp import _Adapter


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))


def pruned(density=0.3):
    model = net()
    dense = copy.deepcopy(model)
    return model, dense, ow.prune(model, magnitude(density)).masks


class Block(nn.Module):
    """The shape of a block under ``prune_blockwise``: called on keyword arguments."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden)


def rooted(masks):
    return {f"inner.{n}": m for n, m in masks.items()}


@pytest.mark.parametrize("kind", ["mask_lora", "scale_lora", "lora_prune"])
def test_adapters_begin_as_nothing_and_merge_as_promised(kind):
    torch.manual_seed(0)
    mask = torch.rand(6, 5) < 0.5
    weight = torch.randn(6, 5) * mask
    adapter = _Adapter(weight, mask, Perp(adapter=kind, rank=3))
    torch.testing.assert_close(adapter.value(training=True), weight, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        adapter.up += torch.randn_like(adapter.up)
        adapter.down += torch.randn_like(adapter.down)
    merged, used = adapter.value(training=False), adapter.value(training=True)
    assert bool((merged[~mask] == 0).all())
    assert torch.equal(merged, used) == (kind != "lora_prune")


@pytest.mark.parametrize("kind", ["mask_lora", "scale_lora", "lora_prune", "none"])
def test_a_block_is_reconstructed_and_its_zeros_stay(kind):
    model, dense, masks = pruned()
    data = [{"hidden": torch.randn(32, 8)} for _ in range(4)]
    targets = [dense(b["hidden"]).detach() for b in data]

    def error():
        return float(sum(F.mse_loss(model(b["hidden"]).detach(), t) for b, t in zip(data, targets, strict=True)))

    before = error()
    weights = {n: p.clone() for n, p in model.named_parameters()}
    told = Perp(adapter=kind, epochs=10, lr=1e-2)(Block(model), rooted(masks), data, targets)
    assert error() < 0.8 * before
    assert told["recovery"]["loss"][1] < told["recovery"]["loss"][0]
    for name, p in model.named_parameters():
        if name in masks:
            assert bool((p[~masks[name]] == 0).all())
            assert torch.equal(p, weights[name]) == (kind == "none")
    assert [n for n, _ in model.named_parameters()] == list(weights)


def test_with_full_rank_it_reaches_the_masked_least_squares_optimum():
    torch.manual_seed(0)
    dense = nn.Linear(6, 4, bias=False)
    x, mask = torch.randn(64, 6), torch.rand(4, 6) < 0.5
    model = nn.Linear(6, 4, bias=False)
    model.weight.data = dense.weight.data * mask
    y = dense(x).detach()
    Perp(rank=6, alpha=6.0, epochs=1500, lr=3e-2)(Block(model), {"inner.weight": mask}, [{"hidden": x}], [y])
    best = 0.0
    for r in range(4):
        s = mask[r]
        best += float((x[:, s] @ torch.linalg.lstsq(x[:, s], y[:, r]).solution - y[:, r]).square().sum())
    assert float((model(x).detach() - y).square().sum()) == pytest.approx(best, rel=1e-3)


def test_a_kept_weight_that_is_zero_may_move():
    model, mask = nn.Linear(4, 4, bias=False), torch.ones(4, 4, dtype=torch.bool)
    model.weight.data.zero_()
    x = torch.randn(32, 4)
    Perp(epochs=20, lr=1e-2)(Block(model), {"inner.weight": mask}, [{"hidden": x}], [x])
    assert bool((model.weight != 0).all())


def test_retraining_on_the_task_lowers_its_loss_and_is_reproducible():
    x, found = torch.randn(64, 8), []
    y = (x[:, 0] > 0).long()
    for _ in range(2):
        model, _, masks = pruned()
        before = float(F.cross_entropy(model(x), y).detach())
        torch.manual_seed(len(found))
        Perp(rank=2, epochs=20, lr=1e-2).retrain(model, masks, [(x, y)], F.cross_entropy)
        assert float(F.cross_entropy(model(x), y).detach()) < 0.7 * before
        found.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


def test_refused():
    model, _, masks = pruned()
    before = copy.deepcopy(model.state_dict())
    plain = nn.Linear(4, 4, bias=False)
    with pytest.raises(RecipeError, match="Perp: nothing to train: no biases, no norms and no adapter"):
        Perp(adapter="none").retrain(plain, {}, [(torch.ones(1, 4), torch.ones(1, 4))], F.mse_loss)
    with pytest.raises(RecipeError, match="Perp: the data is empty, nothing can be learned"):
        Perp().retrain(model, masks, [], F.cross_entropy)
    with pytest.raises(DivergedError, match="Perp: the loss is nan at step 0; lower the rate"):
        Perp()(Block(model), rooted(masks), [{"hidden": torch.full((2, 8), float("nan"))}], [torch.zeros(2, 4)])
    with pytest.raises(
        RecipeError, match="Perp: adapter must be mask_lora, scale_lora, lora_prune or none, got 'lora'"
    ):
        Perp(adapter="lora")
    with pytest.raises(RecipeError, match="Perp: rank, epochs and lr must be positive, got 0, 3, 0.0005"):
        Perp(rank=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
