"""Inputs of weights, whoever multiplies with them: layers, functions, fused experts; against sums written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.errors import DataError, MissingStatistic, RecipeError
from openwork.methods import sparsegpt, wanda
from openwork.stats import InputGram, InputMoments, InputSquares
from openwork.structure import Element, partition

CPU = torch.device("cpu")


class Experts(nn.Module):
    """Four experts in two fused parameters ``(E, out, in)``; every token goes to one of the first three."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 5)), nn.Parameter(torch.randn(4, 5, 6))

    def forward(self, x):
        x = x.reshape(-1, 5)
        to, out = torch.arange(len(x)) % 3, torch.zeros_like(x)
        for e in range(4):
            mine = x[to == e]
            out[to == e] = F.linear(F.relu(F.linear(mine, self.up[e])), self.down[e])
        return out


class Attention(nn.Module):
    """Query and key meet one tensor, which is then overwritten in place; the value meets the new one."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 5, bias=False) for _ in range(3))
        self.functional = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        x = x.clone()
        q, k = self.q(x), self.k(x)
        x += q
        v = self.v(x)
        return F.linear(q + k + v, self.functional)


def context(model, data, include=()):
    parts, _ = partition(model, Element(), ow.Select(include=include))
    return Measuring(model, parts, Feed(data, CPU), None)


def batches():
    torch.manual_seed(1)
    return [torch.randn(2, 7, 5), torch.randn(3, 4, 5)]


def gram(*rows):
    return sum(r.reshape(-1, r.shape[-1]).T @ r.reshape(-1, r.shape[-1]) for r in rows).detach()


def test_experts_are_counted_one_by_one():
    model, data = Experts(), batches()
    grams = InputGram().measure(context(model, data))
    moments = InputMoments().measure(context(model, data))
    squares = InputSquares(None).measure(context(model, data))
    flat = [x.reshape(-1, 5) for x in data]
    for e in range(4):
        rows = torch.cat([x[torch.arange(len(x)) % 3 == e] for x in flat])
        hidden = F.relu(rows @ model.up[e].T).detach()
        for name, want in (("up", rows), ("down", hidden)):
            assert int(grams[name].tokens[e]) == len(rows) == int(moments[name].tokens[e])
            torch.testing.assert_close(grams[name].matrices[e], gram(want), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(moments[name].squares[e].float(), want.square().sum(0), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(squares[name][e, 0], want.square().sum(0), rtol=1e-5, atol=1e-5)
            if len(rows):
                torch.testing.assert_close(moments[name].mean[e].float(), want.mean(0), rtol=1e-4, atol=1e-5)
                variance = want.var(0, correction=0)
                torch.testing.assert_close(moments[name].variance[e].float(), variance, rtol=1e-3, atol=1e-5)
    assert grams["up"].tokens.tolist() == [9, 9, 8, 0]


@pytest.mark.parametrize("method", [wanda, sparsegpt])
def test_experts_without_tokens_are_pruned_by_magnitude_and_named(method):
    model = Experts()
    dense = model.up.detach().clone()
    result = ow.prune(model, method(0.4, Element(per="row")), data=batches())
    assert result.units["up"].view(-1, 5).sum(1).unique().tolist() == [2]
    unseen = result.masks["up"][3]
    if method is sparsegpt:
        assert result.log[0]["layers"]["up"]["by_magnitude"] == [3]
        assert torch.equal(unseen, dense[3].abs() >= dense[3].abs().topk(2, dim=1).values[:, -1:])
        assert torch.equal(model.up[3].detach(), dense[3] * unseen)


def test_equal_inputs_share_their_matrix_and_written_ones_do_not():
    model, data = Attention(), batches()
    found = InputGram(double=True).measure(context(model, data, ("q", "k", "v", "functional")))
    assert found["q.weight"].matrices is found["k.weight"].matrices
    assert found["q.weight"].matrices.dtype == torch.float64
    torch.testing.assert_close(found["q.weight"].matrices[0].float(), gram(*data), rtol=1e-4, atol=1e-4)
    later = [x + model.q(x) for x in data]
    torch.testing.assert_close(found["v.weight"].matrices[0].float(), gram(*later), rtol=1e-4, atol=1e-4)
    last = [model.q(x) + model.k(x) + model.v(y) for x, y in zip(data, later, strict=True)]
    torch.testing.assert_close(found["functional"].matrices[0].float(), gram(*last), rtol=1e-4, atol=1e-4)
    assert int(found["functional"].tokens) == 26


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)

    def forward(self, x):
        return self.a(self.a(x)) + self.b(x)


def test_a_weight_that_is_used_twice_counts_both_inputs():
    model, (x, _) = Twice(), batches()
    found = InputGram().measure(context(model, [x]))
    torch.testing.assert_close(found["a.weight"].matrices[0], gram(x, model.a(x)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["b.weight"].matrices[0], gram(x), rtol=1e-4, atol=1e-4)


class Turned(nn.Module):
    """Multiplies with a parameter the other way round than ``(out, in)``."""

    def __init__(self, how):
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.randn(5, 3)), how

    def forward(self, x):
        return x @ self.weight if self.how == "matmul" else torch.addmm(torch.zeros(3), x[0], self.weight)


@pytest.mark.parametrize("how", ["matmul", "addmm"])
def test_a_weight_that_is_read_the_wrong_way_is_refused(how):
    with pytest.raises(
        MissingStatistic, match="weight: the model multiplies 5 inputs with it, but it is read as matri"
    ):
        InputGram().measure(context(Turned(how), batches(), ("weight",)))


def test_the_whole_data_is_read_once_or_as_often_as_asked():
    data, model = batches(), Twice()
    ctx = context(model, data)
    once = InputGram().measure(ctx)["b.weight"].matrices
    assert torch.equal(once, InputGram().measure(ctx)["b.weight"].matrices)
    ctx.feed.next()
    assert torch.equal(once, InputGram().measure(ctx)["b.weight"].matrices)
    torch.testing.assert_close(InputGram(4).measure(context(model, data))["b.weight"].matrices, 2 * once)
    with pytest.raises(DataError, match="the data is empty"):
        InputGram().measure(context(model, []))
    with pytest.raises(RecipeError, match="InputMoments: batches must be at least 1, got 0"):
        InputMoments(0)
