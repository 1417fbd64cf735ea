"""Batches, feeds, and the guard that leaves the model as it was."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.core.batches import Feed, device_of, forward, logits_of, loss_on, to_device
from openwork.core.masks import Masks, pack_bits, unpack_bits
from openwork.core.measuring import Measuring, seeded, weights_of
from openwork.errors import DataError, DivergedError, FileError
from openwork.structure import Element, partition

CPU = torch.device("cpu")


class Counting(nn.Module):
    """Changes buffers and reads the mode in every forward pass."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.drop(self.norm(self.fc(x)))


def measuring(model, data=None, loss=None):
    parts, _ = partition(model, Element(), ow.Select())
    return Measuring(model, parts, Feed(data, CPU), loss)


@pytest.mark.parametrize("mode", ["train", "eval", "keep"])
def test_calling_leaves_buffers_and_modes_alone(mode):
    model = Counting()
    model.norm.eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with measuring(model).calling(mode) as call:
        assert model.norm.training == (mode == "train")
        call({}, torch.randn(8, 4) + 3)
        replaced = call({"fc.weight": torch.zeros(4, 4), "fc.bias": torch.zeros(4)}, torch.randn(8, 4))
    assert float(replaced.detach().abs().max()) < 1e-2 or mode == "eval"
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(RuntimeError, match="stop"), measuring(model).calling("train"):
        raise RuntimeError("stop")
    assert [m.training for m in model.modules()] == modes


def test_seeded_gives_the_generator_back():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    with seeded(9):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), want)
    with seeded(9):
        assert torch.equal(torch.rand(2), first)


def test_weights_are_the_parameters_themselves():
    model = Counting()
    assert weights_of(measuring(model))["fc.weight"].data_ptr() == model.fc.weight.data_ptr()


def test_feeds_restart_what_can_be_read_again():
    feed = Feed([1, 2], CPU)
    assert [feed.next() for _ in range(5)] == [1, 2, 1, 2, 1]
    again = Feed([1, 2], CPU)
    again.skip(5)
    assert (again.next(), again.served) == (2, 6)
    with pytest.raises(DataError, match="the data ended after 2 batches but more are needed for x; pass a DataLoader"):
        once = Feed(iter([1, 2]), CPU)
        _ = [once.next("x") for _ in range(3)]
    with pytest.raises(DataError, match="the data is empty: iterating over it gave no batch"):
        Feed([], CPU).next()
    with pytest.raises(DataError, match="data must be an iterable of batches, got int"):
        Feed(3, CPU).next()

    class Once:
        left = [1]

        def __iter__(self):
            return iter([self.left.pop()] if self.left else [])

    drained = Feed(Once(), CPU)
    drained.next()
    with pytest.raises(DataError, match="the data gave 1 batches and none when it was read again"):
        drained.next()


def test_batches_of_every_form():
    x = torch.ones(2)
    moved = to_device({"a": [x, "text", 3]}, CPU)
    assert moved["a"][1:] == ("text", 3)
    assert forward(lambda a: a, (x, 1)) is x
    assert forward(lambda a: a, x) is x
    assert forward(lambda a: a, {"a": x}) is x
    assert loss_on(lambda a: a, (x, 2), lambda out, y: (out * y).sum()).item() == 4
    assert loss_on(lambda a: a, {"a": x}, lambda out, batch: batch["a"].sum()).item() == 2
    with pytest.raises(DivergedError, match="the loss is nan at step 7; lower the learning rate or check the data"):
        loss_on(lambda a: a, (x, 2), lambda out, y: out.sum() * float("nan"), step=7)
    with pytest.raises(DataError, match="loss must return a scalar tensor, got 3"):
        loss_on(lambda a: a, (x, 2), lambda out, y: 3)
    with pytest.raises(DataError, match="the model must return a tensor or something with .logits, got tuple"):
        logits_of((x,))


def test_devices_of_models_without_parameters():
    assert device_of(nn.BatchNorm1d(3, affine=False)) == CPU
    assert device_of(nn.ReLU()) == CPU


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 65])
def test_bits_are_packed_and_unpacked(n):
    mask = torch.rand(n) < 0.5
    packed = pack_bits(mask)
    assert packed.numel() == -(-n // 8)
    assert torch.equal(unpack_bits(packed, (n,)), mask)
    assert all(bool(packed[i // 8] >> (i % 8) & 1) == bool(mask[i]) for i in range(n))


def test_masks_are_a_read_only_copy():
    source = {"a": torch.tensor([[True, False]]), "b": torch.ones(3, dtype=torch.bool)}
    masks = Masks(source)
    source["a"].fill_(False)
    assert masks.kept("a") == 1
    assert (masks.kept(), masks.total(), masks.density) == (4, 5, 0.8)
    back = Masks.unpack(masks.packed(), {n: tuple(m.shape) for n, m in masks.items()})
    assert back.distance(masks) == 0
    assert masks.distance({"a": source["a"], "b": masks["b"]}) == 1
    with pytest.raises(FileError, match="c: packed masks and shapes must name the same tensors; the file is damaged"):
        Masks.unpack(masks.packed(), {"a": (1, 2), "b": (3,), "c": (1,)})
