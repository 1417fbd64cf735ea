"""beta-rank.md: closed forms for white noise, explicit patches, scale laws, dead filters, refusals."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.core.now import Now
from openwork.criteria import BetaRank
from openwork.errors import DataError, MissingStatistic, RecipeError
from openwork.methods import beta_rank
from openwork.stats.deviations import DeviationRatios, making
from openwork.structure import Filter, partition

RATIOS = ("out_over_in", "in_over_out")


def scores(model, x, ratio, structure=None, batches=1, data=None):
    """Partition name -> Beta-Rank's score of every unit."""
    parts, _ = partition(model, structure or Filter(), ow.Select())
    criterion = BetaRank(DeviationRatios(batches, ratio))
    ctx = Measuring(model, parts, Feed(data or [x], torch.device("cpu")), None)
    stats = {s: s.measure(ctx) for s in criterion.needs}
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    now = Now(parts, units, {n: p.detach() for n, p in model.named_parameters()}, stats)
    return {n: criterion(p, now) for n, p in parts.items()}


def by_hand(layer, x, ratio):
    """Loops over positions with explicit patches, population deviations."""
    (stride, _), (pad, _), (k, _) = layer.stride, layer.padding, layer.kernel_size
    x, out, groups = F.pad(x, (pad,) * 4), layer(x).detach(), layer.groups
    wide, per = x.shape[1] // groups, len(layer.weight) // groups
    found = torch.zeros(len(layer.weight), dtype=torch.float64)
    for f in range(len(found)):
        first = f // per * wide
        terms = []
        for u in range(out.shape[2]):
            for v in range(out.shape[3]):
                patch = x[:, first : first + wide, u * stride : u * stride + k, v * stride : v * stride + k]
                a, b = out[:, f, u, v].std(correction=0), patch.std(correction=0)
                terms.append(a / b if ratio == "out_over_in" else b / a)
        found[f] = torch.stack(terms).mean() * layer.weight[f].detach().abs().sum()
    return found


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(
    ("stride", "pad", "groups", "shift"), [(1, 0, 1, 0), (1, 1, 1, 5), (2, 1, 2, 0), (2, 0, 1, 100)]
)
def test_scores_are_those_of_explicit_patches(ratio, stride, pad, groups, shift):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride, pad, groups=groups).double()
    x = torch.randn(10, 4, 7, 7, dtype=torch.float64) + shift
    found = scores(nn.Sequential(layer), x, ratio)["0.weight"]
    torch.testing.assert_close(found, by_hand(layer, x, ratio), rtol=1e-10, atol=0)


def test_linear_layers_have_one_position_a_token():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4)).double(), torch.randn(12, 3, 5, dtype=torch.float64)
    out, w = model(x).detach(), model[0].weight.detach()
    want = torch.stack([out[:, t].std(0, correction=0) / x[:, t].std(correction=0) for t in range(3)]).mean(0)
    found = scores(model, x, "out_over_in", ow.Row())["0.weight"]
    torch.testing.assert_close(found, want * w.abs().sum(1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("ratio", RATIOS)
def test_white_noise_has_a_closed_form(ratio):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(8, 5, 1)), 3 * torch.randn(4096, 8, 1, 1)
    w = model[0].weight.detach().flatten(1)
    norms = w.abs().sum(1), w.norm(dim=1)
    want = norms[0] * norms[1] if ratio == "out_over_in" else norms[0] / norms[1]
    torch.testing.assert_close(scores(model, x, ratio)["0.weight"].float(), want, rtol=0.05, atol=0)


def test_scale_laws():
    """Inputs times c change nothing; filter k times c scales its score by c^2, or not at all."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), torch.randn(16, 3, 6, 6)
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger[0].weight[2] *= 5
    for ratio, power in zip(RATIOS, (2, 0), strict=True):
        base = scores(model, x, ratio)["0.weight"]
        torch.testing.assert_close(scores(model, 7 * x, ratio)["0.weight"], base, rtol=1e-5, atol=0)
        want = base * torch.tensor([1, 1, 5.0**power, 1], dtype=torch.float64)
        torch.testing.assert_close(scores(larger, x, ratio)["0.weight"], want, rtol=1e-5, atol=0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        y = F.relu(self.norm(self.a(x)))
        return self.head((y + self.b(y)).mean((2, 3)))


def test_a_constant_filter_goes_first_though_its_norm_is_largest():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1)).eval(), torch.randn(32, 2, 4, 4)
    with torch.no_grad():
        model[0].weight[1], model[0].weight[1, 1] = 10.0, -10.0
        x[:, 1] = x[:, 0]
    result = ow.prune(model, beta_rank(0.8, where=ow.Select(include=("0.weight",))), data=[x])
    assert (~result.units["0.weight"]).nonzero().flatten().tolist() == [1]


def test_channels_are_scored_where_they_are_made():
    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(8, 2, 6, 6, dtype=torch.float64)
    found = scores(model, x, "out_over_in", ow.channels(example=x))
    y = F.relu(model.norm(model.a(x))).detach()
    want = by_hand(model.a, x, "out_over_in") + by_hand(model.b, y, "out_over_in")
    torch.testing.assert_close(found["a.weight"], want, rtol=1e-10, atol=0)
    result = ow.prune(model, beta_rank(0.5, ow.channels(example=x)), data=[x])
    ow.verify(ow.compact(model, result), model, x)


def test_several_batches_are_averaged():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3)), torch.randn(20, 2, 5, 5)
    each = [scores(model, part, "out_over_in")["0.weight"] for part in (x[:10], x[10:])]
    both = scores(model, x, "out_over_in", batches=2, data=[x[:10], x[10:]])["0.weight"]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2, rtol=1e-12, atol=0)


def test_bad_input_is_refused():
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3)), torch.randn(4, 1, 5, 5)
    for bad, message in (
        (x[:1], r"0.weight: a batch of one sample has no deviation; pass batches of two or more"),
        (torch.ones(4, 1, 5, 5), r"0.weight: none of its inputs vary over the batch"),
    ):
        with pytest.raises(DataError, match=message):
            ow.prune(model, beta_rank(0.5), data=[bad])
    with pytest.raises(RecipeError, match=r"DeviationRatios: ratio must be 'out_over_in' or 'in_over_out', got 'beta'"):
        beta_rank(0.5, ratio="beta")
    with pytest.raises(RecipeError, match=r"DeviationRatios: batches must be at least 1, got 0"):
        beta_rank(0.5, batches=0)


def test_units_that_no_layer_makes_are_refused():
    model = Net().eval()
    parts, _ = partition(model, ow.channels(example=torch.randn(2, 2, 6, 6)), ow.Select())
    with pytest.raises(MissingStatistic, match=r"a.weight: no layer makes these units"):
        making({"a.weight": parts["a.weight"].side(True)})
