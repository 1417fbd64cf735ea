"""Every card says what its method does when it runs."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import torch
from tests.contract.cases import CASES, STEPS, batches, net, perform, sgd, train
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork import methods
from openwork.methods.cards import CARDS, Card

OF = {case.name: methods.find(case.name).card for case in CASES}
WORDS = get_type_hints(Card)


def some(**wanted):
    """The cases whose card says so, as parameters."""
    found = [
        c
        for c in CASES
        if all(getattr(OF[c.name], k) in (v if isinstance(v, tuple) else (v,)) for k, v in wanted.items())
    ]
    return pytest.mark.parametrize("case", found, ids=str)


def drive(name):
    return pytest.mark.parametrize("case", [c for c in CASES if c.drive == name], ids=str)


def test_every_method_has_a_whole_card():
    assert list(CARDS) == list(methods.names())
    for name, card in CARDS.items():
        for field in fields(Card):
            assert getattr(card, field.name) in (get_args(WORDS[field.name]) or (True, False)), (name, field.name)
        assert dict(card.lines())["kind"] == card.to_dict()["kind"] == card.kind


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cards_agree_with_the_index(case):
    card, entry = OF[case.name], methods.find(case.name)
    assert {"prune": card.found in ("before training", "after training"),
            "attach": card.found == "during training", "cycle": card.found == "between rounds"}[entry.drive]  # fmt: skip
    assert (card.found == "after training") <= (card.start == "trained")
    assert (card.found == "before training") <= (card.start == "initial" and not card.dense)
    assert (card.goal == "inference") <= card.dense
    if entry.needs == "nothing":
        assert ow.prune(net(), case.recipe()).density < 0.5


def course(case):
    """The masks of every step of a training, as one vector each, and the non-zero targets of every step."""
    model = net()
    optimizer, masks, alive = sgd(model), [], []
    run = ow.attach(model, case.recipe(0.3), optimizer)

    def see(step):
        masks.append(torch.cat([m.flatten() for m in run.masks.values()]))
        named = dict(model.named_parameters())
        alive.append(sum(int((named[n] != 0).sum()) for n in run.masks if n in named))

    train(model, optimizer, 0, STEPS, run, see)
    run.finish()
    return masks, alive


@drive("attach")
def test_masks_move_as_the_card_says(case):
    masks, alive = course(case)
    changes = [(a, b) for a, b in zip(masks[:-1], masks[1:], strict=True) if not torch.equal(a, b)]
    back = [bool((b & ~a).any()) for a, b in changes]
    moves = OF[case.name].moves
    if moves == "static":
        assert len(changes) <= 1
    elif moves == "shrinks":
        assert len(changes) > 1
        assert not any(back)
    else:
        assert any(back)
        assert (len({int(m.sum()) for m in masks}) == 1) == (moves == "drops and grows")
    if not OF[case.name].dense:
        budget = int(masks[-1].sum())
        assert max(alive) <= budget


@some(found=("before training",))
def test_a_mask_from_initialisation_is_there_before_the_first_step(case):
    model = net()
    result = perform(case, case.recipe(0.3), model)
    named = dict(model.named_parameters())
    with ow.hold(model, result.masks) as _:
        train(model, sgd(model), 0, 5, after=lambda _: [
            pytest.fail("a weight came back") for n, m in result.masks.items() if bool((named[n][~m] != 0).any())
        ])  # fmt: skip


class Looked(Exception):
    pass


@drive("prune")
def test_gradients_are_looked_at_as_the_card_says(case, monkeypatch):
    """Whoever asks autograd for a gradient while it prunes says so on its card, and nobody else does."""

    def refuse(*args, **kwargs):
        raise Looked

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.autograd, "backward", refuse)
    # linear layers: what a convolution reads is gathered by a gradient that is none of the loss
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4))
    recipe = case.recipe(0.3)

    def act():
        ow.prune(model, recipe, data=batches(), loss=F.cross_entropy)

    if OF[case.name].gradients == "none":
        act()
    else:
        with pytest.raises(Looked):
            act()


@some(found=("between rounds",))
def test_rounds_move_as_the_card_says(case):
    model, data = net(), batches()
    rounds = ow.Cycle(model, case.recipe(0.2), rewind_to={k: v.clone() for k, v in model.state_dict().items()},
                      data=data, loss=F.cross_entropy)  # fmt: skip
    seen = []
    while not rounds.finished:
        rounds.prune_round()
        seen.append(torch.cat([m.flatten() for m in rounds.masks.values()]))
        with ow.hold(model, rounds.masks):
            train(model, sgd(model), 0, 6)
    assert len(seen) == 2
    assert (OF[case.name].moves == "shrinks") <= (not bool((seen[1] & ~seen[0]).any()))
