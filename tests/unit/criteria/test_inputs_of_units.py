"""Criteria that weigh coupled units by what flows through them, against sums written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.core.now import Now
from openwork.criteria import BetaRank, GeometricMedian, NormScale, WeightTimesInput
from openwork.errors import DensityMissed, MissingStatistic, RecipeError
from openwork.graph.groups import Site
from openwork.methods import ecoflap, magnitude, obspa, wanda
from openwork.stats import InputSquares
from openwork.stats.deviations import DeviationRatios
from openwork.stats.inputs import weighing
from openwork.stats.zeroth import ZerothNorms
from openwork.structure import Coupled

CPU = torch.device("cpu")


class Reader(nn.Module):
    """Embeds, normalises, and reads a hidden layer in one of three ways; the head is the embedding."""

    def __init__(self, how="linear"):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.table, self.norm = how, nn.Embedding(11, 6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 8), nn.Parameter(torch.randn(6, 8) if how != "matmul" else torch.randn(8, 6))

    def hidden(self, ids):
        return F.relu(self.up(self.norm(self.table(ids))))

    def forward(self, ids):
        x, h = self.table(ids), self.hidden(ids)
        out = (
            F.linear(h, self.down) if self.how == "linear" else h @ (self.down.T if self.how == "turned" else self.down)
        )
        return F.linear(x + out, self.table.weight)


class Experts(nn.Module):
    """Two of four experts for every token, as grouped products or one expert after another."""

    def __init__(self, grouped):
        super().__init__()
        torch.manual_seed(0)
        self.grouped, self.router = grouped, nn.Linear(4, 4, bias=False)
        self.up, self.down = (
            nn.Parameter(torch.randn(4, 8, 4)),
            nn.Parameter(torch.randn(4, 8, 4)),
        )  # (out, in), (in, out)

    def forward(self, x):
        x = x.reshape(-1, 4)
        chosen = self.router(x).softmax(-1).topk(2).indices.flatten()
        order = torch.sort(chosen).indices
        rows = x[order // 2]
        counts = torch.histc(chosen.float(), bins=4, min=0, max=3)
        if self.grouped:
            ends = torch.cumsum(counts, 0, dtype=torch.int32)
            made = F.grouped_mm(F.relu(F.grouped_mm(rows, self.up.transpose(1, 2), offs=ends)), self.down, offs=ends)
        else:
            pieces = zip(rows.split(counts.int().tolist()), self.up, self.down, strict=True)
            made = torch.cat([F.relu(F.linear(r, up)) @ down for r, up, down in pieces])
        return made[torch.sort(order).indices].view(-1, 2, 4).sum(1)


def ids(rows=3):
    return torch.randint(0, 11, (rows, 5), generator=torch.Generator().manual_seed(1))


def units_of_experts(kind):
    """Whole experts, or the channels inside them: torch.export has no grouped product of float32 here."""
    at = {"experts": [("router.weight", 0), ("up", 0), ("down", 0)], "channels": [("up", 1), ("down", 1)]}[kind]
    n = 4 if kind == "experts" else 8
    sites = [Site(name, dim, torch.arange(n), kind == "channels" and name == "down", True) for name, dim in at]
    shapes = {"router.weight": (4, 4), "up": (4, 8, 4), "down": (4, 8, 4)}
    return {kind: Coupled(kind, n, tuple(sites), tuple((s.tensor, shapes[s.tensor]) for s in sites), kind)}


def situation(model, structure, stat, data):
    parts = structure if isinstance(structure, dict) else structure.fit_model(model, ow.Select())[0]
    value = stat.measure(Measuring(model, parts, Feed(data, CPU), lambda out, y: out.square().mean()))
    weights = {n: p.detach() for n, p in model.named_parameters()}
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    return parts, Now(parts, units, weights, {stat: value})


@pytest.mark.parametrize("how", ["linear", "turned", "matmul"])
def test_wanda_weighs_channels_where_they_are_read(how):
    model, stat = Reader(how).eval(), InputSquares(1)
    parts, now = situation(model, ow.channels(example=ids()), stat, [ids()])
    down = model.down.detach() if how != "matmul" else model.down.detach().T
    wanted = (down * model.hidden(ids()).detach().square().sum((0, 1)).sqrt()).norm(dim=0)
    assert set(now[stat]) == {"down"}  # the bias and the norm meet no input
    torch.testing.assert_close(WeightTimesInput(stat)(parts["up.weight"], now), wanted)


def test_a_tied_head_counts_its_inputs_and_not_the_ids():
    model, stat = Reader().eval(), InputSquares(1)
    parts, now = situation(model, ow.hidden(example=ids()), stat, [ids()])
    x = model.table(ids()).detach()
    last = x + F.linear(model.hidden(ids()), model.down).detach()
    reads = [(model.up.weight, model.norm(x).detach()), (model.table.weight, last)]
    wanted = sum((w.detach() * v.square().sum((0, 1)).sqrt()).square().sum(0) for w, v in reads).sqrt()
    (part,) = parts.values()
    torch.testing.assert_close(WeightTimesInput(stat)(part, now), wanted)
    with pytest.raises(
        MissingStatistic, match=r"Embedding: input norms are known .*, or take a method that asks for no"
    ):
        ow.prune(model, obspa(0.5, ow.hidden(example=ids())), [ids()])  # it would refit the embedding as well


@pytest.mark.parametrize("grouped", [True, False])
def test_wanda_weighs_stacked_experts_token_by_token(grouped):
    model, stat, x = Experts(grouped).eval(), InputSquares(1), torch.randn(9, 4)
    parts, now = situation(model, units_of_experts("experts"), stat, [x])
    chosen = model.router(x).topk(2).indices
    wanted = (model.router.weight.detach() * x.square().sum(0).sqrt()).square().sum(1)
    for e in range(4):
        rows = x[(chosen == e).any(1)]
        h = F.relu(rows @ model.up[e].T).detach()
        wanted[e] += (model.up[e].detach().square() * rows.square().sum(0)).sum()
        wanted[e] += (model.down[e].detach().square() * h.square().sum(0)[:, None]).sum()
    (part,) = parts.values()
    torch.testing.assert_close(WeightTimesInput(stat)(part, now), wanted.sqrt(), rtol=1e-4, atol=1e-5)


def test_beta_rank_takes_the_tokens_of_an_expert_for_its_batch():
    model, stat, x = Experts(True).eval(), DeviationRatios(), torch.randn(9, 4)
    with torch.no_grad():
        model.router.weight[3] = -model.router.weight[:3].sum(0) * 9  # few tokens like the last expert
    parts, now = situation(model, units_of_experts("channels"), stat, [x])
    chosen = model.router(x).topk(2).indices
    wanted = torch.zeros(8, dtype=torch.float64)
    for e in range(4):
        rows = x[(chosen == e).any(1)].double()
        if len(rows) > 1:
            ratio = (rows @ model.up[e].detach().double().T).std(0, correction=0) / rows.std(correction=0)
            wanted += model.up[e].detach().double().abs().sum(1) * ratio
    torch.testing.assert_close(BetaRank(stat)(parts["channels"], now), wanted)


def test_the_norm_of_a_group_moves_all_its_slices_at_once():
    model, stat = Reader().eval(), ZerothNorms(1, 1e-2)
    data = [(ids(), torch.zeros(1))]
    parts, now = situation(model, ow.channels(example=ids()), stat, data)
    rng = torch.Generator().manual_seed(0)
    noise = {n: torch.randn(dict(model.named_parameters())[n].shape, generator=rng) for n in parts["up.weight"].members}
    ends = []
    for sign in (1, -1):
        moved = {n: p + sign * 1e-2 * noise.get(n, 0) for n, p in model.named_parameters()}
        ends.append(float(torch.func.functional_call(model, moved, (ids(),)).square().mean().detach()))
    assert now[stat] == {"up.weight": pytest.approx(abs(ends[0] - ends[1]) / 2e-2, rel=1e-3)}
    result = ow.prune(model, ecoflap(0.5, ow.channels(example=ids())), data, lambda out, y: out.square().mean())
    assert int(result.units["up.weight"].sum()) == 4


class Block(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *(Block(nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(3)))


def test_blocks_are_scored_by_what_lies_inside_or_refused():
    model, x, stat = blocks().eval(), torch.randn(7, 6), InputSquares(1)
    with torch.no_grad():
        for i, block in enumerate(model[1:]):
            block[0].weight.fill_(i - 2.5)
    structure = ow.layers(example=x)
    parts, now = situation(model, structure, stat, [x])
    torch.testing.assert_close(NormScale()(parts["layers"], now), torch.tensor([2.5, 1.5, 0.5]))
    half, _ = ow.layers(example=x).fit_model(model, ow.Select())
    some = half["layers"].only([n for n in half["layers"].members if n != "2.0.weight"])
    with pytest.raises(
        ow.StructureError, match="1 of 3 units have no norm that scales them, so scales cannot rank the"
    ):
        NormScale()(some, now)
    with pytest.raises(ow.StructureError, match="that hold several units; this group has none. Take another criterion"):
        GeometricMedian()(parts["layers"], now)
    with pytest.raises(
        RecipeError, match="layers: no layer reads these units as its inputs, so GroupSurgeon has nothing"
    ):
        ow.prune(model, obspa(0.5, structure), [x])
    scores, here = WeightTimesInput(stat)(parts["layers"], now), model[0](x)
    for block, score in zip(model[1:], scores, strict=True):
        seen = block[0](here).detach()
        torch.testing.assert_close(score, (block[1].weight.detach() * seen.square().sum(0).sqrt()).norm())
        here = block(here)


def test_units_without_a_matrix_or_an_input_are_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 2)

        def forward(self, ids):
            return self.head(self.table(ids).mean(1))

    with pytest.raises(
        MissingStatistic, match=r"table.weight: its units are looked up in a table and nothing multiplies"
    ):
        ow.prune(Tokens(), wanda(0.5, ow.vocabulary(example=ids())), [ids()])
    parts, _ = ow.channels(example=ids()).fit_model(Reader(), ow.Select())
    with pytest.raises(
        MissingStatistic, match="a: no matrix reads or makes these units, so no inputs weigh them; leave"
    ):
        weighing({"a": parts["up.weight"].only(["up.bias"])})


def test_a_density_that_rounds_up_to_everything_is_no_result():
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)), torch.zeros(1, 3)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    with pytest.raises(
        DensityMissed, match=r"density 0.9 was asked, but counts round up in each of 2 groups .* all 4 units"
    ):
        ow.prune(model, magnitude(0.9, ow.channels(example=x)))
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
