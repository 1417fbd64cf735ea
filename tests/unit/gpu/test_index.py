"""The index of kept blocks: laws, work tables, and every refusal."""

import pytest
import torch

from openwork.errors import StructureError
from openwork.gpu import BlockIndex
from openwork.gpu.index import TABLES
from openwork.gpu.schedule import chunks, limits, schedule


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 128), (128, 64)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_dense_and_values_are_inverse(height, width, density):
    rows, cols = 3 * height - 5, 4 * width - 9
    kept = torch.rand(3, 4) < density
    index = BlockIndex.of_blocks(kept, rows, cols, height, width)
    matrix = torch.randn(rows, cols)
    mask = kept.repeat_interleave(height, 0).repeat_interleave(width, 1)[:rows, :cols]
    dense = index.dense(index.values_of(matrix))
    assert torch.equal(dense, matrix * mask)
    assert index.blocks == int(kept.sum())
    again = BlockIndex.of_mask(mask, (height, width))
    assert torch.equal(again.columns, index.columns)
    assert torch.equal(again.row_starts, index.row_starts)


def test_a_single_weight_keeps_its_block():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[33, 20] = True
    index = BlockIndex.of_mask(mask, 16)
    assert (index.columns.tolist(), index.row_starts.tolist()) == ([1], [0, 0, 0, 1])


def test_turned_tables_list_the_blocks_by_column():
    kept = torch.rand(5, 6) < 0.5
    index = BlockIndex.of_blocks(kept, 80, 96, 16, 16)
    table = dict(zip(TABLES, index.tables, strict=True))
    assert table["turned_lines"].tolist() == kept.T.nonzero()[:, 1].tolist()
    pairs = index.tables[0][table["turned_places"].long()]
    assert pairs.tolist() == kept.T.nonzero()[:, 0].tolist()
    assert all(t.dtype == torch.int32 for t in index.tables)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_items_cover_every_block_once(limit):
    counts = torch.tensor([0, 7, 1, 0, 30, 3])
    items, splits = schedule(counts, limit)
    starts = counts.cumsum(0) - counts
    seen = torch.zeros(int(counts.sum()), dtype=torch.int64)
    for line, first, stop, slot in items.tolist():
        assert starts[line] <= first <= stop <= starts[line] + counts[line]
        assert stop - first <= limit
        assert (slot >= 0) == (counts[line] > limit)
        seen[first:stop] += 1
    assert (seen == 1).all()
    assert sorted(set(items[:, 0].tolist())) == list(range(6))
    lengths = (items[:, 2] - items[:, 1]).tolist()
    assert lengths == sorted(lengths, reverse=True)
    slots = sorted(s for s in items[:, 3].tolist() if s >= 0)
    assert slots == list(range(len(slots)))
    for line, first, count in splits.tolist():
        assert sorted(i[3] for i in items.tolist() if i[0] == line) == list(range(first, first + count))


def test_limits():
    assert limits(torch.full((64,), 6), 64 * 64) == (2, 24)
    assert limits(torch.tensor([5000, 0]), 128 * 128) == (10, 10000)


def test_chunks_stay_in_their_row():
    starts = torch.tensor([0, 5, 5, 6])
    found = sorted(chunks(starts, 2).tolist())
    assert [row for row, _, _ in found] == [0, 0, 0, 2]
    assert sorted(i for _, a, b in found for i in range(a, b)) == list(range(6))
    assert all(0 < b - a <= 2 for _, a, b in found)


def test_to():
    index = BlockIndex.of_blocks(torch.ones(2, 2, dtype=torch.bool), 32, 32, 16, 16)
    assert index.to("cpu") is index
    moved = index.to("meta")
    assert moved.device.type == moved.row_starts.device.type == moved.tables[-1].device.type == "meta"


def build(columns=(0, 1), starts=(0, 1, 2), rows=32, cols=32, height=16, width=16):
    return BlockIndex.build(rows, cols, height, width, columns, starts)


REFUSED = {
    r"row_starts must be 3 numbers that rise from 0 to 2, got 2 numbers, \[0, 2\]": lambda: build(starts=(0, 2)),
    r"row_starts must be 3 numbers that rise from 0 to 2, got 3 numbers, \[0, 3, 2\]": lambda: build(starts=(0, 3, 2)),
    r"row_starts must be 3 numbers that rise from 0 to 2, got 3 numbers, \[1, 1, 2\]": lambda: build(starts=(1, 1, 2)),
    r"row_starts must be 3 numbers that rise from 0 to 2, got 3 numbers, \[0, 1, 3\]": lambda: build(starts=(0, 1, 3)),
    r"row_starts must be 3 numbers that rise from 0 to 2, got 0 numbers, \[\]": lambda: build(starts=()),
    r"columns must be in 0 .. 1, got -1 .. 0": lambda: build(columns=(0, -1)),
    r"columns must be in 0 .. 1, got 0 .. 2": lambda: build(columns=(0, 2)),
    r"columns must rise strictly inside a block row; sort": lambda: build(columns=(1, 0), starts=(0, 2, 2)),
    r"columns must rise strictly inside a block row; so": lambda: build(columns=(1, 1), starts=(0, 2, 2)),
    r"columns must be a list of integers, got torch.float32 \(2,\)": lambda: build(columns=torch.zeros(2)),
    r"columns must be a list of integers, got torch.bool \(2,\)": lambda: build(columns=torch.ones(2) > 0),
    r"row_starts must be a list of integers, got torch.int64 \(1, 3\)": lambda: build(starts=torch.tensor([[0, 1, 2]])),
    r"block must be one or two of 16, 32, 64, 128 \(height, width\), got \(8, 16\)": lambda: build(height=8),
    r"block must be one or two of 16, 32, 64, 128 \(height, width\), got 48": lambda: BlockIndex.of_mask(
        torch.ones(48, 48) > 0, 48
    ),
    r"block must be one or two of .*, got \(16, 16, 16\)": lambda: BlockIndex.of_mask(
        torch.ones(8, 8) > 0, (16, 16, 16)
    ),
    r"rows and cols must be positive and below 2\*\*31 - 128, got 0 and 32": lambda: build(rows=0),
    r"rows and cols must be positive and below 2\*\*31 - 128, got 32 and 2147483647": lambda: build(cols=2**31 - 1),
    r"kept must be bool \(2, 2\), got torch.float32 \(2, 2\)": lambda: BlockIndex.of_blocks(
        torch.ones(2, 2), 32, 32, 16, 16
    ),
    r"kept must be bool \(2, 3\), got torch.bool \(2, 2\)": lambda: BlockIndex.of_blocks(
        torch.ones(2, 2) > 0, 32, 33, 16, 16
    ),
    r"mask must be a bool matrix \(outputs, inputs\), got torch.bool \(4,\)": lambda: BlockIndex.of_mask(
        torch.ones(4) > 0, 16
    ),
    r"mask must be a bool matrix \(outputs, inputs\), got torch.float32 \(4, 4\)": lambda: BlockIndex.of_mask(
        torch.ones(4, 4), 16
    ),
    r"rows and cols must be positive and below .*, got 0 and 4": lambda: BlockIndex.of_mask(torch.ones(0, 4) > 0, 16),
    r"the matrix must be \(32, 32\), got \(32, 31\)": lambda: build().values_of(torch.ones(32, 31)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(StructureError, match=message):
        REFUSED[message]()
