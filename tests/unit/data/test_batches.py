"""Batches, their random changes, and the split."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.data import Batches, split_off
from openwork.data.augment import augmented, flip, shift
from openwork.data.seeds import stream
from openwork.errors import DataError


def pictures(count):
    return torch.arange(count * 2 * 5 * 6, dtype=torch.float32).view(count, 2, 5, 6) + 1, torch.arange(count)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 12),
    size=st.integers(1, 12),
    seed=st.integers(0, 2**63),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    augment=st.sampled_from([None, "flip", "shift-flip"]),
)
def test_random_access_equals_iteration(count, size, seed, shuffle, drop_last, augment):
    if drop_last:
        size = min(size, count)
    x, y = pictures(count)
    make = lambda: Batches(x, y, size, seed, shuffle, drop_last, augment)  # noqa: E731
    batches, direct = make(), make()
    walked = [batch for _ in range(3) for batch in batches]
    assert len(walked) == 3 * len(batches) == 3 * batches.steps_per_epoch
    for step in reversed(range(len(walked))):
        assert all(torch.equal(a, b) for a, b in zip(walked[step], direct.batch(step), strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_every_sample_once(shuffle):
    batches = Batches(*pictures(10), batch_size=4, shuffle=shuffle)
    epochs = [torch.cat([y for _, y in batches]).tolist() for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert (len({tuple(epoch) for epoch in epochs}) == 1) == (not shuffle)
    for x, y in batches:
        assert torch.equal(x, pictures(10)[0][y])


def test_a_stopped_run_goes_on_at_its_epoch():
    batches = Batches(*pictures(10), batch_size=4, seed=3, augment="shift-flip")
    whole = [x for _ in range(3) for x, _ in batches]
    resumed = Batches(*pictures(10), batch_size=4, seed=3, augment="shift-flip")
    resumed.epoch = 2
    assert all(torch.equal(a, b) for a, (b, _) in zip(whole[6:], resumed, strict=True))


def test_the_global_seed_neither_matters_nor_moves():
    batches = Batches(*pictures(10), batch_size=4, augment="flip")
    state = torch.get_rng_state()
    first = list(copy.copy(batches))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, batches, strict=True))


def test_seeds_differ():
    orders = {tuple(Batches(*pictures(10), 10, seed=seed).batch(0)[1].tolist()) for seed in range(5)}
    assert len(orders) == 5


def test_drop_last_drops_the_short_batch():
    assert [len(y) for _, y in Batches(*pictures(10), 4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in Batches(*pictures(10), 4)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 4, {}), "Batches needs at least one sample, got none"),
        ((5, 4, 4, {}), "Batches: x and y must have one length, got 5 and 4"),
        ((5, 5, 0, {}), "Batches: batch_size must be at least 1, got 0"),
        ((5, 5, 6, {"drop_last": True}), "batch_size 6 with drop_last leaves no batch of 5 samples"),
        ((5, 5, 4, {"augment": "flop"}), "Batches: unknown augment 'flop'; did you mean 'flip'"),
    ],
)
def test_what_cannot_be_batched_is_refused(arguments, message):
    xs, ys, size, options = arguments
    with pytest.raises(DataError, match=message):
        Batches(pictures(xs)[0], pictures(ys)[1], size, **options)


def test_augment_needs_pictures_and_steps_count_up():
    with pytest.raises(DataError, match=r"augment='flip' needs pictures \[N, C, H, W\], got \(4, 3\)"):
        Batches(torch.zeros(4, 3), torch.zeros(4), 2, augment="flip")
    with pytest.raises(DataError, match="Batches: step must be at least 0, got -1"):
        Batches(*pictures(4), 2).batch(-1)


def test_flip_mirrors_about_half():
    x, _ = pictures(400)
    out = flip(x, stream(0, "test"))
    same = (out == x).flatten(1).all(1)
    assert ((out == x.flip(-1)).flatten(1).all(1) ^ same).all()
    assert abs(int(same.sum()) - 200) < 60  # six standard deviations of 400 fair coins


def test_shift_moves_whole_pictures():
    x, _ = pictures(50)
    out = shift(x, stream(0, "test"), reach=2)
    moves = set()
    for before, after in zip(x, out, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        fits = [(d, r) for d in range(5) for r in range(5) if torch.equal(after, padded[:, d : d + 5, r : r + 6])]
        assert len(fits) == 1
        moves.add(fits[0])
    assert len(moves) > 15  # of 25; rows and columns move on their own
    assert {d for d, _ in moves} == {r for _, r in moves} == set(range(5))


def test_no_augment_is_the_same_tensor():
    x, _ = pictures(3)
    assert augmented(x, None, stream(0)) is x


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_split_keeps_every_sample_and_each_share(labels, fraction, seed):
    y = torch.tensor(labels)
    count = round(fraction * len(y))
    if not 0 < count < len(y):
        with pytest.raises(DataError, match=r"split_off: .* of \d+ samples leaves one side empty"):
            split_off(y, y, fraction, seed)
        return
    x = torch.arange(len(y))
    (x_rest, y_rest), (x_held, y_held) = split_off(x, y, fraction, seed)
    assert len(x_held) == count
    assert sorted(x_rest.tolist() + x_held.tolist()) == x.tolist()
    assert torch.equal(y[x_rest], y_rest)
    assert torch.equal(y[x_held], y_held)
    shares = y.bincount(minlength=4) * count / len(y)
    assert (y_held.bincount(minlength=4) - shares).abs().max() < 1
    assert torch.equal(split_off(x, y, fraction, seed)[1][0], x_held)


def test_split_of_real_targets_ignores_classes():
    (_, rest), (_, held) = split_off(torch.arange(10), torch.linspace(0, 1, 10), 0.3)
    assert (len(rest), len(held)) == (7, 3)


@pytest.mark.parametrize("fraction", [0, 1, 50, float("nan")])
def test_split_refuses_a_fraction_outside(fraction):
    with pytest.raises(DataError, match=f"split_off: fraction must lie between 0 and 1, got {fraction}"):
        split_off(torch.arange(4), torch.arange(4), fraction)


def test_split_refuses_two_lengths():
    with pytest.raises(DataError, match="split_off: x and y must have one length, got 4 and 3"):
        split_off(torch.arange(4), torch.arange(3), 0.5)
