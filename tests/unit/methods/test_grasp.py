"""GraSP: the Hessian-vector product and what pruning does to the gradient norm."""

import torch
from tests.unit.methods.scoring import chosen, labelled, plain_net, scores, situation
from torch.func import functional_call
from torch.nn import functional as F

import openwork as ow
from openwork.methods import grasp


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
