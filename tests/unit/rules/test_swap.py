"""DSnoT's swaps: counts, tracked errors, orderings measured on random layers, and the guards."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.criteria import Magnitude
from openwork.errors import RecipeError
from openwork.methods import dsnot
from openwork.rules.swap import MeanSwap
from openwork.rules.topk import TopK

F64 = torch.float64


def problem(seed, rows=32, cols=128, tokens=256, flat=False):
    rng = torch.Generator().manual_seed(seed)
    mean = torch.randn(cols, generator=rng, dtype=F64)
    noise = 0 if flat else torch.randn(tokens, cols, generator=rng, dtype=F64) * (0.2 + torch.rand(cols, generator=rng))
    x = mean + noise if not flat else mean.expand(tokens, cols)
    return torch.randn(rows, cols, generator=rng, dtype=F64), x


def pruned(w, x, **options):
    model = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=F64))
    model[0].weight.data.copy_(w)
    structure = options.pop("structure", ow.Element(per="row"))
    density = structure.density or 0.4
    result = ow.prune(model, dsnot(density, structure, unit="token", **options), data=[x])
    return result.masks["0.weight"], model[0].weight.detach(), result.log[0]


def row_error(w, mask, x):
    return ((w * ~mask) * x.mean(0)).sum(1)


def output(w, mask, x):
    return float(((w * ~mask) @ x.T).square().mean())


@pytest.mark.parametrize("start", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("structure", [ow.Element(per="row"), ow.NM(2, 4), ow.Element()], ids=repr)
def test_counts_stay_and_kept_values_are_the_dense_ones(start, structure):
    w, x = problem(0)
    mask, new, _ = pruned(w, x, start=start, structure=structure, threshold=0.001)
    first = pruned(w, x, start=start, structure=structure, cycles=0)[0]
    runs = 4 if isinstance(structure, ow.NM) else 128
    assert torch.equal(mask.view(-1, runs).sum(1), first.view(-1, runs).sum(1))
    assert torch.equal(new, w * mask)
    assert not torch.equal(mask, first)


@pytest.mark.parametrize(("same_sign", "factor"), [(False, 10), (True, 3)])
def test_row_errors_fall(same_sign, factor):
    for seed in range(3):
        w, x = problem(seed)
        first = pruned(w, x, cycles=0)[0]
        # without the sign rule swaps overshoot: a row is finished only where it happens to come close
        mask, _, log = pruned(w, x, same_sign=same_sign, threshold=0.001 if same_sign else 0.1)
        before, after = row_error(w, first, x).abs().mean(), row_error(w, mask, x).abs().mean()
        assert float(before) > factor * float(after)
        assert log["row_error"] == pytest.approx([float(before), float(after)], rel=1e-3, abs=1e-3)


def test_outputs_improve_with_the_sign_rule():
    for start in ("magnitude", "wanda"):
        for seed in range(3):
            w, x = problem(seed)
            first = output(w, pruned(w, x, start=start, cycles=0)[0], x)
            assert output(w, pruned(w, x, start=start, threshold=0.001)[0], x) < first


def test_equal_tokens_make_every_swap_an_improvement():
    w, x = problem(4, flat=True)
    rows = [row_error(w, pruned(w, x, cycles=c, threshold=0.0)[0], x).abs() for c in range(6)]
    for before, after in zip(rows, rows[1:], strict=False):
        assert (after <= before + 1e-9).all()
    assert float(rows[-1].mean()) < float(rows[0].mean())


def test_inputs_without_a_mean_are_left_alone():
    w, x = problem(5)
    mask, _, log = pruned(w, x - x.mean(0))
    assert log["swaps"] == 0
    assert torch.equal(mask, pruned(w, x - x.mean(0), cycles=0)[0])


def test_refused():
    host = TopK(Magnitude())
    with pytest.raises(RecipeError, match="MeanSwap: cycles and threshold must not be negative, got -1 and 0.1"):
        MeanSwap(host, cycles=-1)
    with pytest.raises(RecipeError, match="MeanSwap: unit must be 'sequence' or 'token', got 'batch'"):
        MeanSwap(host, unit="batch")
    with pytest.raises(RecipeError, match="dsnot: start must be one of wanda, magnitude, sparsegpt, got 'snip'"):
        dsnot(0.5, start="snip")
    with pytest.raises(RecipeError, match="w: MeanSwap exchanges single weights; use Element or N:M along the inputs"):
        MeanSwap(host).init(SimpleNamespace(parts={"w": SimpleNamespace()}))
