"""SNIP: the score is the derivative of the loss with respect to a mask."""

import pytest
import torch
from tests.unit.methods.scoring import chosen, kept_by_hand, labelled, plain_net, scores
from torch.func import functional_call
from torch.nn import functional as F

import openwork as ow
from openwork.methods import snip, taylor


def mask_slopes(model, batch, shapes):
    """dL/dc at c = 1 by autograd, with c of the given shape multiplied onto every weight."""
    masks = {n: torch.ones(s, dtype=torch.float64, requires_grad=True) for n, s in shapes.items()}
    params = dict(model.named_parameters())
    loss = F.cross_entropy(
        functional_call(model, {n: params[n].detach() * c for n, c in masks.items()}, batch[0]), batch[1]
    )
    return dict(zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True))


@pytest.mark.parametrize("method", [snip, taylor], ids=["snip", "taylor"])
def test_the_score_of_a_weight_is_the_slope_of_its_mask(method):
    model, batch = plain_net(7, 9, 5, 3, bias=True), labelled(7, 3)
    found = scores(model, method(0.5, batches=1), [batch], F.cross_entropy)
    weights = {n: p.shape for n, p in model.named_parameters() if p.ndim == 2}
    for name, slope in mask_slopes(model, batch, weights).items():
        want = slope.abs() if method is snip else slope.square()
        torch.testing.assert_close(found[name], want.flatten(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("structure", [ow.Row(), ow.Column()], ids=repr)
def test_the_score_of_a_unit_is_the_slope_of_the_mask_of_the_unit(structure):
    model, batch = plain_net(7, 9, 5, 3), labelled(7, 3)
    found = scores(model, snip(0.5, structure), [batch], F.cross_entropy)
    shapes = {n: (p.shape[0], 1) if structure == ow.Row() else (1, p.shape[1]) for n, p in model.named_parameters()}
    for name, slope in mask_slopes(model, batch, shapes).items():
        torch.testing.assert_close(found[name], slope.abs().flatten(), rtol=1e-11, atol=1e-15)


def test_signed_scores_sum_to_the_same_in_every_layer_without_biases():
    """A ReLU network without biases is homogeneous in each layer: sum w dL/dw does not depend on the layer."""
    model, batch = plain_net(8, 12, 10, 6, 4), labelled(8, 4)
    slopes = mask_slopes(model, batch, {n: p.shape for n, p in model.named_parameters()})
    found = scores(
        model, snip(0.5, ow.Block(99, 1)), [batch], F.cross_entropy
    )  # |column sums|, to tie the two together
    sums = [float(s.sum()) for s in slopes.values()]
    assert max(sums) - min(sums) < 1e-12
    assert abs(sums[0]) > 1e-3
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope.sum(0).abs(), rtol=1e-11, atol=1e-14)


def test_the_kept_weights_are_the_largest_of_the_model():
    model, batch = plain_net(8, 12, 10, 6, 4), labelled(8, 4)
    values = torch.cat(list(scores(model, snip(0.3), [batch], F.cross_entropy).values())).tolist()
    result = ow.prune(model, snip(0.3), data=[batch], loss=F.cross_entropy)
    assert set(chosen(result).nonzero().flatten().tolist()) == kept_by_hand(values, -(-3 * len(values) // 10))


def test_the_scale_of_the_loss_does_not_matter():
    model, batch = plain_net(8, 12, 10, 4), labelled(8, 4)
    masks = [
        ow.prune(model, snip(0.2), data=[batch], loss=lambda o, y, c=c: c * F.cross_entropy(o, y), dry_run=True).masks
        for c in (1.0, 2.0**-10, 2.0**10)
    ]
    assert masks[0].distance(masks[1]) == masks[0].distance(masks[2]) == 0


def test_snip_and_taylor_of_one_batch_rank_single_weights_alike():
    model, batch = plain_net(8, 12, 4), labelled(8, 4)
    given = {"data": [batch], "loss": F.cross_entropy, "dry_run": True}
    assert (
        ow.prune(model, snip(0.3), **given).masks.distance(ow.prune(model, taylor(0.3, batches=1), **given).masks) == 0
    )


def test_batches_may_cancel_unless_they_are_summed_by_size():
    """Two batches with opposite gradients: the sum is zero, the sum of sizes is not."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False).double()
    x = torch.ones(2, 3, dtype=torch.float64)
    data = [(x, 1.0), (x, -1.0)]

    def loss(out, sign):
        return sign * out.sum()

    with pytest.raises(ow.errors.DivergedError, match="no gradient reaches it"):
        ow.prune(model, snip(0.5, batches=2), data=data, loss=loss)
    found = scores(model, snip(0.5, batches=2, absolute=True), data, loss)["weight"]
    torch.testing.assert_close(found, 4 * model.weight.detach().abs().flatten(), rtol=1e-12, atol=0)


def test_rounds_score_the_pruned_network():
    model, batch = plain_net(8, 16, 16, 4), labelled(8, 4)
    given = {"data": [batch], "loss": F.cross_entropy, "dry_run": True}
    once, often = (ow.prune(model, snip(0.05, rounds=r), **given).masks for r in (1, 20))
    assert once.distance(often) > 0
    assert once.kept() == often.kept()


def test_a_dead_layer_is_named():
    model, batch = plain_net(8, 12, 4), labelled(8, 4)
    with torch.no_grad():
        model[0].weight.neg_().abs_().neg_()
    with pytest.raises(ow.errors.DivergedError, match=r"0.weight: no gradient reaches it"):
        ow.prune(model, snip(0.5), data=[(batch[0].abs(), batch[1])], loss=F.cross_entropy)


def test_taylor_squares_every_batch_by_itself():
    model, one, other = plain_net(7, 9, 5, 3), labelled(7, 3), labelled(7, 3, seed=5)
    apart = [scores(model, taylor(0.5, ow.Row(), batches=1), [b], F.cross_entropy) for b in (one, other)]
    both = scores(model, taylor(0.5, ow.Row(), batches=2), [one, other], F.cross_entropy)
    for name, found in both.items():
        torch.testing.assert_close(found, apart[0][name] + apart[1][name], rtol=1e-10, atol=1e-16)
