"""Units by layer-wise second order: against least squares, brute force, and updates one group at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.now import Now, Phase
from openwork.errors import DivergedError, RecipeError
from openwork.methods import obspa
from openwork.rules.group_surgeon import GroupSurgeon, readers_of
from openwork.rules.refit import damped, refit, removal_costs
from openwork.stats import NoiseGram, ReaderGram
from openwork.structure import InputChannel, partition

F64 = torch.float64


class Residual(nn.Module):
    """Two producers on one stream, read by a strided convolution, a grouped one and the head."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 1)
        self.c = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.d = nn.Conv2d(8, 8, 3, groups=2)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x):
        a = F.relu(self.a(x))
        a = a + torch.tanh(self.b(a))
        y = F.relu(self.d(F.relu(self.norm(self.c(a)))))
        return self.head(y.flatten(1))


def made(seed=0):
    torch.manual_seed(seed)
    return Residual().double().eval(), torch.randn(60, 2, 8, 8, dtype=F64)


def inputs_of(model, name, x):
    """The unfolded inputs of one layer, ``[groups, tokens, positions x in]``, positions first, by a hook."""
    kept = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda m, i: kept.append(i[0].detach()))
    model(x)
    hook.remove()
    seen = kept[0]
    if isinstance(layer, nn.Linear):
        return seen[None]
    g, k = layer.groups, layer.kernel_size[0] * layer.kernel_size[1]
    columns = F.unfold(seen, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = columns.view(len(seen), g, seen.shape[1] // g, k, -1).permute(1, 0, 4, 3, 2)
    return columns.reshape(g, -1, k * (seen.shape[1] // g))


def matrix_of(weight, groups):
    """``[groups, rows, positions x in]``."""
    if weight.ndim == 2:
        return weight[None]
    return weight.permute(0, 2, 3, 1).reshape(groups, len(weight) // groups, -1)


def least_squares(x, old, keep):
    """``argmin |X_K W^T - X W_old^T|`` per group by a QR solver of torch; zero columns elsewhere."""
    new = torch.zeros_like(old)
    for g in range(len(x)):
        new[g][:, keep] = torch.linalg.lstsq(x[g][:, keep], x[g] @ old[g].T, driver="gelsd").solution.T
    return new


def test_readers_are_refitted_by_least_squares():
    model, x = made()
    dense = copy.deepcopy(model)
    result = ow.prune(model, obspa(0.5, ow.channels(example=x[:2]), damp=0.0), data=[x[:25], x[25:]])
    stream = result.units["a.weight"]
    assert not bool(stream.all())
    for name, layer in (("b", dense.b), ("c", dense.c)):
        old = matrix_of(layer.weight, layer.groups)
        keep = stream.repeat(old.shape[-1] // len(stream))
        want = least_squares(inputs_of(dense, name, x), old, keep)
        rows = result.masks[f"{name}.weight"].flatten(1).any(1)  # rows that make removed units are zero
        got = matrix_of(model.get_parameter(f"{name}.weight"), layer.groups)
        torch.testing.assert_close(got[:, rows].detach(), want[:, rows].detach(), rtol=1e-8, atol=1e-10)
    keep = result.masks["head.weight"][0]
    want = least_squares(inputs_of(dense, "head", x), dense.head.weight.detach()[None], keep)[0]
    torch.testing.assert_close(model.head.weight.detach(), want, rtol=1e-8, atol=1e-10)
    ow.verify(ow.compact(model, result), model, x)


def test_grouped_convolutions_are_refitted_group_by_group():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(8, 6, 3, groups=2, padding=1), nn.Flatten(), nn.Linear(6 * 25, 3)).double()
    x = torch.randn(40, 8, 5, 5, dtype=F64)
    dense = copy.deepcopy(model)
    result = ow.prune(model, obspa(0.5, where=ow.Select(include=("0.weight",)), damp=0.0), data=[x])
    keep = result.units["0.weight"].repeat(9)
    want = least_squares(inputs_of(dense, "0", x), matrix_of(dense[0].weight, 2), keep)
    torch.testing.assert_close(matrix_of(model[0].weight, 2), want, rtol=1e-8, atol=1e-10)


def situation(model, x, structure, **options):
    rule = GroupSurgeon(ReaderGram(), damp=0.0, scale="none", **options)
    parts, _ = partition(model, structure, ow.Select())
    from openwork.core.batches import Feed
    from openwork.core.measured import measure
    from openwork.core.measuring import Measuring

    stats = measure(rule, Measuring(model, parts, Feed([x], torch.device("cpu")), None))
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    return rule, Now(parts, units, {n: p.detach() for n, p in model.named_parameters()}, stats)


def test_a_unit_costs_what_its_best_removal_changes_summed_over_its_readers():
    model, x = made()
    rule, now = situation(model, x, ow.channels(example=x[:2]))
    hessians = {n: damped(now[rule.gram][n].matrices, 0.0, n) for n in readers_of(now, {})}
    scores = rule._scores(now, readers_of(now, {}), hessians)
    for group, readers in (("a.weight", ("b", "c")), ("c.weight", ("d",))):
        for unit in range(3):
            want = 0.0
            for name in readers:
                layer = model.get_submodule(name)
                old, seen = matrix_of(layer.weight.detach(), layer.groups), inputs_of(model, name, x)
                width = old.shape[-1] // (layer.kernel_size[0] * layer.kernel_size[1])
                keep = (torch.arange(old.shape[-1]) % width) != unit % width
                new = least_squares(seen, old, keep)
                want += float(((new - old) @ seen.transpose(1, 2)).square().sum())
            if group == "a.weight":
                torch.testing.assert_close(float(scores[group][unit]), want, rtol=1e-8, atol=0)


def test_one_group_at_a_time_is_all_at_once():
    """The updates of the paper, W and H^-1 after every group, in two orders."""
    torch.manual_seed(2)
    x, w = torch.randn(100, 12, dtype=F64), torch.randn(1, 5, 12, dtype=F64)
    hessian = (x.T @ x)[None]
    groups = [[0, 7], [3, 4, 9], [11]]
    every = torch.ones(12, dtype=torch.bool)
    keep = every.clone()
    keep[[column for group in groups for column in group]] = False
    joint = refit(w, hessian, every, keep)
    for order in (groups, groups[::-1]):
        step, inverse, paid = w[0].clone(), torch.linalg.inv(hessian[0]), 0.0
        for p in order:
            block = torch.linalg.inv(inverse[p][:, p])
            paid += float(((step[:, p] @ block) * step[:, p]).sum())
            step = step - step[:, p] @ block @ inverse[p]
            inverse = inverse - inverse[:, p] @ block @ inverse[p]
        torch.testing.assert_close(joint[0], step * keep, rtol=1e-10, atol=1e-12)
        error = float(((joint[0] - w[0]) @ x.T).square().sum())
        assert error == pytest.approx(paid, rel=1e-10)
    twice = refit(refit(w, hessian, every, keep | (torch.arange(12) > 5)), hessian, keep | (torch.arange(12) > 5), keep)
    torch.testing.assert_close(twice, joint, rtol=1e-10, atol=1e-12)


def test_unequal_groups_and_columns_of_nobody():
    torch.manual_seed(3)
    x, w = torch.randn(50, 9, dtype=F64), torch.randn(1, 4, 9, dtype=F64)
    hessian = (x.T @ x)[None]
    units = torch.tensor([1, 0, -1, 1, 2, 0, 1, -1, 2])
    costs = removal_costs(w, torch.linalg.inv(hessian), units, 4)
    for unit in range(3):
        new = least_squares(x[None], w, units != unit)
        assert float(costs[unit]) == pytest.approx(float(((new - w) @ x.T).square().sum()), rel=1e-8)
    assert float(costs[3]) == 0.0


def test_rounds_choose_again_and_stay_least_squares():
    model, x = made()
    dense = copy.deepcopy(model)
    result = ow.prune(model, obspa(0.4, ow.channels(example=x[:2]), damp=0.0, rounds=3), data=[x])
    stream = result.units["a.weight"]
    want = least_squares(inputs_of(dense, "c", x), matrix_of(dense.c.weight, 1), stream.repeat(9))
    rows = result.masks["c.weight"].flatten(1).any(1)
    torch.testing.assert_close(matrix_of(model.c.weight, 1)[:, rows], want[:, rows], rtol=1e-7, atol=1e-9)


def test_no_correction_leaves_what_stays():
    model, x = made()
    dense = copy.deepcopy(model)
    result = ow.prune(model, obspa(0.5, ow.channels(example=x[:2]), correct=False), data=[x])
    for name, mask in result.masks.items():
        assert torch.equal(model.get_parameter(name), dense.get_parameter(name) * mask)


@pytest.mark.parametrize("scale", ["mean", "output", "none"])
def test_the_error_in_the_log_is_the_change_of_the_outputs(scale):
    model, x = made()
    dense = copy.deepcopy(model)
    structure = ow.channels(example=x[:2])
    result = ow.prune(model, obspa(0.5, structure, damp=0.0, scale=scale, scope="layer"), data=[x])
    seen = inputs_of(dense, "head", x)[0]
    change = seen @ (model.head.weight - dense.head.weight).detach().T
    want = float(change.square().sum() / (seen @ dense.head.weight.detach().T).square().sum())
    assert result.log[-1]["readers"]["head.weight"] == pytest.approx(want, rel=1e-8)


def test_inputs_that_never_fire_go_first_by_size():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias[:3] = -100.0
        model[2].weight[:, 1] = 1e-3
    for density, gone in ((7 / 8, {1}), (5 / 8, {0, 1, 2})):
        for damp in (0.0, 0.01):
            recipe = obspa(density, ow.channels(example=torch.zeros(2, 6)), damp=damp)
            result = ow.prune(copy.deepcopy(model), recipe, data=[torch.randn(64, 6)])
            assert set((~result.units["0.weight"]).nonzero().flatten().tolist()) == gone


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, 4, 6)), nn.Parameter(torch.randn(2, 6, 3))

    def forward(self, x):
        return torch.relu(x @ self.up) @ self.down


def test_stacked_experts_are_refitted_one_by_one():
    model, x = Experts().double(), torch.randn(2, 50, 4, dtype=F64)
    dense = copy.deepcopy(model)
    result = ow.prune(model, obspa(0.5, ow.channels(example=x), damp=0.0), data=[x])
    keep = result.units["up"]
    for e in range(2):
        seen, old = torch.relu(x[e] @ dense.up[e]).detach(), dense.down[e].T.detach()
        want = least_squares(seen[None], old[None], keep)[0].T
        torch.testing.assert_close(model.down[e].detach(), want, rtol=1e-8, atol=1e-10)


def test_other_weights_and_singular_inputs_are_refused():
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 2, 3)), torch.randn(2, 1, 8, 8)
    with pytest.raises(
        RecipeError, match=r"1.weight: GroupSurgeon knows the inputs of linear layers, convolutions and"
    ):
        ow.prune(model, obspa(0.5, ow.channels(example=x)), data=[x])
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    with pytest.raises(DivergedError, match=r"1.weight: the Gram matrix of its inputs cannot be inverted, even with"):
        ow.prune(model, obspa(0.5, ow.channels(example=x), damp=0.0), data=[x])
    with pytest.raises(RecipeError, match=r"0.weight: GroupSurgeon removes whole inputs of a layer"):
        ow.prune(model, obspa(0.5, ow.Row()), data=[x])


def test_options_are_checked():
    for options, message in (
        (dict(damp=-1.0), r"GroupSurgeon: damp must not be negative, got -1"),
        (dict(scale="max"), r"GroupSurgeon: scale must be 'mean', 'output' or 'none', got 'max'"),
        (dict(calibration="none"), r"obspa: calibration must be 'data' or 'noise', got 'none'"),
        (dict(calibration="noise", draws=0), r"NoiseGram: draws must be at least 1 and spectrum at least 0, got 0"),
        (dict(rounds=0), r"Repeat: rounds must be at least 1, got 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            obspa(0.5, InputChannel(), **options)


def test_an_empty_layer_is_all_zero():
    w, hessian = torch.ones(1, 2, 3, dtype=F64), torch.eye(3, dtype=F64)[None]
    every = torch.ones(3, dtype=torch.bool)
    assert not bool(refit(w, hessian, every, ~every).any())


def test_the_rule_answers_for_any_gram():
    """Noise in the place of data: the same algebra on other inputs."""
    model, x = made()
    recipe = obspa(0.5, ow.channels(example=x[:2]), calibration="noise", draws=16)
    assert recipe.rule.gram == NoiseGram(recipe.structure.example, 16)
    result = ow.prune(model, recipe)
    again = copy.deepcopy(made()[0])
    assert ow.prune(again, recipe).masks.distance(result.masks) == 0
    rule = replace(recipe.rule, correct=False)
    _, now = situation(model, x, ow.channels(example=x[:2]))
    assert rule.needs == {recipe.rule.gram}
    assert Phase(0.5, True).share == 0.5
    assert set(readers_of(now, {})) == {"b.weight", "c.weight", "d.weight", "head.weight"}
