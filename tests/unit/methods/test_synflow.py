"""SynFlow: conservation laws, no data, and the last weights of a network."""

import pytest
import torch
from tests.unit.methods.scoring import plain_net, scores
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import RecipeError
from openwork.methods import synflow


def flow(model, *shape):
    """R: the sum of all outputs for an input of ones and absolute weights, by hand."""
    with torch.no_grad():
        kept = [p.clone() for p in model.parameters()]
        for p in model.parameters():
            p.abs_()
        total = float(model(torch.ones(1, *shape, dtype=torch.float64)).sum())
        for p, was in zip(model.parameters(), kept, strict=True):
            p.copy_(was)
    return total


def conv_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 5, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(5, 4, 2, bias=False), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(16, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    ).double()


@pytest.mark.parametrize(
    ("model", "shape"), [(plain_net(8, 12, 9, 4), (8,)), (conv_net(), (2, 8, 8))], ids=["mlp", "conv"]
)
def test_every_layer_carries_the_whole_flow(model, shape):
    total = flow(model, *shape)
    for score in scores(model, synflow(0.5, input_shape=shape)).values():
        assert float(score.sum()) == pytest.approx(total, rel=1e-12)


def test_biases_add_their_own_flow():
    """W_{l+1} total = W_l total + b_l total, and R = W_last + b_last."""
    model = plain_net(8, 12, 9, 4, bias=True)
    total = flow(model, 8)
    found = {n: float(s.sum()) for n, s in scores(model, synflow(0.5, input_shape=(8,))).items()}
    biases = {}
    for name in ("0", "2", "4"):
        twin = plain_net(8, 12, 9, 4, bias=True)
        with torch.no_grad():
            dict(twin.named_modules())[name].bias.mul_(2)  # R is linear in one bias, so doubling adds its share
        biases[name] = flow(twin, 8) - total
    assert found["2.weight"] == pytest.approx(found["0.weight"] + biases["0"], rel=1e-10)
    assert found["4.weight"] == pytest.approx(found["2.weight"] + biases["2"], rel=1e-10)
    assert total == pytest.approx(found["4.weight"] + biases["4"], rel=1e-10)


def test_what_flows_into_a_unit_flows_out_of_it():
    model = plain_net(8, 12, 9, 4)
    found = [
        s.view(m.weight.shape)
        for s, m in zip(scores(model, synflow(0.5, input_shape=(8,))).values(), model[::2], strict=True)
    ]
    for before, after in zip(found, found[1:], strict=False):
        torch.testing.assert_close(before.sum(1), after.sum(0), rtol=1e-10, atol=0)


def test_neither_data_nor_signs_matter():
    model = plain_net(8, 12, 9, 4)
    want = ow.prune(model, synflow(0.1, rounds=10, input_shape=(8,)), dry_run=True).masks
    again = ow.prune(model, synflow(0.1, rounds=10, input_shape=(8,)), dry_run=True).masks
    assert want.distance(again) == 0
    for seed in (1, 2):
        torch.manual_seed(seed)
        data = [(torch.randn(5, 8, dtype=torch.float64), torch.zeros(5))]
        found = ow.prune(model, synflow(0.1, rounds=10), data=data, loss=F.mse_loss, dry_run=True).masks
        assert want.distance(found) == 0
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(torch.randint(0, 2, p.shape) * 2 - 1)
    assert want.distance(ow.prune(model, synflow(0.1, rounds=10, input_shape=(8,)), dry_run=True).masks) == 0


@pytest.mark.parametrize("sizes", [(64, 100, 50, 80, 30, 10), (64, 20, 200, 20, 100, 10)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_last_five_weights_form_one_path(sizes, seed):
    total = sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
    model = plain_net(*sizes, seed=seed)
    result = ow.prune(model, synflow(5 / total, rounds=100, input_shape=(64,)))
    assert [t["kept"] for t in result.tensors] == [1, 1, 1, 1, 1]
    assert flow(model, 64) > 0
    once = ow.prune(plain_net(*sizes, seed=seed), synflow(20 / total, rounds=1, input_shape=(64,)))
    assert sum(t["kept"] > 0 for t in once.tensors) <= 2
    assert once.counts.kept == 20


def test_batch_norm_statistics_are_read_as_absolute_values_and_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    for _ in range(3):
        model(torch.randn(16, 6))
    before = {n: b.clone() for n, b in model.named_buffers()}
    result = ow.prune(model, synflow(0.2, rounds=20, input_shape=(6,)))
    assert result.counts.kept == 15
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())


@pytest.mark.parametrize("what", ["softmax", "attention"])
def test_networks_without_paths_are_refused(what):
    """A sum over paths ends at a softmax; attention holds one."""
    torch.manual_seed(0)
    if what == "softmax":
        model, shape = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(-1)), (8,)
    else:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model, shape = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3)), (4, 8)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(RecipeError, match=f"SynapticFlow: the network runs .*{what}.*, through which no flow is cons"):
        ow.prune(model, synflow(0.5, rounds=2, input_shape=shape))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (nn.LayerNorm(12), "layer_norm"),
        (nn.GroupNorm(3, 12), "group_norm"),
        (nn.RMSNorm(12), "rms_norm"),
        (nn.Sequential(nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3), nn.Flatten()), "instance_norm"),
        (nn.BatchNorm1d(12), None),
    ],
    ids=str,
)
def test_norms_by_the_values_themselves_are_refused(norm, name):
    """Under a batch norm, a fixed scale in eval mode, no weight lowers the output; under the others some do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), norm, nn.ReLU(), nn.Linear(12, 3))
    if name is None:
        assert ow.prune(model, synflow(0.5, rounds=2, input_shape=(8,))).density == 0.5
        return
    with pytest.raises(RecipeError, match=f"SynapticFlow: the network runs {name}, .* norms other than a batch norm"):
        ow.prune(model, synflow(0.5, rounds=2, input_shape=(8,)))


def test_a_vision_transformer_is_refused():
    model = ow.build_model("vit", (1, 8, 8), 10)
    with pytest.raises(RecipeError, match="SynapticFlow: the network runs .*, through which no flow is conserved"):
        ow.prune(model, synflow(0.5, rounds=2, input_shape=(1, 8, 8)))


def test_a_density_that_must_empty_a_layer_is_refused():
    model = plain_net(8, 12, 9, 4)  # 240 weights in three layers
    with pytest.raises(RecipeError, match=r"synflow: density 0.008 keeps 2 of 240 units in 3 tensors, so one would be"):
        ow.prune(model, synflow(0.008, input_shape=(8,)))
    assert ow.prune(model, synflow(3 / 240, input_shape=(8,))).density == 3 / 240
