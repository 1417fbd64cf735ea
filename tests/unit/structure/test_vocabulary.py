"""Tokens as units: rows of the embedding and of the head go together, and the small model counts anew."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.methods import magnitude, random, spode

IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


class Words(nn.Module):
    """A language model of one layer; ids come before the positions."""

    def __init__(self, tied, padding=None):
        super().__init__()
        self.vocab_size = 12
        self.words, self.places = nn.Embedding(12, 6, padding_idx=padding), nn.Embedding(12, 6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 12, bias=not tied)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.mix(x)))


@pytest.mark.parametrize("tied", [True, False])
def test_rows_go_together_and_logits_of_the_rest_stay(tied, tmp_path):
    torch.manual_seed(0)
    model = Words(tied).eval()
    structure = ow.vocabulary(example=IDS)
    groups = structure.graph(model).of("vocabulary")
    places = {(s.tensor, s.dim) for g in groups for s in g.sites}
    head = set() if tied else {("head.weight", 0), ("head.bias", 0)}
    assert places == {("words.weight", 0)} | head
    result = ow.prune(model, magnitude(density=0.5, structure=structure))
    small = ow.compact(model, result)
    new = ow.token_map(small)
    old = (new >= 0).nonzero().flatten()
    assert len(new) == 12
    assert len(old) == 6
    assert torch.equal(new[old], torch.arange(6))
    assert small.words.weight.shape == (6, 6)
    assert small.places.weight.shape == (12, 6)
    assert small.vocab_size == 6
    ids = old[IDS % 6]
    torch.testing.assert_close(small(new[ids]), model(ids)[..., old], atol=1e-6, rtol=1e-6)
    assert ow.verify(small, model, IDS).max_error <= 1e-6
    assert (small.head.weight is small.words.weight) == tied
    ow.save(small, result, tmp_path / "s")
    again, _ = ow.load(tmp_path / "s", Words(tied).eval())
    assert torch.equal(again(new[ids]), small(new[ids]))
    assert torch.equal(ow.token_map(again), new)


def test_padding_budgets_and_other_structures():
    torch.manual_seed(0)
    model = Words(False, padding=0).eval()
    with torch.no_grad():
        model.words.weight[0] = 9.0  # the padding token stays, with number 0
    result = ow.prune(model, magnitude(structure=ow.vocabulary(example=IDS)), target={"params": 0.76})
    small = ow.compact(model, result)
    dense = sum(p.numel() for p in Words(False).parameters())
    assert abs(sum(p.numel() for p in small.parameters()) / dense - 0.76) <= 0.0076
    assert small.words.padding_idx == int(ow.token_map(small)[0])
    kinds = {g.kind for g in ow.build_graph(Words(True), IDS).groups}
    assert kinds == {"channels", "vocabulary"}
    result = ow.prune(Words(True).eval(), random(0.5, ow.channels(example=IDS)))
    assert {t["skipped"] for t in result.tensors if t["name"] == "places.weight"} == {""}
    with pytest.raises(ow.StructureError, match="its vocabulary is whole"):
        ow.token_map(Words(True))


def test_masks_travel_on_tokens():
    torch.manual_seed(0)
    model = Words(True).eval()
    data = [(IDS, IDS)]

    def loss(logits, ids):
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

    result = ow.prune(model, spode(density=0.5, structure=ow.vocabulary(example=IDS), steps=10), data=data, loss=loss)
    assert int(result.units["words.weight"].sum()) == 6
    assert ow.compact(model, result)(torch.tensor([[0]])).shape == (1, 1, 6)
