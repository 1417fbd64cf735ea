"""Perplexity and agreement against values known without running anything."""

import math

import pytest
import torch
from tests.unit.llm import tiny
from torch import nn
from torch.nn import functional as F

from openwork.errors import DataError, DivergedError
from openwork.metrics import agreement, perplexity


class Says(nn.Module):
    """Logits that depend on the present token only: row ``t`` of a table."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.calls = []

    def forward(self, tokens):
        self.calls.append(tuple(tokens.shape))
        return self.table[tokens]


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    ids = torch.arange(100) % 17
    for stride in (None, 3, 10):
        assert perplexity(Says(torch.zeros(17, 17)), ids, 10, stride).value == pytest.approx(17, rel=1e-6)


def test_windows_and_targets_are_those_of_the_protocol():
    torch.manual_seed(0)
    model, ids = Says(torch.randn(17, 17)), torch.randint(0, 17, (53,))
    losses = F.cross_entropy(model.table[ids[:-1]], ids[1:], reduction="none").detach()
    found = perplexity(model, ids, 10)
    inside = [i for i in range(50 - 1) if (i + 1) % 10]  # targets that do not begin a window
    assert (found.windows, found.targets, found.tokens, found.stride) == (5, 45, 53, 10)
    assert found.value == pytest.approx(math.exp(losses[inside].mean()), rel=1e-5)
    for stride in (1, 4, 10):
        found = perplexity(model, ids, 10, stride)
        # every target counts once; without overlap the first of a window has no context and is none
        assert found.targets == (52 if stride < 10 else 47)
        if stride < 10:
            assert found.value == pytest.approx(math.exp(losses.mean()), rel=1e-5)


def test_documents_are_never_mixed():
    torch.manual_seed(0)
    model = Says(torch.randn(17, 17))
    documents = [torch.randint(0, 17, (n,)) for n in (25, 4, 1)]
    found = perplexity(model, documents, 10)
    assert (found.windows, found.targets, found.tokens) == (4, 24 - 2 + 3, 30)
    assert max(shape[1] for shape in model.calls) == 10


def test_agreement_of_equal_and_of_known_models():
    table = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    ids = torch.tensor([0, 0, 1, 0] * 4)
    same = agreement(Says(table), Says(table.clone()), ids, 4)
    assert (same.top1, same.divergence, same.tokens) == (1.0, pytest.approx(0, abs=1e-6), 16)
    other = agreement(Says(table.flip(1)), Says(table), ids, 4)
    p = math.exp(2) / (1 + math.exp(2))
    assert other.top1 == 0
    assert other.divergence == pytest.approx(p * 2 - (1 - p) * 2, rel=1e-5)


def test_a_real_architecture_and_its_mode():
    model = tiny.build("llama").train()
    found = perplexity(model, tiny.ids().flatten(), 16)
    assert found.targets == 6 * 15
    assert model.training
    assert "perplexity" in str(found)


def test_refused():
    model, ids = Says(torch.zeros(5, 5)), torch.arange(5)
    for call, message in (
        (lambda: perplexity(model, ids[None], 2), r"perplexity needs token ids of shape \[tokens\]"),
        (lambda: perplexity(model, ids, 1), "perplexity: length must be at least 2 and 1 <= stride <= length, got 1"),
        (lambda: perplexity(model, ids, 4, 5), "got 4 and 5"),
        (lambda: perplexity(model, ids, 6), "perplexity: the text has 5 tokens, a window needs 6; give more text"),
        (lambda: agreement(model, model, ids, 6), r"agreement needs \[tokens\] of at least one window of 6"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(DivergedError, match="perplexity: the cross-entropy is nan over 4 targets; the model is broken"):
        perplexity(Says(torch.full((5, 5), float("nan"))), ids, 5)
