"""Dropping experts that behave alike: planted groups, exact counts, the routers, and what is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tests.unit.llm import tiny
from torch import nn

import openwork as ow
from openwork.errors import DivergedError, MissingStatistic, RecipeError, StructureError
from openwork.llm.experts import (
    behaviour_distance,
    clusters_of,
    coactivation,
    drop_experts,
    find_experts,
    keep_experts,
    representative,
)
from openwork.methods import wanda

LAYERS = ["model.layers.0.mlp", "model.layers.1.mlp"]


def planted(noise=1e-3):
    """Four experts in two groups of two, per layer: copies of weights, router rows with a little noise."""
    model = tiny.build("mixtral")
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for m in find_experts(model).values():
            for p in m.weights.parameters():
                p[2], p[3] = p[0], p[1]
            rows = m.router.weight
            rows[2:] = rows[:2] + noise * torch.randn(rows[:2].shape, generator=rng)
    return model


def outputs(model, seed=1):
    with torch.no_grad():
        return model(tiny.ids(seed=seed)).logits


def test_planted_groups_are_found_and_the_count_is_exact():
    model = planted()
    found = drop_experts(model, 0.5)
    assert found.clusters == {n: [[0, 2], [1, 3]] for n in LAYERS}
    assert found.threshold < 0.01
    assert found.uniform
    assert found.experts_share == 0.5
    assert model.config.num_local_experts == 2
    assert model.num_experts == 2
    assert [m.count for m in find_experts(model).values()] == [2, 2]


def test_any_count_is_met_and_pairs_of_a_cluster_are_near():
    rng = torch.Generator().manual_seed(2)
    distances = {n: behaviour_distance(torch.randn(8, 5, generator=rng)) for n in "ab"}
    for remove in range(13):
        groups, threshold = clusters_of(distances, remove, {"a": 2, "b": 2})
        assert sum(8 - len(g) for g in groups.values()) == remove
        for n, some in groups.items():
            assert sorted(i for g in some for i in g) == list(range(8))
            inside = [float(distances[n][i, j]) for g in some for i in g for j in g if i < j]
            assert max(inside, default=0.0) <= threshold


def test_the_representative_is_the_nearest_to_the_mean():
    flat = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    members = [1, 3, 4, 5]
    mean = flat[members].mean(0)
    assert representative(flat, members) == min(members, key=lambda i: float((flat[i] - mean).norm()))


def test_nothing_removed_changes_nothing():
    model = planted()
    before = outputs(model)
    found = drop_experts(model, 0.1)  # less than one of eight
    assert found.share == 1.0
    assert torch.equal(outputs(model), before)


def test_the_router_keeps_the_rows_of_the_kept_experts():
    model, old = tiny.build("mixtral"), tiny.build("mixtral")
    found = drop_experts(model, 0.25, average_below=0)
    for name, m in find_experts(model).items():
        was = find_experts(old)[name]
        assert torch.equal(m.rows, was.rows[found.kept[name]])
        assert torch.equal(m.weights.down_proj, was.weights.down_proj[found.kept[name]])
    gone = [i for i in range(4) if i not in found.kept[LAYERS[0]]]
    with torch.no_grad():  # an expert that is never chosen may as well not be there
        for name, m in find_experts(old).items():
            lost = [i for i in range(4) if i not in found.kept[name]]
            m.router.register_forward_hook(lambda mod, a, out, lost=lost: banned(mod, a, lost))
    torch.testing.assert_close(outputs(model), outputs(old), rtol=1e-4, atol=1e-4)
    assert gone or found.kept[LAYERS[0]] == [0, 1, 2, 3]


def banned(router, args, lost):
    logits = nn.functional.linear(args[0].reshape(-1, router.hidden_dim), router.weight)
    logits[:, lost] = -1e9
    top, index = logits.softmax(-1).topk(router.top_k)
    return logits, top / top.sum(-1, keepdim=True), index


def test_few_clusters_are_averaged():
    model = planted(noise=0.0)
    was = copy.deepcopy(model)
    found = drop_experts(model, 0.5, average_below=2)
    assert found.averaged == LAYERS
    torch.testing.assert_close(outputs(model), outputs(drop(was)), rtol=1e-4, atol=1e-4)


def drop(model):
    assert drop_experts(model, 0.5, average_below=0).averaged == []
    return model


def test_coactivation_counts_tokens_in_one_pass():
    model, calls = tiny.build("mixtral"), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    counts = coactivation(model, [tiny.ids()])
    assert len(calls) == 1
    for c in counts.values():
        assert int(c.diagonal().sum()) == 2 * tiny.ids().numel()  # two experts a token
        off = c.clone().fill_diagonal_(0)
        assert torch.equal(off, off.T)
        assert int(off.sum()) == 2 * tiny.ids().numel()
    found = drop_experts(model, 0.25, counts=counts, router=0.0, together=1.0)
    pairs = {n: [g for g in some if len(g) == 2] for n, some in found.clusters.items()}
    best = {n: c.double().fill_diagonal_(-1) / float(c.double().fill_diagonal_(0).sum()) for n, c in counts.items()}
    top = max(float(b.max()) for b in best.values())
    assert any(float(best[n][g[0], g[1]]) == top for n, some in pairs.items() for g in some)


def test_then_unstructured_reaches_the_density_of_the_whole(tmp_path):
    model = tiny.build("mixtral")
    inside = [n for n, p in model.named_parameters() if ".layers." in n and p.ndim > 1 and "gate.weight" not in n]
    whole = sum(p.numel() for n, p in model.named_parameters())
    found = drop_experts(model, 0.25, even=True)
    left = sum(model.get_parameter(n).numel() for n in inside)
    rest = sum(p.numel() for p in model.parameters()) - left
    density = (0.6 * whole - rest) / left  # 40 % of all parameters gone, the embeddings dense
    result = ow.prune_blockwise(model, wanda(density, ow.Element()), tiny.ids(), batch=6)
    kept = sum(int((p != 0).sum()) for p in model.parameters())
    assert result.counts.kept + rest == pytest.approx(0.6 * whole, rel=1e-3)
    assert kept <= 0.601 * whole
    assert found.within(0.6) == pytest.approx(0.6 / found.share)
    model.save_pretrained(tmp_path / "small")
    again = tiny.load(tmp_path / "small")
    assert torch.equal(outputs(again), outputs(model))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: drop_experts(m, 1.0), RecipeError, r"remove must be a share in \[0, 1\), got 1.0"),
        (lambda m: drop_experts(m, 0.75), RecipeError, "experts cannot be removed: the mixtures can lose 4"),
        (lambda m: drop_experts(m, 0.25, together=1.0), RecipeError, "drop_experts: together= needs counts="),
        (lambda m: drop_experts(tiny.build("llama"), 0.5), StructureError, "no fused experts with a router beside"),
        (lambda m: behaviour_distance(torch.tensor([[1.0], [float("nan")]])), DivergedError, "a router row holds NaN"),
        (lambda m: behaviour_distance(torch.ones(2, 2), together=1.0), RecipeError, "needs the counts of coactivation"),
        (
            lambda m: keep_experts(find_experts(m)[LAYERS[0]], [1]),
            RecipeError,
            "must keep at least 2 different experts",
        ),
        (lambda m: drop_experts(m, 0.5).within(0.99), RecipeError, "experts alone left a share of"),
    ],
)
def test_refusals(call, error, message):
    model = tiny.build("mixtral")
    with pytest.raises(error, match=message):
        call(model)
    assert model.config.num_local_experts in (2, 4)


def test_a_router_that_tells_nothing():
    class Mute(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 3, bias=False)
            self.experts = nn.Module()
            self.experts.w = nn.Parameter(torch.ones(3, 4, 4))
            self.config = SimpleNamespace()

        def forward(self, x):
            return self.gate(x)

    with pytest.raises(MissingStatistic, match="its router does not return which experts it chose"):
        coactivation(nn.Sequential(Mute()), [torch.ones(2, 4)])
