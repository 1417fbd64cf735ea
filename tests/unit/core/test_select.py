"""``keep_top``: several internal paths, one answer; exact counts; refusals."""

import math
import time
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.core import select
from openwork.core.select import count_kept, keep_top
from openwork.errors import OpenworkError

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8]


def slow(scores, keep):
    """Python's stable sort: larger first, then the lower index."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = set(order[:keep])
    return [i in kept for i in range(len(scores))]


def examples(dtype):
    torch.manual_seed(1)
    yield torch.randn(57).mul(20).abs().to(dtype)
    yield torch.randint(0, 3, (64,)).to(dtype)  # ties
    yield torch.zeros(9, dtype=dtype)
    yield torch.zeros(0, dtype=dtype)
    yield torch.ones(1, dtype=dtype)
    if dtype.is_floating_point:
        yield torch.tensor([math.inf, -math.inf, 0.0, -0.0, math.inf, 1.0, -math.inf], dtype=dtype)
        yield -torch.randn(40).abs().to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_paths_equal_a_plain_sort(dtype):
    for scores in examples(dtype):
        n = scores.numel()
        for keep in {0, n // 3, n // 2, max(0, n - 1), n}:
            want = slow(scores.tolist(), keep)
            assert keep_top(scores, keep).tolist() == want
            assert keep_top(scores, torch.tensor(keep)).tolist() == want
            if n:
                assert keep_top(scores, keep, n).tolist() == want
                assert keep_top(scores, keep, torch.zeros(n, dtype=torch.int64)).tolist() == want


@given(st.lists(st.integers(-2, 2), min_size=0, max_size=24), st.data())
@settings(max_examples=150, deadline=None)
def test_rows_and_any_regions_equal_one_region_each(values, data):
    run = data.draw(st.integers(1, 4))
    values = values[: len(values) // run * run]
    rows = len(values) // run
    keep = torch.tensor(data.draw(st.lists(st.integers(0, run), min_size=rows, max_size=rows)), dtype=torch.int64)
    scores = torch.tensor(values, dtype=torch.float32)
    want = [b for r in range(rows) for b in slow(values[r * run : (r + 1) * run], int(keep[r]))]
    assert keep_top(scores, keep, run).tolist() == want
    ids = torch.arange(rows).repeat_interleave(run)
    mixed = torch.tensor(data.draw(st.permutations(range(len(values)))), dtype=torch.int64)
    alive = keep_top(scores[mixed], keep, ids[mixed])
    back = torch.zeros(rows, dtype=torch.int64).index_add_(0, ids[mixed], alive.long())
    assert torch.equal(back, keep)


def test_views_with_strides_and_gradients_are_taken_as_they_are():
    base = torch.randn(20, requires_grad=True)
    assert torch.equal(keep_top(base[::2], 3, 5), keep_top(base[::2].clone(), 3, 5))
    assert not keep_top(base, 3).requires_grad


def test_bool_scores():
    assert keep_top(torch.tensor([False, True, False, True]), 3).tolist() == [True, True, False, True]


def test_regions_at_the_end_may_be_empty():
    assert keep_top(torch.tensor([1.0, 2.0]), torch.tensor([1, 0]), torch.tensor([0, 0])).tolist() == [False, True]


def test_ten_million_scores_in_a_third_of_a_second():
    # the limit is for a free core; on a shared one the best of three counts
    scores = torch.randn(10_000_000)
    best = math.inf
    for _ in range(3):
        begin = time.process_time()
        alive = keep_top(scores, 1_000_000)
        best = min(best, time.process_time() - begin)
    assert int(alive.sum()) == 1_000_000
    assert best < 0.7  # the full sort takes several seconds


@pytest.mark.parametrize(
    ("keep", "scope", "message"),
    [
        (1.5, None, r"keep must be an integer, or one per region \(1\), got 1.5"),
        (torch.tensor([1, 2]), None, r"keep must be an integer, or one per region \(1\), got tensor"),
        (torch.tensor([1, 2, 3]), 2, r"keep must be an integer, or one per region \(2\), got tensor"),
        (torch.tensor([1, -1]), 2, "keep must be between 0 and 2 in every run"),
        (1, 0, "runs of 0 do not divide 4 units"),
        (1, torch.tensor([0, 0, 1, -1]), r"scope needs one id per unit \(4,\), integers from 0"),
        (1, torch.zeros(4), r"scope needs one id per unit \(4,\), integers from 0, got \(4,\) of torch.float32"),
    ],
)
def test_refused_quotas(keep, scope, message):
    with pytest.raises(OpenworkError, match=message):
        keep_top(torch.ones(4), keep, scope)


@given(st.integers(1, 10**8), st.integers(1, 1000), st.integers(1, 1000))
@settings(max_examples=300, deadline=None)
def test_counts_are_those_of_exact_fractions(n, a, b):
    share = Fraction(min(a, b), max(a, b))
    exact = share * n
    assert count_kept(float(share), n) == math.ceil(exact)
    assert count_kept(float(share), n, "floor") == math.floor(exact)
    assert count_kept(float(share), n, "nearest") == math.floor(exact + Fraction(1, 2))


def test_rounding_errors_of_shares_are_forgiven():
    assert count_kept(1 - 0.9, 10) == 1
    assert count_kept(0.1 + 0.2, 10**8) == 3 * 10**7
    assert count_kept(1.0, 7, "nearest") == 7


@pytest.mark.parametrize("at_once", [1, 140, select.AT_ONCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rows_of_any_length_are_cut_where_a_sort_cuts_them(dtype, at_once, monkeypatch):
    monkeypatch.setattr(select, "AT_ONCE", at_once)
    rng = torch.Generator().manual_seed(5)
    for length in (4, select.SHORT, select.SHORT + 1, select.LONG, 70):
        rows = torch.randint(-3, 4, (6, length), generator=rng).to(dtype)
        rows[1] = torch.randn(length, generator=rng).to(dtype)
        rows[2, ::2], rows[2, 1::2] = math.inf, -math.inf
        for keep in (0, 1, length // 2, length - 1, length):
            want = [b for row in rows for b in slow(row.tolist(), keep)]
            assert keep_top(rows.flatten(), keep, length).tolist() == want
