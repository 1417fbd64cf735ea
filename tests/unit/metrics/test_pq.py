"""The PQ index: its axioms, its bound, masks as compaction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.errors import RecipeError
from openwork.metrics import entries_needed, pq_index

PAIRS = [(0.5, 1.0), (1.0, 2.0), (0.2, 1.5)]
vectors = st.lists(st.floats(-1e3, 1e3).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=2, max_size=30).filter(
    lambda v: any(v)
)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("p", "q"), PAIRS)
@given(values=vectors, scale=st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_scale_and_clones_change_nothing_and_the_range_holds(p, q, values, scale):
    w = tensor(values)
    index = pq_index(w, p=p, q=q)
    assert float(pq_index(scale * w, p=p, q=q)) == pytest.approx(float(index), abs=1e-12)
    assert float(pq_index(torch.cat([w, -w, w]), p=p, q=q)) == pytest.approx(float(index), abs=1e-12)
    assert 0 <= float(index) <= 1 - len(w) ** (1 / q - 1 / p) + 1e-12


@pytest.mark.parametrize(("p", "q"), PAIRS)
@given(values=vectors, data=st.data())
@settings(max_examples=50, deadline=None)
def test_axioms_of_inequality(p, q, values, data):
    w = tensor(values).abs()
    index = float(pq_index(w, p=p, q=q))
    assert float(pq_index(torch.cat([w, torch.zeros(3)]), p=p, q=q)) >= index - 1e-12  # babies
    assert float(pq_index(w + w.mean(), p=p, q=q)) <= index + 1e-12  # rising tide
    rich, poor = int(w.argmax()), int(w.argmin())
    moved = w.clone()
    gift = 0.4 * (w[rich] - w[poor])
    moved[rich] -= gift
    moved[poor] += gift
    assert float(pq_index(moved, p=p, q=q)) <= index + 1e-12  # Robin Hood
    richer = w.clone()
    richer[rich] *= 1e9
    assert float(pq_index(richer, p=p, q=q)) >= index - 1e-9  # Bill Gates


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_the_bound_holds_for_every_number_of_entries(p, q):
    rng = torch.Generator().manual_seed(0)
    for law in range(30):
        w = torch.randn(40, generator=rng, dtype=torch.float64).abs() ** (1 + law % 5)
        powers = w.sort(descending=True).values ** p
        for r in range(1, 41):
            eta = float(powers[r:].sum() / powers[:r].sum())
            assert r >= float(entries_needed(pq_index(w, p=p, q=q), 40, p, q, eta)) - 1e-9


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize("r", [1, 3, 8])
def test_the_bound_is_met_by_r_equal_entries(p, q, r):
    w = torch.zeros(8, dtype=torch.float64)
    w[:r] = 2.5
    assert float(entries_needed(pq_index(w, p=p, q=q), 8, p, q)) == pytest.approx(r, abs=1e-9)


def test_masks_are_compaction_and_slices_are_vectors():
    rng = torch.Generator().manual_seed(1)
    w = torch.randn(5, 9, generator=rng)
    mask = torch.rand(5, 9, generator=rng) > 0.4
    assert float(pq_index(w, mask)) == pytest.approx(float(pq_index(w[mask])), abs=1e-14)
    rows = pq_index(w, mask, dim=1)
    assert rows.tolist() == pytest.approx([float(pq_index(w[i][mask[i]])) for i in range(5)], abs=1e-14)
    assert float(pq_index(w[:1], dim=1)) == float(pq_index(w[:1]))


def test_nothing_is_not_sparse():
    assert float(pq_index(torch.zeros(4))) == 0
    assert float(pq_index(torch.randn(4), torch.zeros(4, dtype=torch.bool))) == 0
    assert float(pq_index(torch.full((3,), 1e-40, dtype=torch.float64), p=0.2, q=3)) == pytest.approx(0, abs=1e-12)


def test_refusals():
    with pytest.raises(RecipeError, match="the PQ index needs 0 < p < q, got 1 and 1"):
        pq_index(torch.ones(3), p=1, q=1)
    with pytest.raises(RecipeError, match=r"pq_index: the mask must have the shape \(3,\), got \(2,\)"):
        pq_index(torch.ones(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(RecipeError, match="pq_index: w holds NaN"):
        pq_index(torch.tensor([1.0, float("nan")]))
    with pytest.raises(RecipeError, match="entries_needed: eta must not be negative, got -1"):
        entries_needed(torch.tensor(0.5), 8, eta=-1)
