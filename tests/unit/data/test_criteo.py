"""Click logs: generated lines in the real form against a reader that is written the slow way, and broken lines."""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.data import Batches, load_data
from openwork.data import criteo as module
from openwork.data.click_lines import parse_lines
from openwork.errors import DataError

BINS = 1000


def line(rng, label=None):
    counts = [str(rng.choice([-2, -1, 0, 1, rng.randrange(100_000)])) if rng.random() < 0.8 else "" for _ in range(13)]
    keys = [f"{rng.randrange(2**32):08x}" if rng.random() < 0.9 else "" for _ in range(26)]
    return "\t".join([str(rng.randrange(2) if label is None else label), *counts, *keys])


def slow(text, bins=BINS):
    """One line at a time, by the documented formulas."""
    label, *cells = text.split("\t")
    counts = [math.copysign(math.log1p(abs(int(c))), int(c)) if c else 0.0 for c in cells[:13]]
    return counts + [int(c, 16) % (bins - 1) + 1 if c else 0 for c in cells[13:]], int(label)


@pytest.fixture
def lines():
    rng = random.Random(0)
    return [line(rng) for _ in range(300)]


@pytest.fixture
def log(tmp_path, lines, monkeypatch):
    """300 lines in about 30 blocks, shuffled in windows of four."""
    monkeypatch.setenv("OPENWORK_DATA", "")
    monkeypatch.setattr(module, "BLOCK", 2500)
    monkeypatch.setattr(module, "WINDOW", 4)
    path = tmp_path / "criteo" / "train.txt"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lines_are_read_as_documented(log, lines):
    for root in (log, log.parent, log.parent.parent):
        data = load_data("criteo", root=root, bins=BINS)
        assert (len(data.train), len(data.test), data.input_shape) == (270, 30, (39,))
        assert (data.classes, data.sizes) == (2, (BINS,) * 26)
        x, y = (
            torch.cat(parts) for parts in zip(data.train.read(slice(0, 270)), data.test.read(slice(0, 30)), strict=True)
        )
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        expected = [slow(text) for text in lines]
        assert y.tolist() == [label for _, label in expected]
        torch.testing.assert_close(x, torch.tensor([row for row, _ in expected]), rtol=1e-6, atol=0)
        assert float(x[:, 13:].max()) < BINS


def test_the_last_line_may_lack_its_newline(log, lines):
    log.write_text("\n".join(lines))
    data = load_data("criteo", root=log, bins=BINS)
    assert len(data.train) + len(data.test) == 300
    assert data.test.read(slice(29, 30))[0].tolist()[0][13:] == slow(lines[-1])[0][13:]


def test_an_epoch_has_every_line_once_and_any_batch_again(log):
    data = load_data("criteo", root=log, bins=BINS)
    order = data.train.order(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(270))
    assert order.tolist() != list(range(270))
    batches = Batches.over(data.train, 32, seed=1)
    epoch = list(batches)
    fresh = Batches.over(load_data("criteo", root=log, bins=BINS).train, 32, seed=1)
    for step in (8, 0, 3):
        for a, b in zip(epoch[step], fresh.batch(step), strict=True):
            assert torch.equal(a, b)
    seen = torch.cat([x for x, _ in epoch])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, data.train.read(slice(0, 270))[0].tolist()))


def test_few_blocks_are_kept(log, monkeypatch):
    data = load_data("criteo", root=log, bins=BINS)
    parsed = []
    real = module.parse_lines
    monkeypatch.setattr(module, "parse_lines", lambda block, bins: parsed.append(1) or real(block, bins))
    for _ in Batches.over(data.train, 8):
        assert len(data.train._parsed) <= 6
    assert len(parsed) <= len(data.train.index.offsets)


BREAKS = {
    "a missing column": lambda t: t.rsplit("\t", 1)[0],
    "a column too many": lambda t: t + "\t00000000",
    "another label": lambda t: "2" + t[1:],
    "no label": lambda t: t[1:],
    "a long label": lambda t: "1" + t,
    "a word for a number": lambda t: "\t".join(["1", "many", *t.split("\t")[2:]]),
    "a lone minus": lambda t: "\t".join(["1", "-", *t.split("\t")[2:]]),
    "a minus inside": lambda t: "\t".join(["1", "1-2", *t.split("\t")[2:]]),
    "a hexadecimal count": lambda t: "\t".join(["1", "1f", *t.split("\t")[2:]]),
    "a long number": lambda t: "\t".join(["1", "123456789012", *t.split("\t")[2:]]),
    "a category with a sign": lambda t: t.rsplit("\t", 1)[0] + "\t-1",
    "a category with other letters": lambda t: t.rsplit("\t", 1)[0] + "\tgaff",
    "a long category": lambda t: t.rsplit("\t", 1)[0] + "\t123456789",
    "an empty line": lambda t: "",
    "the end of another system": lambda t: t + "\r",
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_lines_are_counted_and_limited(log, lines, name):
    broken = [BREAKS[name](text) if i in (7, 250) else text for i, text in enumerate(lines)]
    log.write_bytes(("\n".join(broken) + "\n").encode())
    with pytest.raises(
        DataError, match=r"train\.txt: 2 of 300 lines are broken, the first is line 8, and at most 0.0001"
    ):
        load_data("criteo", root=log)
    with pytest.warns(UserWarning, match="criteo: 2 of 300 lines of .* are broken and left out, first 8"):
        data = load_data("criteo", root=log, bins=BINS, broken=0.01)
    assert len(data.train) + len(data.test) == 298
    kept = [slow(text)[1] for i, text in enumerate(lines) if i not in (7, 250)]
    assert data.train.read(slice(0, 268))[1].tolist() == kept[:268]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_crash_the_parser(content):
    x, y, kept = parse_lines(content + b"\n", 7)
    assert len(x) == len(y) == kept.sum()
    assert len(kept) == content.count(b"\n") + 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 2**24), st.integers(-(10**10) + 1, 10**10 - 1))
def test_extreme_values_are_exact(key, bins, count):
    text = "\t".join(["1", str(count), *[""] * 12, f"{key:x}", *[""] * 25])
    x, _, kept = parse_lines(text.encode() + b"\n", bins)
    assert kept.all()
    expected, _ = slow(text, bins)
    assert int(x[0, 13]) == expected[13]
    assert abs(float(x[0, 0]) - expected[0]) <= 1e-6 * abs(expected[0])
    assert np.isfinite(x).all()


def test_a_part_of_the_file(log):
    data = load_data("criteo", root=log, rows=50)
    assert 50 <= len(data.train) + len(data.test) < 65


def test_a_wrong_file_is_refused_at_its_first_block(log, monkeypatch):
    log.write_text("no click data\n" * 5000)
    with pytest.raises(DataError, match="179 of 179 lines are broken, the first is line 1"):
        load_data("criteo", root=log)
    log.write_text("x" * 9000)
    with pytest.raises(DataError, match="has a line longer than 2500 bytes; each must hold a label, 13 integers"):
        load_data("criteo", root=log)
    log.write_text("")
    with pytest.raises(DataError, match="criteo: train and test must hold samples, got 0 and 0"):
        load_data("criteo", root=log)


def test_a_file_that_changes_is_noticed(log, lines):
    data = load_data("criteo", root=log)
    log.write_text("\n".join(["0", *lines]) + "\n")
    with pytest.raises(DataError, match="has changed since it was indexed; load the data set again"):
        data.test.read(slice(0, 30))


@pytest.mark.parametrize("option", [{"bins": 1}, {"bins": 2**24 + 1}, {"test": 0.0}, {"broken": 1.0}, {"rows": 1}])
def test_refused_options(log, option):
    with pytest.raises(
        DataError, match=r"criteo: bins must lie in 2\.\.2\*\*24, test in \(0, 1\), broken in \[0, 1\) and rows"
    ):
        load_data("criteo", root=log, **option)


def test_nowhere(log):
    with pytest.raises(
        DataError, match="criteo was not found. Searched: no folder was named. .*Display Advertising Challenge"
    ):
        load_data("criteo")
    log.rename(log.parent / "day_0")
    with pytest.raises(DataError, match=r"criteo was not found\. Searched: .*train\.txt; "):
        load_data("criteo", root=log.parent)


def test_the_fingerprint_sees_bins_lines_and_bytes(log, lines):
    def found(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return load_data("criteo", root=log, **options).fingerprint()

    first = found()
    assert first == found()
    seen = {first, found(bins=50), found(test=0.3)}
    log.write_text("\n".join([lines[0][:-1] + ("0" if lines[0][-1] != "0" else "1"), *lines[1:]]) + "\n")
    seen.add(found())
    log.write_text("\n".join([*lines[:150], lines[150].rsplit("\t", 1)[0] + "\t1", *lines[151:]]) + "\n")
    assert len({*seen, found()}) == 5
