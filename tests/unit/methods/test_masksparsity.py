"""masksparsity.md: the penalty alone, whole trainings bit for bit, the vote, what the rule refuses."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.now import Phase
from openwork.errors import DivergedError, RecipeError
from openwork.methods import masksparsity
from openwork.rules.scale_penalty import MaskedScalePenalty, group_vote
from openwork.rules.scales import MaskedScales, scales_of
from openwork.schedules import Announced
from openwork.structure import partition


class Net(nn.Module):
    """Two norms write to one stream; a norm of its own inside; a linear layer without a norm."""

    def __init__(self):
        super().__init__()
        self.a, self.n0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.n1 = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.c, self.n2 = nn.Conv2d(10, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x):
        y = F.relu(self.n0(self.a(x)))
        y = F.relu(y + self.n2(self.c(F.relu(self.n1(self.b(y))))))
        return self.head(F.relu(self.fc(y.mean((2, 3)))))


X = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(32) % 4


def net():
    torch.manual_seed(0)
    return Net()


def train(model, steps, run=None, before=None, lr=0.05):
    """Plain SGD with momentum on one batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    run = run(optimizer) if run else None
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        if before:
            before(step)
        optimizer.step()
    return run


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def recipe(density=0.5, steps=20, **options):
    return masksparsity(density, ow.channels(example=X[:2]), steps=steps, **options)


SCALES = ("n0.weight", "n1.weight", "n2.weight")


def test_slimming_is_the_penalty_on_every_scale_bit_for_bit():
    plain, model = net(), net()
    params = dict(plain.named_parameters())
    every = MaskedScalePenalty({n: torch.ones_like(params[n], dtype=torch.bool) for n in SCALES}, 0.01)
    train(plain, 9, before=lambda step: every.add_grad_(params) if step >= 4 else None)
    train(model, 9, run=lambda o: ow.attach(model, recipe(slim=0.2, choose=0.5, lam=0.01), o))
    assert equal(plain, model)


def test_an_empty_mask_is_plain_training_bit_for_bit():
    plain, model = net(), net()
    params = dict(model.named_parameters())
    none = MaskedScalePenalty({n: torch.zeros_like(params[n], dtype=torch.bool) for n in SCALES}, 0.5)
    train(plain, 6)
    train(model, 6, before=lambda step: none.add_grad_(params))
    assert equal(plain, model)
    unpunished = net()
    train(unpunished, 6, run=lambda o: ow.attach(unpunished, recipe(slim=0.0, choose=0.0, lam=0.0), o))
    torch.testing.assert_close(dict(unpunished.named_parameters()), dict(plain.named_parameters()), rtol=0, atol=0)


def test_only_chosen_scales_shrink_and_go():
    model = net()
    run = train(model, 40, run=lambda o: ow.attach(model, recipe(steps=40, slim=0.0, choose=0.0, lam=0.1), o))
    result = run.finish()
    told = result.log[-1]
    assert told["scale_removed"] < 0.2 < 0.8 < told["scale_kept"]
    assert result.log[0]["chosen_by_norm"] == ["fc.weight"]
    for name, units in result.units.items():
        assert int(units.sum()) == units.numel() // 2, name
    small = ow.compact(model.eval(), result)
    ow.verify(small, model, X)


def test_weights_return_to_what_they_were_before_slimming():
    model, seen = net(), {}
    options = dict(slim=0.25, choose=0.5, remove=0.75)
    run_of = lambda o: ow.attach(model, recipe(**options, lam=0.3), o)  # noqa: E731

    def before(step):
        if step in (5, 10):
            seen[step] = {n: p.detach().clone() for n, p in model.named_parameters()}

    run = train(model, 20, run=run_of, before=before)
    inside = set(run.finish().masks)
    assert all(torch.equal(seen[5][n], seen[10][n]) for n in inside)
    assert "n1.weight" in inside


def test_the_proximal_step_converges_and_the_subgradient_swings():
    """0.5 (gamma - a)^2 + lam |gamma| on the masked entries."""
    a, mask, lam, lr = torch.tensor([0.04, -0.5, 0.3, 0.02]), torch.tensor([True, True, False, True]), 0.1, 0.1

    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(4))

    want = torch.where(mask, a.sign() * (a.abs() - lam).clamp_min(0), a)
    ends = {}
    for kind in ("prox", "l1", "smooth_l1"):
        holder = Scales()
        penalty = MaskedScalePenalty({"g": mask}, lam, "l1" if kind == "prox" else kind)
        last = []
        for _ in range(600):
            holder.g.grad = holder.g.detach() - a
            if kind != "prox":
                penalty.add_grad_(dict(holder.named_parameters()), lr)
            with torch.no_grad():
                holder.g -= lr * holder.g.grad
            if kind == "prox":
                penalty.prox_(dict(holder.named_parameters()), lr)
            last.append(holder.g.detach().clone())
        ends[kind] = torch.stack(last[-20:])
    torch.testing.assert_close(ends["prox"][-1], want, rtol=0, atol=1e-5)
    swing = ends["l1"].amax(0) - ends["l1"].amin(0)
    assert 0.5 * lr * lam < float(swing[0]) < 3 * lr * lam
    assert float((ends["prox"].amax(0) - ends["prox"].amin(0)).max()) < 1e-6
    assert float((ends["l1"][-1] - want)[2].abs()) < 1e-5


def test_the_vote_is_the_brute_force_one():
    rng = torch.Generator().manual_seed(0)
    for _ in range(300):
        members, channels = (
            int(torch.randint(1, 5, (1,), generator=rng)),
            int(torch.randint(2, 12, (1,), generator=rng)),
        )
        removals = torch.rand(members, channels, generator=rng) < 0.4
        votes, least = removals.sum(0).tolist(), min(int(r.sum()) for r in removals)
        want = None
        for i in range(members, 0, -1):
            if sum(v >= i for v in votes) >= least:
                want = [v >= i for v in votes]
                break
        assert group_vote(removals).tolist() == want
        assert int(group_vote(removals).sum()) >= least


def test_a_stream_votes_and_the_count_is_exact():
    model = net()
    with torch.no_grad():
        model.n0.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 5, 6, 7, 8.0]))
        model.n2.weight.copy_(torch.tensor([9.0, 0.1, 0.2, 0.3, 0.4, 6, 7, 8]))
    gone = {}
    for scope in ("vote", "layer"):
        twin = copy.deepcopy(model)
        run = train(
            twin, 20, run=lambda o, t=twin, s=scope: ow.attach(t, recipe(slim=0, choose=0, scope=s), o), lr=1e-6
        )
        gone[scope] = (~run.finish().units["a.weight"]).nonzero().flatten().tolist()
    assert gone["layer"] == [1, 2, 3, 4]  # smallest sums 0.3, 0.5, 0.7, 5.4
    assert gone["vote"] == [0, 1, 2, 3] or gone["vote"] == [1, 2, 3, 4]
    removals = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0]]).bool()
    assert set(gone["vote"]) <= set(group_vote(removals).nonzero().flatten().tolist())


def test_scales_are_found_by_their_bias():
    class WithSlope(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.slope, self.head = (
                nn.Conv2d(1, 6, 3),
                nn.BatchNorm2d(6),
                nn.PReLU(6),
                nn.Linear(6, 2),
            )

        def forward(self, x):
            return self.head(self.slope(self.norm(self.a(x))).mean((2, 3)))

    parts, _ = partition(WithSlope(), ow.channels(example=X[:2]), ow.Select())
    assert [set(scales_of(p)) for p in parts.values()] == [{"norm.weight"}]


def test_what_cannot_be_done_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for made in (recipe(), masksparsity(0.5, ow.Row(), steps=20)):
        with pytest.raises(RecipeError, match=r"1.weight: no unit has a normalisation scale"):
            ow.attach(model, made, optimizer)
    with pytest.raises(RecipeError, match=r"masksparsity: needs 0 <= slim <= choose < remove <= 1, got 0.5, 0.4 and"):
        masksparsity(slim=0.5, choose=0.4)
    for kind, lam in itertools.product(("l1", "l0"), (0.1, -1.0)):
        if (kind, lam) != ("l1", 0.1):
            with pytest.raises(RecipeError, match=r"MaskedScales: kind must be one of l1, l2, smooth_l1 and lam not"):
                masksparsity(norm=kind, lam=lam)
    with pytest.raises(RecipeError, match=r"Announced: needs 0 <= slim <= choose < at, got 1, 2 and 2; train longer"):
        Announced(0.5, 1, 2, 2)
    penalty = MaskedScalePenalty({"g": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(RecipeError, match=r"g: prune_mask holds 3 channels, but there are 4 scales"):
        penalty.gradient("g", torch.ones(4))
    with pytest.raises(DivergedError, match=r"g: a scale is NaN; lower the learning rate"):
        penalty.gradient("g", torch.full((3,), float("nan")))
    with pytest.raises(RecipeError, match="MaskedScales removes what it chose before; use the schedule Announced"):
        MaskedScales().update(None, Phase(0.5, True), None)


@pytest.mark.parametrize(("unit", "share", "scope"), [("macs", 0.61, "layer"), ("params", 0.5, "vote")])
def test_a_budget_counts_the_channels_that_will_go(unit, share, scope):
    model, x = net(), X[:1]
    recipe = masksparsity(0.5, ow.channels(example=x), steps=20, lam=0.01, scope=scope)
    result = train(model, 20, lambda o: ow.attach(model, recipe, o, target={unit: share})).finish()
    assert result.manifest["budget"]["share"] == pytest.approx(share, rel=0.01)
    small = ow.compact(model, result, example=x)
    found = [(ow.graph.count_macs(m, x), sum(p.numel() for p in m.parameters())) for m in (small, net())]
    at = int(unit == "params")
    assert found[0][at] / found[1][at] == pytest.approx(share, rel=0.01)
    assert {"scale_kept", "scale_removed", "not_small"} <= set(result.log[-1])
