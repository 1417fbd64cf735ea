"""GraSP: the Hessian-vector product and what pruning does to the gradient norm."""

import pytest
import torch
from tests.unit.methods.scoring import chosen, labelled, plain_net, scores, situation
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

import openwork as ow
from openwork.methods import grasp
from openwork.stats import GradientFlow


def gradient(model, batch, weights, temperature):
    """The summed gradient over the two halves of the batch, by hand."""
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    half = len(batch[0]) // 2
    total = sum(
        F.cross_entropy(functional_call(model, leaves, batch[0][s]) / temperature, batch[1][s])
        for s in (slice(0, half), slice(half, None))
    )
    return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def square(grads):
    return sum(float(g.square().sum()) for g in grads.values())


def made(temperature=1.0):
    model, batch = plain_net(6, 9, 7, 3), labelled(6, 3)
    now = situation(model, grasp(0.5, temperature=temperature), [batch], F.cross_entropy)
    (stat,) = grasp(0.5, temperature=temperature).rule.needs
    weights = {n: p.detach() for n, p in model.named_parameters()}
    return model, batch, weights, *now.at_masks(stat)


def test_the_product_is_the_central_difference_of_gradients():
    for temperature in (1.0, 200.0):
        model, batch, weights, g, hg = made(temperature)
        for n, want in gradient(model, batch, weights, temperature).items():
            torch.testing.assert_close(g[n], want, rtol=1e-12, atol=1e-16)
        step = 1e-5 / square(g) ** 0.5
        ahead = gradient(model, batch, {n: w + step * g[n] for n, w in weights.items()}, temperature)
        behind = gradient(model, batch, {n: w - step * g[n] for n, w in weights.items()}, temperature)
        for n in weights:
            slow = (ahead[n] - behind[n]) / (2 * step)
            assert float((slow - hg[n]).norm()) <= 1e-5 * float(slow.norm())


def test_shrinking_a_weight_changes_the_gradient_norm_as_the_score_says():
    """d|g|^2 for w_q -> (1 - t) w_q is -2 t w_q (H g)_q."""
    model, batch, weights, g, hg = made()
    t, before = 1e-3, square(g)
    for name, where in (("0.weight", (2, 3)), ("2.weight", (1, 4)), ("4.weight", (0, 2))):
        changed = {n: w.clone() for n, w in weights.items()}
        changed[name][where] *= 1 - t
        found = square(gradient(model, batch, changed, 1.0)) - before
        want = -2 * t * float(weights[name][where] * hg[name][where])
        assert abs(found - want) <= 0.003 * abs(want)


def test_both_sign_conventions_of_the_two_ports_give_the_same_mask():
    """Prune the largest of -w H g / (|sum| + 1e-10), or the smallest of w H g."""
    model, batch, weights, _, hg = made(200.0)
    signed = torch.cat([(-w * hg[n]).flatten() for n, w in weights.items()])
    normalised = signed / (signed.sum().abs() + 1e-10)
    keep = -(-3 * signed.numel() // 10)
    by_paper = torch.zeros_like(signed, dtype=torch.bool)
    by_paper[normalised.argsort()[:keep]] = True
    by_port = torch.zeros_like(signed, dtype=torch.bool)
    by_port[(-signed).argsort(descending=True)[:keep]] = True
    mask = chosen(ow.prune(model, grasp(0.3), data=[batch], loss=F.cross_entropy))
    assert torch.equal(mask, by_paper)
    assert torch.equal(mask, by_port)


def test_scores_of_units_are_signed_sums():
    model, batch, weights, _, hg = made(200.0)
    found = scores(model, grasp(0.5, ow.Row()), [batch], F.cross_entropy)
    for n, w in weights.items():
        torch.testing.assert_close(found[n], (w * hg[n]).sum(1), rtol=1e-10, atol=1e-18)
    assert any(bool((f < 0).any()) for f in found.values())


class Once(torch.autograd.Function):
    """tanh that PyTorch cannot differentiate twice."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class Bend(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
def test_without_a_second_derivative_differences_stand_in(dtype, off):
    """Signs and sizes agree with the exact product, weights are put back, other errors are not swallowed."""

    def product(call):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 9), Bend(call), nn.Linear(9, 3)).to(dtype)
        before = [p.clone() for p in model.parameters()]
        x, y = labelled(6, 3)
        now = situation(model, grasp(0.5, temperature=1.0), [(x.to(dtype), y)], F.cross_entropy)
        (stat,) = grasp(0.5, temperature=1.0).rule.needs
        found = now.at_masks(stat)[1]
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        return torch.cat([h.flatten() for h in found.values()])

    exact, near = product(torch.tanh), product(Once.apply)
    assert float((near - exact).norm()) < off * float(exact.norm())
    assert float(near.norm()) > 0
    with pytest.raises(RuntimeError, match="another matter"):
        product(lambda x: x if not x.requires_grad else raising("another matter"))


def raising(what):
    raise RuntimeError(what)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of what torch.compile looks at
def test_differences_stand_in_where_a_compiled_function_has_no_second_derivative():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), torch.compile(nn.Tanh(), backend="aot_eager"), nn.Linear(9, 3)).double()
    x, y = labelled(6, 3)
    found = situation(model, grasp(0.5), [(x.double(), y)], F.cross_entropy).at_masks(GradientFlow())[1]
    plain = nn.Sequential(model[0], nn.Tanh(), model[2])
    exact = situation(plain, grasp(0.5), [(x.double(), y)], F.cross_entropy).at_masks(GradientFlow())[1]
    for n, h in exact.items():
        torch.testing.assert_close(found[n], h, rtol=1e-6, atol=1e-6 * float(h.abs().max()))


@pytest.mark.parametrize("call", [torch.tanh, Once.apply])
def test_every_pass_drops_the_same(call):
    """In train mode a new dropout in the second pass would be a product with the Hessian of another network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), Bend(call), nn.Dropout(0.5), nn.Linear(9, 3)).double()
    x, y = labelled(6, 3)
    stat = GradientFlow(temperature=1.0, mode="train")
    now = situation(model, grasp(0.5, temperature=1.0, mode="train"), [(x.double(), y)], F.cross_entropy)
    g, hg = now.at_masks(stat)
    norm = float(sum(t.square().sum() for t in g.values()) ** 0.5)
    for n, w in model.named_parameters():
        if n in g:
            w.data += 1e-5 / norm * g[n]
    moved = situation(model, grasp(0.5, temperature=1.0, mode="train"), [(x.double(), y)], F.cross_entropy)
    for n, further in moved.at_masks(stat)[0].items():
        slope = (further - g[n]) * norm / 1e-5
        torch.testing.assert_close(slope, hg[n], rtol=0, atol=1e-3 * float(hg[n].abs().max()))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_scores_of_samples_that_are_fitted_are_warned_of(scale):
    """The ratio to the gradient against other targets does not change with the loss; temperature unfits the samples."""
    x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)

    def loss(logits, target):
        return scale * F.cross_entropy(logits, target)

    def pruned(times, temperature):
        model = nn.Sequential(nn.Linear(4, 4, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(times * torch.eye(4))
        return ow.prune(model, grasp(0.5, temperature=temperature), data=[(x, y)], loss=loss).density

    with pytest.warns(
        UserWarning,
        match=r"GradientFlow: the gradient is next to nothing, 3e-07 of that against other targets, .*noise; prune bef",
    ):
        pruned(16.0, 1.0)
    assert pruned(16.0, 200.0) == pruned(0.1, 1.0) == pruned(0.1, 1e9) == 0.5


def test_a_loss_that_is_infinite_at_wrong_targets_gives_no_warning():
    x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)

    def loss(logits, target):
        value = F.cross_entropy(logits, target)
        return value / 0 if value > 8 else value

    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(16 * torch.eye(4))
    assert ow.prune(model, grasp(0.5, temperature=1.0), data=[(x, y)], loss=loss).density == 0.5
