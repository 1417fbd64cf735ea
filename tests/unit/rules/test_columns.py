"""SparseGPT and Wanda against a plain re-implementation, closed forms, identities and known orderings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.unit.rules import plain_sparsegpt as plain
from torch import nn

import openwork as ow
from openwork.errors import DivergedError, MissingStatistic, RecipeError
from openwork.methods import magnitude, sparsegpt, wanda
from openwork.rules.columns import factorise, solve_columns
from openwork.rules.layer_surgeon import LayerSurgeon, _errors

F64 = torch.float64


def problem(rows=12, cols=32, tokens=64, seed=0, dead=()):
    """A layer and inputs that are correlated, of unequal size, and not centred."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=rng, dtype=F64) / cols**0.5
    x = torch.randn(tokens, cols, generator=rng, dtype=F64) @ mix * (0.2 + torch.rand(cols, generator=rng)) + 0.1
    x[:, list(dead)] = 0
    return torch.randn(rows, cols, generator=rng, dtype=F64), x


def layer(w):
    model = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype))
    model[0].weight.data.copy_(w)
    return model


def pruned(w, x, recipe):
    model = layer(w)
    result = ow.prune(model, recipe, data=[*x.split(16)])
    return result.masks["0.weight"], model[0].weight.detach(), result


CASES = {
    "elements": (dict(structure=ow.Element(), density=0.5), {}),
    "elements 0.3": (dict(structure=ow.Element(), density=0.3), {}),
    "rows": (dict(structure=ow.Element(per="row"), density=0.4), {"by_row": True}),
    "2:4": (dict(structure=ow.NM(2, 4), density=0.5), {"nm": (2, 4)}),
    "1:8": (dict(structure=ow.NM(1, 8), density=0.125), {"nm": (1, 8)}),
    "4x1": (dict(structure=ow.Block(4, 1), density=0.5), {"tile": (4, 1)}),
    "4x4": (dict(structure=ow.Block(4, 4), density=0.5), {"tile": (4, 4)}),
}


@pytest.mark.parametrize("block", [8, 16, 32, 128])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks_and_weights_are_those_of_the_plain_algorithm(case, block):
    options, theirs = CASES[case]
    for seed, dead in ((0, ()), (1, (3, 17))):
        w, x = problem(seed=seed, dead=dead)
        mask, new, result = pruned(w, x, sparsegpt(**options, block=block, double=True))
        want = plain.sparsegpt(w.numpy(), x.numpy(), options["density"], block, **theirs)
        assert np.array_equal(mask.numpy(), want[0])
        np.testing.assert_allclose(new.numpy(), want[1] * want[0], rtol=1e-8, atol=1e-10)
        assert result.density == want[0].mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models_are_solved_in_float32(dtype):
    w, x = problem(seed=3)
    mask, new, _ = pruned(w.to(dtype), x.to(dtype), sparsegpt(0.5))
    want = plain.sparsegpt(w.to(dtype).double().numpy(), x.to(dtype).double().numpy(), 0.5, 128)
    assert new.dtype == dtype
    assert (mask.numpy() == want[0]).mean() > 0.98
    np.testing.assert_allclose(new.double().numpy(), want[1], atol=0.05 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("nm", [None, (2, 4), (4, 8)])
def test_wanda_is_the_plain_algorithm(nm):
    w, x = problem(seed=4)
    recipe = wanda(0.4) if nm is None else wanda(structure=ow.NM(*nm))
    mask, new, _ = pruned(w, x, recipe)
    assert np.array_equal(mask.numpy(), plain.wanda(w.numpy(), x.numpy(), 0.4, nm))
    assert torch.equal(new, w * mask)


def test_the_squared_errors_add_up_to_the_change_of_the_output():
    w, x = problem(seed=5)
    factor = factorise(x.T @ x, 0.01)
    rng = torch.Generator().manual_seed(0)
    fixed = torch.rand(w.shape, generator=rng) < 0.5
    found = [solve_columns(w, factor, lambda a, b, part, d: fixed[:, a:b], width) for width in (1, 7, 32, 100)]
    h = torch.as_tensor(plain.hessian(x.numpy())[0])
    change = w - found[0].weight
    torch.testing.assert_close(((change @ h) * change).sum(1), found[0].loss, rtol=1e-8, atol=0)
    for other in found[1:]:  # a fixed mask: the width of the lazy updates does not matter
        torch.testing.assert_close(other.weight, found[0].weight, rtol=1e-9, atol=1e-10)
    u = factor.upper
    torch.testing.assert_close(u.T @ u, torch.linalg.inv(h), rtol=1e-8, atol=1e-10)
    for i in (0, 5, 31):
        assert float(u[i, i] ** 2) == pytest.approx(float(torch.linalg.inv(h[i:, i:])[0, 0]), rel=1e-9)


@pytest.mark.parametrize(("tokens", "damp"), [(2000, 0.01), (40, 0.01), (40, 1.0), (2000, 0.0)])
def test_the_reported_errors_are_those_of_the_outputs(tokens, damp):
    rng = torch.Generator().manual_seed(7)
    x, w = torch.randn(tokens, 1100, generator=rng), torch.randn(30, 1100, generator=rng)
    x[:, 5] = 0  # never fires, so its weights go without an error
    factor = factorise((x.T @ x), damp)
    solved = solve_columns(w, factor, lambda a, b, part, d: part.abs() > 0.5, 128)
    found, whole = _errors(w, solved, factor, x.T @ x)
    outputs = x.double() @ w.double().T
    change = outputs - x.double() @ solved.weight.double().T
    assert found == pytest.approx(float(change.square().sum()), rel=1e-5)
    assert whole == pytest.approx(float(outputs.square().sum()), rel=1e-5)


def test_one_removed_weight_matches_the_closed_form():
    w, x = problem(rows=1, cols=9, seed=6)
    keep = torch.ones(1, 9, dtype=torch.bool)
    keep[0, 0] = False
    found = solve_columns(w, factorise(x.T @ x, 0.01), lambda a, b, part, d: keep[:, a:b], 128)
    inverse = torch.linalg.inv(torch.as_tensor(plain.hessian(x.numpy())[0]))
    want = w[0] - w[0, 0] / inverse[0, 0] * inverse[:, 0]
    torch.testing.assert_close(found.weight[0, 1:], want[1:], rtol=1e-10, atol=1e-12)


def output_error(w, new, x):
    return float(((w - new) @ x.T).square().sum())


def test_orderings_over_twenty_problems():
    """Exact masked least squares <= SparseGPT with the same mask; SparseGPT < no update on the mean; < Wanda."""
    ours, plain_mask, theirs = [], [], []
    for seed in range(20):
        w, x = problem(seed=100 + seed)
        mask, new, _ = pruned(w, x, sparsegpt(0.5, double=True))
        best = torch.zeros_like(w)
        h = torch.as_tensor(plain.hessian(x.numpy())[0])
        for r in range(len(w)):
            s = mask[r]
            best[r, s] = torch.linalg.solve(h[s][:, s], h[s] @ w[r])
        exact = float((((w - best) @ h) * (w - best)).sum())
        assert exact <= float((((w - new) @ h) * (w - new)).sum()) * (1 + 1e-12)
        ours.append(output_error(w, new, x))
        plain_mask.append(output_error(w, w * mask, x))
        theirs.append(output_error(w, pruned(w, x, wanda(0.5))[1], x))
    assert np.mean(ours) < np.mean(plain_mask)
    assert np.mean(ours) < np.mean(theirs)


def test_with_a_diagonal_gram_matrix_it_is_wanda():
    w, _ = problem(seed=7)
    x = torch.diag(0.1 + torch.rand(32, dtype=F64))
    model_mask, new, _ = pruned(w, x, sparsegpt(0.5, ow.Element(per="row"), damp=0.0))
    wanda_mask, _, _ = pruned(w, x, wanda(0.5))
    assert torch.equal(model_mask, wanda_mask)
    torch.testing.assert_close(new, w * wanda_mask, rtol=1e-12, atol=0)


def test_an_outlier_input_is_seen_by_wanda_and_not_by_magnitude():
    ratios = []
    for seed in range(3):
        w, x = problem(seed=20 + seed)
        x[:, ::8] *= 20
        w[:, ::8] /= 5
        ratios.append(
            output_error(w, pruned(w, x, wanda(0.5))[1], x)
            / output_error(w, pruned(w, x, magnitude(0.5, ow.Element(per="row")))[1], x)
        )
    assert max(ratios) < 0.9


def test_runs_along_the_outputs():
    w, x = problem(seed=8)
    mask, new, _ = pruned(w, x, sparsegpt(structure=ow.NM(2, 4, dim=0), double=True))
    assert set(mask.T.reshape(-1, 4).sum(1).tolist()) == {2}
    assert output_error(w, new, x) < output_error(w, w * mask, x)


def test_convolutions_are_solved_on_their_unfolded_inputs():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2, bias=False).double()
    x, dense = torch.randn(8, 4, 9, 9, dtype=F64), conv.weight.detach().clone()
    model = nn.Sequential(conv)
    for structure in (ow.Element(), ow.Kernel(), ow.NM(1, 2)):
        conv.weight.data.copy_(dense)
        result = ow.prune(model, sparsegpt(0.5, structure, double=True), data=[x])
        mask = result.masks["0.weight"]
        masked = nn.functional.conv2d(x, dense * mask, None, 2, 1, 1, 2)
        whole = nn.functional.conv2d(x, dense, None, 2, 1, 1, 2)
        change = [float((out.detach() - whole).square().sum()) for out in (model(x), masked)]
        assert change[0] < change[1]
        energy = float(whole.square().sum())
        assert result.log[0]["layers"]["0.weight"]["error"] == pytest.approx(change[0] / energy, rel=1e-6)


def test_a_singular_gram_matrix_climbs_the_ladder_and_says_so():
    w, x = problem(seed=9, tokens=4)
    _, _, result = pruned(w.float(), x.float(), sparsegpt(0.5, damp=1e-9))
    assert result.log[0]["layers"]["0.weight"]["damp"] > 1e-9
    with pytest.raises(DivergedError, match=r"0.weight: the Gram matrix of its inputs is not positive definite, even"):
        pruned(w, x, sparsegpt(0.5, damp=0.0))


def test_bad_input_is_refused_and_changes_nothing():
    w, x = problem(seed=10)
    x[5, 3] = float("nan")
    model = layer(w)
    with pytest.raises(DivergedError, match=r"0.weight: its calibration inputs hold NaN or infinity"):
        ow.prune(model, sparsegpt(0.5), data=[x])
    assert torch.equal(model[0].weight, w)
    with pytest.raises(RecipeError, match="LayerSurgeon: block must be at least 1 column, got 0"):
        LayerSurgeon(block=0)
    with pytest.raises(RecipeError, match="LayerSurgeon: damp must not be negative, got -1"):
        LayerSurgeon(damp=-1)
    with pytest.raises(RecipeError, match="InputGram: batches must be at least 1, got 0"):
        sparsegpt(0.5, batches=0)
    with pytest.raises(RecipeError, match=r"w: LayerSurgeon works on tiles of one matrix, got SimpleNamespace"):
        LayerSurgeon().init(SimpleNamespace(parts={"w": SimpleNamespace()}))
    grouped = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2))
    with pytest.raises(RecipeError, match=r"0.weight: units of 2 rows cross the 2 groups of the convolution"):
        ow.prune(grouped, sparsegpt(0.5, ow.GroupOf(2, dim=0)), data=[torch.randn(2, 4, 3, 3)])
    with pytest.raises(MissingStatistic, match="the rows of a three-dimensional convolution are not known"):
        ow.prune(nn.Sequential(nn.Conv3d(1, 2, 2)), sparsegpt(0.5), data=[torch.randn(1, 1, 3, 3, 3)])
