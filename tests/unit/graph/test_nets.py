"""Every hand-made network: the right groups, full coverage, a small model that computes the same, and a reload."""

import time

import pytest
import torch
from tests.unit.graph.nets import NETS, build
from torch.nn import functional as F

import openwork as ow
from openwork.graph import Example
from openwork.methods import magnitude, random
from openwork.structure import Coupling

EVERY = ("channels", "heads", "hidden", "experts")


def outputs(net, args):
    with torch.no_grad():
        return list(torch.utils._pytree.tree_leaves(net(*args)))


@pytest.mark.parametrize("name", NETS)
def test_groups_are_the_expected_ones(name):
    net, args, sizes = build(name)
    start = time.process_time()
    graph = ow.build_graph(net, args)
    assert time.process_time() - start < 5
    assert sorted(g.n_units for g in graph.groups) == sorted(sizes)
    unknown = {"unknown operation": 1}.get(name, 0)
    assert len(graph.unknown) == unknown, graph.unknown


@pytest.mark.parametrize("name", NETS)
def test_every_entry_is_in_a_group_or_stays_for_a_reason(name):
    net, args, _ = build(name)
    graph = ow.build_graph(net, args)
    seen = {(n, d): torch.zeros(s, dtype=torch.long) for n, p in net.named_parameters() for d, s in enumerate(p.shape)}
    for group in graph.groups:
        for site in group.sites:
            if site.parameter:
                seen[site.tensor, site.dim] += (site.labels >= 0).long()
                assert site.labels.max() < group.n_units
    frozen = {}
    for row in graph.frozen:
        assert row.reason
        frozen[row.tensor, row.dim] = frozen.get((row.tensor, row.dim), 0) + row.entries
    for place, count in seen.items():
        covered = int((count > 0).sum())
        assert covered == len(count) or frozen[place] >= len(count) - covered, place


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETS)
def test_the_small_network_computes_the_same(name, seed):
    net, args, _ = build(name)
    dense = outputs(net, args)
    structure = Coupling(Example.of(args), EVERY)
    result = ow.prune(net, random(density=0.5, structure=structure), seed=seed)
    small = ow.compact(net, result, example=args)
    masked = outputs(net, args)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(masked, dense, strict=True))
    proof = ow.verify(small, net, args)
    assert proof.max_error <= 1e-5 * max(1.0, proof.largest)
    if not proof.over:
        for a, b in zip(outputs(small, args), masked, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    plan = small.openwork_compaction
    assert sum(p.numel() for p in small.parameters()) == plan["params"][1] < plan["params"][0]
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in net.named_parameters()]


@pytest.mark.parametrize("name", ["residual", "grouped", "LSTM", "grouped queries with rotary halves"])
def test_a_saved_network_comes_back(name, tmp_path):
    net, args, _ = build(name)
    result = ow.prune(net, magnitude(density=0.5, structure=Coupling(Example.of(args), EVERY)))
    small = ow.compact(net, result)
    ow.save(small, result, tmp_path / "small")
    again, found = ow.load(tmp_path / "small", model=build(name)[0])
    assert found.recipe == result.recipe
    for a, b in zip(outputs(again.eval(), args), outputs(small, args), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["residual", "squeeze", "gated linear"])
def test_gradients_are_slices_of_the_masked_ones(name):
    net, args, _ = build("depthwise and squeeze-excite" if name == "squeeze" else name)
    result = ow.prune(net, random(density=0.5, structure=ow.channels(example=args)))
    small = ow.compact(net, result)
    for model in (net, small):
        model(*args).square().sum().backward()
    masks = {n: result.masks[n] if n in result.masks else torch.ones_like(p).bool() for n, p in net.named_parameters()}
    for n, p in small.named_parameters():
        wide = dict(net.named_parameters())[n]
        kept = wide.grad[masks[n]].view(p.shape)
        torch.testing.assert_close(p.grad, kept, atol=1e-4, rtol=1e-4)


def test_compaction_of_everything_kept_changes_nothing():
    net, args, _ = build("residual")
    result = ow.prune(net, magnitude(density=1.0, structure=ow.channels(example=args)))
    small = ow.compact(net, result)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), net.state_dict().values(), strict=True))


def test_fewer_macs_take_less_time():
    torch.manual_seed(0)
    net = ow.build_model("resnet18", classes=10).eval()
    x = torch.randn(1, 3, 64, 64)
    result = ow.prune(net, magnitude(density=0.5, structure=ow.channels(example=x)))
    small = ow.compact(net, result)
    with torch.no_grad():
        pairs = []
        for _ in range(7):
            times = []
            for model in (net, small):
                start = time.process_time()
                model(x)
                times.append(time.process_time() - start)
            pairs.append(times[1] / times[0])
    assert sorted(pairs)[3] < 0.75
    assert F.mse_loss(small(x), net(x)) < 1e-8
