"""Every format gives back what was packed: the law ``unpack(pack(w, m)) == w * m`` over shapes, masks and dtypes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.formats import Bitmap, BlockSparse, Csr, NMSparse, base, from_tensors
from openwork.formats.bits import count_rows, pack_numbers, pack_rows, unpack_numbers, unpack_rows

DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@st.composite
def problems(draw, multiple=1):
    """A matrix and a mask; some kept weights are zero, some rows are empty."""
    rows = draw(st.integers(0, 37))
    cols = draw(st.integers(0, 70 // multiple)) * multiple
    seed = draw(st.integers(0, 2**31))
    density = draw(st.sampled_from((0.0, 0.05, 0.3, 0.9, 1.0)))
    rng = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, cols, generator=rng) < density) & (torch.rand(rows, 1, generator=rng) < 0.8)
    weight = torch.randn(rows, cols, generator=rng) * 10.0 ** float(torch.randint(-30, 30, (1,), generator=rng))
    weight = weight * (torch.rand(rows, cols, generator=rng) < 0.9)
    return weight * mask, mask


def agree(packed, weight, groups):
    """The law for one packed matrix; ``groups`` gives the largest magnitude that each weight's scale covers."""
    packed.check()
    assert (packed.rows, packed.cols) == tuple(weight.shape)
    found = packed.unpack()
    assert found.dtype == torch.float32
    assert found.shape == weight.shape
    if packed.dtype == torch.float32:
        assert torch.equal(found, weight)
    elif packed.dtype == torch.bfloat16:
        assert torch.equal(found, weight.bfloat16().float())
    else:
        bound = (groups / 127).clamp_min(2.0**-126)
        assert bool(((found - weight).abs() <= 0.50002 * bound).all())
    again = from_tensors(packed.meta(), packed.tensors())
    assert type(again) is type(packed)
    assert again.meta() == packed.meta()
    assert torch.equal(again.unpack(), found)
    assert packed.nbytes == sum(t.nbytes for t in again.tensors().values())


def run_maxima(weight, width):
    """Largest magnitude of every run of ``width`` columns, spread back."""
    maxima = torch.zeros_like(weight)
    for first in range(0, weight.shape[1], width):
        run = weight[:, first : first + width].abs()
        maxima[:, first : first + width] = run.amax(1, keepdim=True)
    return maxima


def block_maxima(weight, height, width):
    maxima = torch.zeros_like(weight)
    for top in range(0, weight.shape[0], height):
        for left in range(0, weight.shape[1], width):
            block = weight[top : top + height, left : left + width].abs()
            maxima[top : top + height, left : left + width] = block.max()
    return maxima


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 40), st.integers(1, 40), st.sampled_from(DTYPES))
def test_blocks_of_any_size(problem, height, width, dtype):
    weight, mask = problem
    packed = BlockSparse.pack(weight, mask, height=height, width=width, dtype=dtype)
    small = height < 16 and height * width < 64  # a scale for each row
    agree(packed, weight, run_maxima(weight, max(weight.shape[1], 1)) if small else block_maxima(weight, height, width))
    stored = block_maxima(mask.float(), height, width).bool()
    assert packed.stored == int(stored.sum())


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from((Csr, Bitmap)), st.sampled_from(DTYPES), st.sampled_from((None, 64, 128)))
def test_unstructured(problem, kind, dtype, group):
    weight, mask = problem
    group = group if dtype == torch.int8 else None
    packed = kind.pack(weight, mask, dtype=dtype, **({"group": group} if group else {}))
    agree(packed, weight, run_maxima(weight, group or max(weight.shape[1], 1)))
    assert packed.stored == int(mask.sum())
    assert packed.density == (int(mask.sum()) / mask.numel() if mask.numel() else 1.0)
    starts = packed.row_starts() if kind is Bitmap else packed.row_starts
    assert starts.diff().tolist() == mask.sum(1).tolist()


@settings(max_examples=60, deadline=None)
@given(
    problems(multiple=12), st.sampled_from((2, 3, 4, 6, 12, 1)), st.integers(1, 12), st.sampled_from((1, 4)),
    st.sampled_from(DTYPES), st.sampled_from((None, 64)),
)  # fmt: skip
def test_n_of_m(problem, m, n, share, dtype, group):
    weight, _ = problem
    n, group = min(n, m), group if dtype == torch.int8 else None
    rows, cols = weight.shape
    strips = -(-rows // share)
    score = torch.rand(strips, 1, cols // m, m)
    kept = score.argsort(3).argsort(3) < n
    kept = kept.expand(-1, share, -1, -1).reshape(strips * share, cols)[:rows] & (torch.rand(rows, cols) < 0.9)
    weight = weight * kept
    packed = NMSparse.pack(weight, kept, n=n, m=m, share=share, dtype=dtype, group=group)
    agree(packed, weight, run_maxima(weight, group or max(cols, 1)))
    assert packed.density == (n / m if weight.numel() else 1.0)
    assert packed.columns().shape == (strips, cols // m * n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_stored_exactly(dtype):
    weight = torch.randn(9, 20, dtype=dtype)
    mask = torch.rand(9, 20) < 0.5
    for packed in (Csr.pack(weight * mask, mask), Bitmap.pack(weight * mask, mask)):
        assert torch.equal(packed.unpack().to(dtype), weight * mask)


def test_kept_zeros_keep_their_place():
    mask = torch.tensor([[True, False, True]])
    weight = torch.tensor([[0.0, 0.0, 2.0]])
    assert Csr.pack(weight, mask).columns.tolist() == [0, 2]
    assert Bitmap.pack(weight, mask).mask().tolist() == mask.tolist()


def test_columns_are_16_bits_where_they_suffice():
    weight, narrow, wide = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1 << 16), torch.zeros(1, (1 << 16) + 1)
    for matrix, dtype in ((narrow, torch.uint16), (wide, torch.int32)):
        matrix[0, 0], matrix[0, -1] = weight[0]
        last = matrix.shape[1] - 1
        csr = Csr.pack(matrix, matrix != 0)
        assert csr.columns.dtype == dtype
        assert csr.columns.tolist() == [0, last]
        block = BlockSparse.pack(matrix, matrix != 0, height=4, width=1)
        assert block.columns.dtype == torch.int32
        assert block.tensors()["columns"].dtype == dtype
        assert BlockSparse.from_tensors(block.meta(), block.tensors()).columns.tolist() == [0, last]
        assert torch.equal(csr.unpack(), matrix)


def test_row_starts_grow_to_64_bits():
    assert base.starts_of(torch.tensor([2**31 - 1])).dtype == torch.int32
    assert base.starts_of(torch.tensor([2**31 - 1, 1])).dtype == torch.int64
    weight = torch.eye(3)
    packed = Csr.pack(weight, weight != 0)
    long = {**packed.tensors(), "row_starts": packed.row_starts.long()}
    assert torch.equal(Csr.from_tensors(packed.meta(), long).unpack(), weight)


def test_tiny_groups_round_to_the_smallest_scale():
    weight = torch.tensor([[1e-44, 0.0, -3e-42], [0.0, 0.0, 0.0]])
    packed = Csr.pack(weight, torch.ones(2, 3, dtype=torch.bool), dtype=torch.int8)
    packed.check()
    assert bool(((packed.unpack() - weight).abs() <= 2.0**-127).all())


def test_formats_are_plain_values():
    weight = torch.eye(4)
    packed = BlockSparse.pack(weight, weight != 0, height=2, width=2)
    twin = copy.deepcopy(packed)
    twin.values.zero_()
    assert torch.equal(packed.unpack(), weight)
    with pytest.raises(AttributeError):
        packed.rows = 3
    assert repr(packed) == "BlockSparse(4 x 4, 2 height, 2 width, float32, density 0.5)"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(0, 40), st.integers(0, 8))
def test_bits(rows, k, width):
    bits = torch.rand(rows, k) < 0.5
    packed = pack_rows(bits)
    assert torch.equal(unpack_rows(packed)[:, :k], bits)
    assert count_rows(packed).tolist() == bits.sum(1).tolist()
    numbers = (
        torch.randint(0, 1 << width, (rows, k), dtype=torch.uint8) if width < 8 else torch.full((rows, k), 255).byte()
    )
    found = unpack_numbers(pack_numbers(numbers, width), k, width)
    assert torch.equal(found, numbers)
