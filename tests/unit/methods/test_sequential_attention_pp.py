"""What is exact in SequentialAttention++: the start, phases, counts, scale invariance, and the paper's tables."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import openwork as ow
from openwork.core.select import count_kept
from openwork.core.views import conv_view, linear_view
from openwork.methods import sequential_attention_pp
from openwork.relax.attention import AttentionGate
from openwork.schedules import Stretch
from openwork.structure import Tiles


class Net(nn.Module):
    """A convolution with ragged blocks and two linear layers, the last with too few blocks."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)
        self.fc = nn.Linear(90, 20)
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        return self.head(torch.relu(self.fc(torch.relu(self.conv(x)).flatten(1))))


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net().to(dtype)


def begin(model, steps=60, density=0.3, min_blocks=10, lr=0.05, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    recipe = sequential_attention_pp(density, ow.Block(4, 4), steps=steps, min_blocks=min_blocks, **options)
    return optimizer, ow.attach(model, recipe, optimizer)


def step(model, optimizer, seed):
    rng = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    optimizer.zero_grad()
    x, y = torch.randn(8, 3, 5, 5, generator=rng).to(dtype), torch.randn(8, 3, generator=rng).to(dtype)
    (model(x) - y).square().mean().backward()
    optimizer.step()


def gates(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, AttentionGate)}


def test_the_start_is_the_dense_network():
    plain, model = net(), net()
    begin(model)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(model(x), plain(x))
    assert len(gates(model)) == 2
    for gate in gates(model).values():
        assert torch.equal(gate.attention(), torch.ones(gate.part.n_units))


def test_the_attention_has_mean_one_before_clipping():
    part = Tiles("w", linear_view((20, 30)), (4, 4))
    torch.manual_seed(0)
    for spread in (0.1, 3.0):
        gate = AttentionGate(part, "w", 0.25, clip=False)
        clipped = AttentionGate(part, "w", 0.25, clip=True)
        with torch.no_grad():
            gate.logits.normal_(0, spread)
            clipped.logits.copy_(gate.logits)
        a = gate.attention().detach()
        assert float(a.mean()) == pytest.approx(1, abs=40 * torch.finfo(torch.float32).eps)
        assert torch.equal(clipped.attention(), a.clamp(0.25, 4.0))


@pytest.mark.parametrize("shape", [(10, 3, 3, 3), (7, 5, 1, 2), (4, 4, 3)], ids=str)
def test_the_matrix_of_a_convolution_comes_back(shape):
    view = conv_view(shape)
    w = torch.arange(math.prod(shape)).view(shape)
    assert torch.equal(view.close(view.open(w)), w)
    # (positions, inputs) with the positions first, as in the paper's transposed layout
    assert torch.equal(view.open(w)[0].T, w.permute(*range(2, len(shape)), 1, 0).reshape(-1, shape[0]))


@pytest.mark.parametrize("every", [1, 3])
def test_phases_blocks_and_restarts(every):
    model = net()
    optimizer, run = begin(model, steps=90, density=0.3, every=every)
    schedule, blocks = run.recipe.schedule, {"conv.weight": 3 * 7, "fc.weight": 5 * 23}
    starts = [a for a, _ in schedule.bounds]
    at, alive = 0, None
    for i in range(90):
        step(model, optimizer, i)
        at = i + 1
        kept = {n: int(u.sum()) for n, u in run.state_dict()["units"].items()}
        if at in starts[1:]:
            assert not optimizer.state, f"the optimiser was not reset at {at}"
        elif at < 90:
            assert optimizer.state
        kind = schedule(at).name
        if kind == "dense":
            assert kept == blocks
        elif kind == "sparse":
            assert kept == {n: math.floor(0.3 * t + 1e-9) for n, t in blocks.items()}
        else:
            begin_, end = next((a, b) for a, b in schedule.bounds if a <= at < b)
            share = 1 - schedule.sparsity((at - begin_ - (at - begin_) % every) / (end - begin_))
            assert kept == {n: max(1, math.floor(share * t + 1e-9)) for n, t in blocks.items()}
        units = {n: u.clone() for n, u in run.state_dict()["units"].items()}
        if alive is not None and kind != "dense":
            assert all(bool((alive[n] | ~units[n]).all()) for n in units), "a dropped block came back"
        alive = None if kind == "dense" else units
    result = run.finish()
    assert {n: int(u.sum()) for n, u in result.units.items()} == {"conv.weight": 6, "fc.weight": 34}


def test_erk_shares_keep_the_total_and_never_bring_a_block_back():
    model = net()
    optimizer, run = begin(model, steps=90, density=0.3, scope="erk")
    alive = None
    for i in range(90):
        step(model, optimizer, i)
        kind, units = run.recipe.schedule(i + 1).name, {n: u.clone() for n, u in run.state_dict()["units"].items()}
        if kind == "sparse":
            assert sum(int(u.sum()) for u in units.values()) == math.floor(0.3 * (21 + 115))
        if alive is not None and kind != "dense":
            assert all(bool((alive[n] | ~units[n]).all()) for n in units), "a dropped block came back"
        alive = None if kind == "dense" else units
    kept = {n: int(u.sum()) for n, u in run.finish().units.items()}
    assert sum(kept.values()) == 40
    assert kept["conv.weight"] / 21 > 0.3 > kept["fc.weight"] / 115


def test_the_clip_follows_the_share_of_the_own_layer():
    """Attention equal on the survivors of a layer is 1 / its share; at the model's share it would be clipped away."""
    model = net()
    _, run = begin(model, density=0.3, scope="erk")
    kept = {"conv.weight": 7, "fc.weight": 33}
    for name, gate in zip(kept, gates(model).values(), strict=True):
        units, total = kept[name], gate.part.n_units
        assert gate.bounds == (units / total, total / units)
        alive = torch.arange(total) < units
        with torch.no_grad():
            gate.logits.copy_(torch.where(alive, 0.0, -6.0))
        a = gate.attention()
        a[alive].square().sum().backward()
        assert float(a.detach().max()) > 0.9 * total / units
        assert bool((gate.logits.grad[alive] > 0).all())
    run.detach()
    begin(model := net(), density=0.3)
    assert [g.bounds for g in gates(model).values()] == [(0.3, 1 / 0.3)] * 2


def test_a_scope_over_the_model_is_refused():
    with pytest.raises(ow.errors.RecipeError, match="scope must be 'layer' or 'erk', got 'global'"):
        sequential_attention_pp(0.1, scope="global")


def test_the_sparsity_curve():
    """s (1 - e^(-c u)) / (1 - e^(-c)) from 0 to s."""
    for c in (2.0, 4.0, 8.0):
        schedule = sequential_attention_pp(0.1, steps=300, exponent=c).schedule
        assert schedule.sparsity(0.0) == 0
        assert schedule.sparsity(1.0) == pytest.approx(0.9, abs=1e-15)
        for u in (0.1, 0.5, 0.9):
            assert schedule.sparsity(u) == pytest.approx(0.9 * (1 - math.exp(-c * u)) / (1 - math.exp(-c)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_folding_keeps_the_outputs_and_leaves_nothing(dtype):
    model = net(dtype)
    names = [n for n, _ in model.named_parameters()]
    optimizer, run = begin(model)
    for i in range(60):
        step(model, optimizer, i)
    assert max(float(g.logits.detach().abs().max()) for g in gates(model).values()) > 1e-3
    x = torch.randn(16, 3, 5, 5).to(dtype)
    before = model(x).detach()
    result = run.finish()
    after = model(x).detach()
    assert float((after - before).norm() / before.norm()) < 1e-6
    assert not gates(model)
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert [n for n, _ in model.named_parameters()] == names
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(names)]
    for n, mask in result.masks.items():
        assert bool((dict(model.named_parameters())[n][~mask] == 0).all())


def test_selection_follows_the_logits_and_not_the_weights():
    model = nn.Linear(40, 8, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    recipe = sequential_attention_pp(0.25, ow.Block(4, 4), steps=40, min_blocks=2, clip=False)
    run = ow.attach(model, recipe, optimizer)
    (gate,) = gates(model).values()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        gate.logits.copy_(order / 10.0)
    for _ in range(40):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert run.finish().units["weight"].nonzero().flatten().tolist() == sorted(
        (order >= 15).nonzero().flatten().tolist()
    )


def test_the_attention_does_not_see_the_scale_of_features():
    """Multiply a feature by c and divide its weights by c: the gradients of the logits do not change (item 3)."""
    torch.manual_seed(0)
    x, w, y = (
        torch.randn(16, 12, dtype=torch.float64),
        torch.randn(6, 12, dtype=torch.float64),
        torch.randn(16, 6, dtype=torch.float64),
    )
    scale = 2.0 ** torch.randint(-6, 7, (12,)).double()
    part = Tiles("weight", linear_view((6, 12)), (2, 1))
    slopes, norms = [], []
    for factor in (torch.ones(12, dtype=torch.float64), scale):
        gate = AttentionGate(part, "weight", 0.1, clip=False)
        loss = (x * factor @ gate(w / factor).T - y).square().mean()
        slopes.append(torch.autograd.grad(loss, gate.logits)[0])
        norms.append(part.pool({"weight": w / factor}, "norm"))
    assert torch.equal(slopes[0], slopes[1])  # powers of two: not a bit differs
    assert norms[0].argsort().tolist() != norms[1].argsort().tolist()


def test_the_learned_support_does_not_see_the_scale_of_features_but_magnitude_does():
    """The same over a whole first dense phase, where only the logits learn."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 12, dtype=torch.float64), torch.randn(32, 8, dtype=torch.float64)
    scale = 2.0 ** torch.randint(-6, 7, (12,)).double()
    learned, largest = [], []
    for factor in (torch.ones(12, dtype=torch.float64), scale):
        model = nn.Linear(12, 8, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 96).view(8, 12) / factor)
        largest.append(ow.prune(model, ow.methods.magnitude(0.5, ow.Block(4, 1)), dry_run=True).masks)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        recipe = sequential_attention_pp(0.5, ow.Block(4, 1), steps=40, min_blocks=2, clip=False)
        run = ow.attach(model, recipe, optimizer)
        weight = model.parametrizations.weight.original
        for _ in range(40):
            optimizer.zero_grad()
            (model(x * factor) - y).square().mean().backward()
            weight.grad = None
            optimizer.step()
        learned.append(run.finish().masks)
    assert learned[0].distance(learned[1]) == 0
    assert largest[0].distance(largest[1]) > 0


def test_weights_come_back_with_their_values():
    """Masked blocks are multiplied by zero and not zeroed, so a dense phase finds them as they were."""
    model = net()
    optimizer, run = begin(model, lr=1e-12)
    for i in range(20):
        step(model, optimizer, i)
        if run.phase == "sparse":
            break
    assert run.density < 1
    assert bool((model.conv.parametrizations.weight.original != 0).all())


def kinds(recipe):
    return [(s.phase, b - a) for (a, b), s in zip(recipe.schedule.bounds, recipe.schedule.stretches, strict=True)]


def test_the_tables_of_the_paper():
    imagenet = kinds(sequential_attention_pp(0.1, steps=300))
    assert imagenet == [("dense", 30)] + [(k, 10) for _ in range(6) for k in ("soften", "sparse", "dense")] + [
        ("soften", 45),
        ("sparse", 45),
    ]
    criteo = kinds(sequential_attention_pp(0.1, steps=500, schedule="criteo"))
    assert criteo == [("dense", 100)] + [(k, 10) for _ in range(10) for k in ("soften", "sparse", "dense")] + [
        ("sparse", 100)
    ]
    ablation = kinds(sequential_attention_pp(0.1, steps=600, sparsification=False))
    assert not [k for k, _ in ablation if k == "soften"]
    assert ablation[:5] == [("dense", 70), ("sparse", 30), ("dense", 30), ("sparse", 30), ("dense", 30)]
    assert ablation[-2:] == [("dense", 65), ("sparse", 135)]
    assert len(ablation) == 14
    assert all(a != b for (a, _), (b, _) in pairwise(ablation))
    own = (Stretch("soften", 0.5), Stretch("sparse", 0.5))
    assert sequential_attention_pp(0.1, schedule=own).schedule.stretches == own


def test_every_phase_change_restarts_the_optimiser():
    schedule = sequential_attention_pp(0.1, steps=300).schedule
    assert [t for t in range(300) if schedule(t).restart] == [a for a, _ in schedule.bounds[1:]]


def test_layers_with_few_blocks_stay_dense_and_say_so():
    model = net()
    optimizer, run = begin(model, min_blocks=100)
    for i in range(60):
        step(model, optimizer, i)
    rows = {t["name"]: t for t in run.finish().tensors}
    assert rows["conv.weight"]["skipped"] == "21 units, fewer than min_units=100"
    assert rows["head.weight"]["density"] == 1.0
    assert rows["fc.weight"]["units_kept"] == 34
    kept = sequential_attention_pp(0.1, where=ow.Select(min_units=7)).where.min_units
    assert kept == 7


def test_the_two_changed_lines_of_the_readme_work():
    model = ow.build_model("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run = ow.attach(model, sequential_attention_pp(density=0.1, structure=ow.Block(8, 8), steps=60), optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        (model(torch.ones(4, 1, 8, 8)).square().sum() + run.penalty()).backward()
        optimizer.step()
    assert {n: int(u.sum()) for n, u in run.finish().units.items()} == {"1.weight": 12, "3.weight": 25}


def resnet50():
    """(shape, matrix view) of every convolution and the classifier."""
    shapes, width = [(64, 3, 7, 7)], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            shapes += [(inner, width, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            shapes += [(4 * inner, width, 1, 1)] if block == 0 else []
            width = 4 * inner
    return [(s, conv_view(s)) for s in shapes] + [((1000, 2048), linear_view((1000, 2048)))]


@pytest.mark.parametrize(
    ("size", "pruned", "realised"),
    [(8, 53, None), (16, 46, None), (32, 35, (68.12, 77.83, 87.56, 92.42)), (64, 18, (57.94, 66.18, 74.45, 78.58))],
)
def test_resnet50_realises_the_sparsities_of_the_paper(size, pruned, realised):
    """Layers with fewer than 100 blocks stay dense; all weights in the denominator."""
    tiles = [Tiles("w", view, (size, size)) for _, view in resnet50()]
    used = [t for t in tiles if t.n_units >= 100]
    assert len(tiles) == 54
    assert len(used) == pruned
    total = sum(int(t.cost.sum()) for t in tiles)
    if realised:
        for sparsity, want in zip((0.7, 0.8, 0.9, 0.95), realised, strict=True):
            # on average over which blocks go, each takes its layer's mean size
            gone = sum(int(t.cost.sum()) * (1 - count_kept(1 - sparsity, t.n_units, "floor") / t.n_units) for t in used)
            assert round(100 * gone / total, 2) == pytest.approx(want, abs=0.011)


def test_a_choice_among_equal_logits_is_warned_of_and_takes_the_largest_weights():
    """No step has moved the logits: their learning rate is nought."""
    model = net()
    optimizer, run = begin(model, lr=0.0)

    def train():
        for seed in range(60):
            step(model, optimizer, seed)

    with pytest.warns(
        UserWarning, match=r"learned scores are equal, so the largest weights stay; train the gates before"
    ):
        train()
    for name, stays in run.finish().units.items():
        weight = model.get_parameter(name).detach()
        view = (linear_view if weight.dim() == 2 else conv_view)(tuple(weight.shape))
        norms = Tiles(name, view, (4, 4)).pool({name: weight}, "norm")
        assert norms[stays].min() >= norms[~stays].max()
