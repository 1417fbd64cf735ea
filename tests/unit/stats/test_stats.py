"""Statistics against autograd and loops written out by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measured import measure, refuse_missing
from openwork.core.measuring import Measuring, weights_of
from openwork.core.protocols import Rule
from openwork.errors import DataError, MissingStatistic
from openwork.stats import GradientFlow, InputSquares, LossGradient, MaskLoss, SynapticFlow
from openwork.structure import Element, partition

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self, drop=0.0):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(drop), nn.Linear(4 * 16, 3)

    def forward(self, x):
        return self.fc(self.drop(torch.tanh(self.norm(self.conv(x)))).flatten(1))


def net(drop=0.0):
    torch.manual_seed(0)
    model = Net(drop).double()
    model.norm.running_mean.uniform_(-0.1, 0.1)
    return model


def batches(n=2):
    rng = torch.Generator().manual_seed(5)
    shape = (6, 2, 4, 4)
    return [
        (torch.randn(shape, generator=rng, dtype=torch.float64), torch.randint(0, 3, (6,), generator=rng))
        for _ in range(n)
    ]


def context(model, data=None, loss=F.cross_entropy):
    parts, _ = partition(model, Element(), ow.Select())
    return Measuring(model, parts, Feed(data, CPU), loss)


def some_masks(model):
    torch.manual_seed(3)
    return {n: torch.rand(p.shape) < 0.5 for n, p in weights_of(context(model)).items()}


def by_hand(model, masks, batch, mode="eval", temperature=1.0, graph=False):
    """Gradients of the loss at masked weights, with the weights really written."""
    import copy

    twin = copy.deepcopy(model).train(mode == "train")
    with torch.no_grad():
        for n, m in masks.items():
            twin.get_parameter(n).mul_(m)
    loss = F.cross_entropy(twin(batch[0]) / temperature, batch[1])
    names = list(masks)
    grads = torch.autograd.grad(loss, [twin.get_parameter(n) for n in names], create_graph=graph)
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_gradients_are_those_of_the_written_network(mode, absolute):
    model = net()
    gradient = LossGradient(2, absolute, mode).measure(context(model, batches()))
    for masks in (some_masks(model), {n: torch.ones_like(m) for n, m in some_masks(model).items()}):
        got = gradient(masks)
        parts = [by_hand(model, masks, b, mode) for b in batches()]
        for n in masks:
            want = sum(p[n].abs() if absolute else p[n] for p in parts)
            torch.testing.assert_close(got[n], want, rtol=1e-10, atol=1e-14)


def test_mask_loss_is_the_loss_and_its_slope():
    model = net()
    energy = MaskLoss("eval").measure(context(model, batches()))
    soft = {n: torch.rand(p.shape, dtype=torch.float64) + 0.5 for n, p in weights_of(context(model)).items()}
    value, slopes = energy(soft, 0)
    batch, h = batches()[0], 1e-5
    for name, at in (("conv.weight", (1, 0, 2, 1)), ("fc.weight", (2, 7))):
        ends = []
        for sign in (1, -1):
            moved = {n: m.clone() for n, m in soft.items()}
            moved[name][at] += sign * h
            e = MaskLoss("eval").measure(context(model, [batch]))(moved, 0)[0]
            ends.append(e)
        assert float(slopes[name][at]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-10)
    assert energy(soft, 1)[0] != value  # a fresh batch at each call


def test_gradient_flow_is_a_central_difference_of_gradients():
    model, batch = net(), batches()[0]
    masks = some_masks(model)
    g, hg = GradientFlow(1, temperature=2.0).measure(context(model, [batch]))(masks)
    halves = [tuple(t[:3] for t in batch), tuple(t[3:] for t in batch)]

    def grad_at(shift):
        import copy

        twin = copy.deepcopy(model)
        with torch.no_grad():
            for n, m in masks.items():
                p = twin.get_parameter(n)
                p.copy_(p * m + shift * g[n])
        ones = {n: torch.ones_like(m) for n, m in masks.items()}
        parts = [by_hand(twin, ones, h, temperature=2.0) for h in halves]
        return {n: sum(p[n] for p in parts) for n in masks}

    here, up, down = grad_at(0.0), grad_at(1e-4), grad_at(-1e-4)
    for n in masks:
        torch.testing.assert_close(g[n], here[n], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(hg[n], (up[n] - down[n]) / 2e-4, rtol=1e-5, atol=1e-9)


def test_the_hessian_of_a_linear_loss_is_zero():
    model = nn.Linear(3, 2)
    flow = GradientFlow(1, 1.0).measure(context(model, [(torch.ones(4, 3), None)], lambda out, y: out.sum()))
    g, hg = flow({"weight": torch.ones(2, 3)})
    assert float(g["weight"].sum()) == pytest.approx(24.0)
    assert not bool(hg["weight"].any())


def test_synaptic_flow_is_conserved_from_layer_to_layer():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    )
    ctx = context(model)
    masks = {n: torch.rand(p.shape) < 0.6 for n, p in weights_of(ctx).items()}
    grads = SynapticFlow((5,)).measure(ctx)(masks)
    sums = [float((w.double().abs() * masks[n] * grads[n]).sum()) for n, w in weights_of(ctx).items()]
    product = torch.ones(5, dtype=torch.float64)
    for n, w in weights_of(ctx).items():
        product = (w.double().abs() * masks[n]) @ product
    assert sums == pytest.approx([float(product.sum())] * 3, rel=1e-12)


def test_synaptic_flow_takes_its_shape_from_data():
    model = net()
    a = SynapticFlow((2, 4, 4)).measure(context(model))({})
    b = SynapticFlow().measure(context(model, batches()))({})
    assert all(torch.equal(a[n], b[n]) for n in a)


CONVS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (1, 3), groups=2, dilation=2),
    nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
]


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_input_squares_of_convolutions_against_unfold(conv):
    model, x = nn.Sequential(conv), torch.randn(3, 4, 6, 6)
    got = InputSquares(2).measure(context(model, [(x, None), (2 * x, None)]))["0.weight"]
    padded = x
    if conv.padding_mode != "zeros":
        padded = F.pad(x, (1, 1, 1, 1), mode=conv.padding_mode)
    padding = conv.padding if conv.padding_mode == "zeros" else 0
    cols = F.unfold(padded, conv.kernel_size, conv.dilation, padding, conv.stride)
    sums = 5 * cols.square().sum((0, 2)).reshape(4, *conv.kernel_size)
    per = conv.out_channels // conv.groups
    want = torch.stack([sums.reshape(conv.groups, -1, *conv.kernel_size)[o // per] for o in range(conv.out_channels)])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_input_squares_of_linear_layers_of_any_rank_and_by_keyword():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            self.hidden = self.a(input=x).detach()
            return self.b(self.hidden.mean((0, 1)))

    model, x = Two(), torch.randn(2, 5, 3)
    got = InputSquares(1).measure(context(model, [x]))
    torch.testing.assert_close(got["a.weight"], x.square().sum((0, 1)).expand(4, 3))
    torch.testing.assert_close(got["b.weight"], model.hidden.mean((0, 1)).square().expand(2, 4))


def test_input_squares_never_takes_token_ids_for_inputs():
    model = nn.Sequential(nn.Embedding(5, 3))
    parts, _ = partition(model, Element(), ow.Select(include=("0",)))
    ctx = Measuring(model, parts, Feed([torch.arange(5)[None]], CPU), None)
    with pytest.raises(
        MissingStatistic, match="Embedding: input norms are known for linear and convolution layers only"
    ):
        InputSquares(1).measure(ctx)


def frozen_form(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [len(m._forward_pre_hooks) for m in model.modules()],
        torch.get_rng_state(),
    )


STATS = [
    LossGradient(2, mode="train"),
    GradientFlow(1, mode="train"),
    InputSquares(2),
    SynapticFlow(),
    MaskLoss("train"),
]


@pytest.mark.parametrize("stat", STATS, ids=repr)
@pytest.mark.parametrize("fails", [False, True])
def test_measuring_changes_nothing(stat, fails):
    model = net(drop=0.5)
    model.norm.eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.conv.bias.requires_grad_(False)
    a = frozen_form(model)
    rule = SimpleNamespace(needs=frozenset({stat}))
    data = (
        batches() if not fails else [(torch.ones(2, 9, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))]
    )
    ctx = context(model, data)
    masks = {n: torch.ones_like(p) for n, p in weights_of(ctx).items()}
    try:
        value = measure(rule, ctx)[stat]
        if callable(value):
            value(*((masks, 0) if isinstance(stat, MaskLoss) else (masks,)))
    except RuntimeError:
        assert fails
    b = frozen_form(model)
    assert all(torch.equal(v, b[0][k]) for k, v in a[0].items())
    assert a[1] == b[1]
    assert all(x is y or torch.equal(x, y) for x, y in zip(a[2], b[2], strict=True))
    assert a[3:5] == b[3:5]
    assert torch.equal(a[5], b[5])


def test_dropout_is_the_same_at_every_call():
    model = net(drop=0.5)
    masks = some_masks(model)
    gradient = LossGradient(1, mode="train").measure(context(model, batches(1)))
    first = gradient(masks)
    torch.rand(7)
    second = gradient(masks)
    assert all(torch.equal(first[n], second[n]) for n in masks)
    assert not torch.equal(first["fc.weight"], LossGradient(1).measure(context(model, batches(1)))(masks)["fc.weight"])


def test_a_detached_loss_is_named():
    model = net()
    for stat in (LossGradient(1), MaskLoss()):
        value = stat.measure(context(model, batches(), lambda out, y: out.detach().sum()))
        args = (some_masks(model), 0) if isinstance(stat, MaskLoss) else (some_masks(model),)
        with pytest.raises(DataError, match="the loss does not depend on the weights: it is detached or was computed"):
            value(*args)


def test_needs_are_refused_before_any_work():
    class Needs(Rule):
        def __init__(self, *stats):
            self.needs = frozenset(stats)

    model = net()
    with pytest.raises(MissingStatistic, match="InputSquares needs data; pass data="):
        refuse_missing(Needs(InputSquares()), context(model))
    with pytest.raises(MissingStatistic, match="LossGradient needs a loss; pass loss="):
        refuse_missing(Needs(LossGradient()), context(model, batches(), None))
    refuse_missing(Needs(SynapticFlow((2, 4, 4))), context(model))
    model.config = object()  # a model that returns its own loss
    refuse_missing(Needs(LossGradient()), context(model, batches(), None))


def test_equal_statistics_are_measured_once():
    calls = []

    class Counted(LossGradient):
        def measure(self, ctx):
            calls.append(self)
            return 1

    rule = ow.Chain((RuleOf(Counted(2)), RuleOf(Counted(2)), RuleOf(Counted(3))))
    measure(rule, context(net(), batches()))
    assert len(calls) == 2


class RuleOf(Rule):
    def __init__(self, stat):
        self.needs = frozenset({stat})
