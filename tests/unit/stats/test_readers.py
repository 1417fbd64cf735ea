"""Gram matrices of reading weights, and noise in the place of data."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measuring import Measuring
from openwork.errors import MissingStatistic
from openwork.graph.example import Example
from openwork.stats import InputGram, NoiseGram, ReaderGram
from openwork.structure import InputChannel, partition


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )


def ctx(structure, data=None, seed=0):
    model = net().eval()
    parts, _ = partition(model, structure, ow.Select())
    return Measuring(model, parts, Feed(data, torch.device("cpu")), None, seed)


def test_only_readers_are_measured():
    x = torch.randn(4, 3, 8, 8)
    found = ReaderGram().measure(ctx(ow.channels(example=x), [x]))
    assert set(found) == {"4.weight"}  # the depthwise kernel passes its channels on
    seen = net().eval()[:4](x).permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(found["4.weight"].matrices[0], seen.T @ seen, rtol=1e-5, atol=1e-4)
    tiles = ctx(InputChannel(), [x])
    want = InputGram().measure(tiles)
    assert all(torch.equal(g.matrices, want[n].matrices) for n, g in ReaderGram().measure(tiles).items())


def test_noise_is_the_same_for_a_seed_and_has_the_spectrum():
    example = Example.of(torch.zeros(64, 3, 16, 16))
    structure = ow.channels(example=example)
    drawn = {}
    for spectrum in (0.0, 1.0):
        stat = NoiseGram(example, 2, spectrum)
        first, second = (next(iter(stat._batches(ctx(structure))))[0] for _ in range(2))
        assert torch.equal(first, second)
        power = torch.fft.fft2(first).abs().square().mean((0, 1))
        drawn[spectrum] = float(power[0, 1] / power[0, 4])  # frequencies 1/16 and 4/16
    assert drawn[0.0] == pytest.approx(1.0, rel=0.3)
    assert drawn[1.0] == pytest.approx(16.0, rel=0.3)
    grams = [NoiseGram(example, 1).measure(ctx(structure, seed=s))["4.weight"].matrices for s in (0, 0, 1)]
    assert torch.equal(grams[0], grams[1])
    assert not torch.equal(grams[0], grams[2])


def test_the_shape_comes_from_the_example_or_from_the_data():
    with pytest.raises(MissingStatistic, match="NoiseGram needs to know the input shape; pass example=x"):
        NoiseGram(draws=1).measure(ctx(InputChannel()))
    found = NoiseGram(draws=1).measure(ctx(InputChannel(), [(torch.zeros(2, 3, 8, 8), torch.zeros(2))]))
    assert int(found["0.weight"].tokens) == 2 * 36
    named = list(NoiseGram(Example.of({"x": torch.zeros(2, 3)}), 2, 1.0)._batches(ctx(InputChannel())))
    assert [set(batch) for batch in named] == [{"x"}, {"x"}]
