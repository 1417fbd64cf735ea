"""Sources in memory and streamed sets: one interface, and what each refuses."""

import copy
import dataclasses

import pytest
import torch

from openwork.data import Batches, DataSet, load_data
from openwork.data.augment import augmented
from openwork.data.dataset import StreamedSet
from openwork.data.seeds import stream
from openwork.data.sources import TensorSource
from openwork.errors import DataError

X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])


class Numbers:
    """A streamed source of its own: sample i is i, shuffled by halves."""

    chunk = 3

    def __init__(self, count, width=2):
        self.count, self.shape = count, (width,)

    def __len__(self):
        return self.count

    def order(self, generator):
        half = self.count // 2
        first = torch.randperm(half, generator=generator)
        return torch.cat([first, half + torch.randperm(self.count - half, generator=generator)])

    def read(self, numbers, generator=None):
        rows = torch.arange(self.count)[numbers]
        x = rows[:, None].float().expand(-1, *self.shape)
        return (x if generator is None else x + torch.rand(len(rows), 1, generator=generator) / 2), rows % 3

    def fingerprint(self):
        return str((self.count, self.shape)).encode()


def test_the_train_side_of_tensors_gives_the_batches_of_before():
    data = load_data("digits")
    data = dataclasses.replace(data, augment="shift-flip")
    batches = Batches.over(data.train, 50, seed=4)
    old = Batches(data.x_train, data.y_train, 50, seed=4, augment="shift-flip")
    for step in (0, 7, 28, 29, 60):
        epoch, index = divmod(step, 29)
        chosen = torch.randperm(1437, generator=stream(4, "order", epoch))[50 * index : 50 * index + 50]
        x = augmented(data.x_train[chosen], "shift-flip", stream(4, "augment", step))
        for found in (batches.batch(step), old.batch(step)):
            assert torch.equal(found[0], x)
            assert torch.equal(found[1], data.y_train[chosen])


def test_a_source_may_leave_samples_as_they_are():
    data = dataclasses.replace(load_data("digits"), augment="flip")
    plain = {tuple(row) for row in data.x_train.flatten(1).tolist()}
    for x, _ in Batches.over(data.train, 500, augment=False):
        assert all(tuple(row) in plain for row in x.flatten(1).tolist())
    x, _ = Batches.over(data.train, 500).batch(0)
    assert not all(tuple(row) in plain for row in x.flatten(1).tolist())


def test_any_batch_of_a_source_directly():
    batches = Batches.over(Numbers(10), 4, seed=2)
    epochs = [batch for _ in range(3) for batch in batches]
    assert [len(y) for _, y in epochs[:3]] == [4, 4, 2]
    for step in (8, 1, 4):
        assert all(torch.equal(a, b) for a, b in zip(batches.batch(step), epochs[step], strict=True))
    orders = {tuple(x[:, 0].long().tolist()[0] for x, _ in epochs[i : i + 3]) for i in (0, 3, 6)}
    assert len(orders) > 1
    seen = torch.cat([x[:, 0] for x, _ in epochs[:3]]).long()
    assert sorted(seen.tolist()) == list(range(10))
    assert sorted(seen[:5].tolist()) == list(range(5))  # the order of the source
    still = Batches.over(Numbers(10), 4, shuffle=False, augment=False)
    assert [x[:, 0].tolist() for x, _ in still] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_source_that_cannot_be_batched_is_refused():
    for options, message in (
        ((Numbers(0), 4), "Batches needs at least one sample, got none"),
        ((Numbers(5), 0), "Batches: batch_size must be at least 1, got 0"),
        ((Numbers(5), 6, 0, True, True), "batch_size 6 with drop_last leaves no batch of 5 samples"),
    ):
        with pytest.raises(DataError, match=message):
            Batches.over(*options)


def test_a_streamed_set_is_a_data_set_without_tensors():
    data = StreamedSet("own", Numbers(10), Numbers(4), classes=3, sizes=(4,))
    assert isinstance(data, DataSet)
    assert (data.input_shape, data.classes, data.sizes, data.augment) == ((2,), 3, (4,), None)
    assert repr(data) == "StreamedSet('own', 10 + 4 samples (2,))"
    assert len(copy.copy(data).test) == 4
    for name in ("x_train", "y_train", "x_test", "y_test"):
        with pytest.raises(DataError, match=rf"own is streamed and has no tensor {name}; read it in batches with"):
            getattr(data, name)
        assert not hasattr(data, name)
    with pytest.raises(AttributeError, match="^x_valid$"):
        data.x_valid  # noqa: B018


def test_streamed_fingerprints_are_of_both_sides():
    found = {StreamedSet("own", Numbers(a), Numbers(b), 3).fingerprint() for a, b in ((8, 4), (4, 8), (8, 5))}
    assert len(found) == 3
    assert {len(f) for f in found} == {16}
    x, y = torch.arange(6.0)[:, None], torch.arange(6)
    prints = {TensorSource(a, b).fingerprint() for a, b in ((x, y), (x.view(3, 2), y), (x, y.flip(0)), (-x, y))}
    assert len(prints) == 4


def test_streamed_sides_must_fit():
    with pytest.raises(DataError, match="own: train and test must hold samples, got 3 and 0"):
        StreamedSet("own", Numbers(3), Numbers(0), 3)
    with pytest.raises(DataError, match=r"own: train and test must give one shape of sample, got \(2,\), \(3,\)"):
        StreamedSet("own", Numbers(3), Numbers(3, width=3), 3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 2), r"own: a categorical column of x_train must hold 0\.\.1 as its entry of sizes says, got 0\.\.2"),
        ((1, 3), r"a categorical column of x_test must hold 0\.\.0 as its entry of sizes says, got 0\.\.1"),
        ((1, 1, 1, 1), "own: sizes must not name more than the 3 columns, got 4"),
    ],
)
def test_categories_must_lie_below_their_sizes(sizes, message):
    train, test = X.clone(), X.clone()
    train[1, 2], test[0, 1], train[0, 0] = 2, 1, -0.5
    with pytest.raises(DataError, match=message):
        DataSet("own", train, Y, test, Y, classes=3, sizes=sizes)
    assert DataSet("own", train, Y, test, Y, classes=3, sizes=(2, 3)).sizes == (2, 3)
