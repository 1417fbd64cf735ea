"""SAP: how much a round prunes, exact ends, proportional sharing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import openwork as ow
from openwork.errors import RecipeError
from openwork.methods import sap
from openwork.metrics import pq_index
from openwork.rules.adaptive import AdaptivePruning, shared_out
from openwork.schedules import Rounds


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6))


def rounds(recipe, model):
    """Counts of every tensor after each round, without any training."""
    counts = []

    def train(net, now):
        counts.append({n: int((p != 0).sum()) for n, p in net.named_parameters() if p.ndim > 1})

    result = ow.cycle(model, recipe, train, rewind_to={k: v.clone() for k, v in model.state_dict().items()})
    return counts, result


def test_a_round_prunes_by_the_formula_in_every_layer():
    model = net()
    left = {
        n: p.detach().abs().flatten().sort(descending=True).values for n, p in model.named_parameters() if p.ndim > 1
    }
    counts, _ = rounds(sap(density=0.01, rounds=3), net())
    for done in counts[:2]:
        for name, w in left.items():
            d = len(w)
            index = float(pq_index(w))
            r = -(-d * (1 - index) // 1)
            left[name] = w[: d - int(d * min(1 - r / d, 0.9))]
            assert done[name] == len(left[name])


@pytest.mark.parametrize("scope", ["neuron", "layer", "global"])
def test_the_last_round_meets_the_density(scope):
    counts, result = rounds(sap(density=0.05, rounds=2, scope=scope), net())
    assert sum(counts[-1].values()) == 9  # 180 units
    assert sum(counts[0].values()) > 9
    assert result.density == 9 / 180
    counts, _ = rounds(sap(density=0.9, rounds=2, scope=scope), net())
    assert sum(counts[0].values()) >= sum(counts[1].values()) == 162  # never below


def test_scopes_agree_where_there_is_one_row():
    def one():
        torch.manual_seed(1)
        return nn.Linear(40, 1)

    found = [rounds(sap(density=0.3, rounds=2, scope=s), one())[0] for s in ("neuron", "layer", "global")]
    assert found[0] == found[1] == found[2]


def test_gamma_and_eta_prune_faster():
    kept = [sum(rounds(sap(density=0.01, rounds=2, gamma=g), net())[0][0].values()) for g in (0.5, 1.0, 2.0)]
    assert kept[0] > kept[1] > kept[2]
    kept = [sum(rounds(sap(density=0.01, rounds=2, eta=e), net())[0][0].values()) for e in (0.0, 0.1, 1.0)]
    assert kept[0] > kept[1] > kept[2]


def test_the_log_tells_the_index():
    _, result = rounds(sap(density=0.1, rounds=2), net())
    told = [entry["sap"] for entry in result.log if "sap" in entry]
    assert len(told) == 2
    assert 0 < told[0]["pq_index"] < 1
    assert sum(t["pruned"] for t in told) == 180 - 18


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60)), min_size=1, max_size=8), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_sharing_out_is_exact_and_within_bounds(pairs, part):
    want, most = (torch.tensor(v) for v in zip(*pairs, strict=True))
    need = int(part * int(most.sum()))
    given_ = shared_out(want, need, most)
    assert int(given_.sum()) == need
    assert bool((given_ <= most).all())
    assert bool((given_ >= 0).all())


def test_sharing_out_is_proportional():
    assert shared_out(torch.tensor([10, 30]), 20, torch.tensor([100, 100])).tolist() == [5, 15]
    assert shared_out(torch.tensor([0, 0]), 3, torch.tensor([1, 5])).tolist() in ([0, 3], [1, 2])


def test_refusals():
    with pytest.raises(RecipeError, match="AdaptivePruning: scope must be 'neuron', 'layer' or 'global', got 'row'"):
        AdaptivePruning("row")
    with pytest.raises(RecipeError, match="the PQ index needs 0 < p < q"):
        sap(p=1.0, q=0.5)
    with pytest.raises(RecipeError, match="entries_needed: eta must not be negative"):
        sap(eta=-1)
    with pytest.raises(RecipeError, match="AdaptivePruning: gamma must be positive and beta in"):
        sap(beta=1.0)
    with pytest.raises(RecipeError, match="Rounds: path must be 'equal' or 'rule', got 'own'"):
        Rounds(0.1, 3, path="own")
    with pytest.raises(
        RecipeError, match="sap: NM.* fixes its own counts, so nothing can adapt; take another structure"
    ):
        sap(structure=ow.NM(2, 4))
    with pytest.raises(
        RecipeError, match="0.weight: rows of neurons are known for single weights only; take scope='layer'"
    ):
        rounds(sap(density=0.5, rounds=1, structure=ow.Block(2, 2), scope="neuron"), net())
