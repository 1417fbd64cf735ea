"""What cannot be packed, and packed tensors that contradict each other, are refused with a reason."""

import pytest
import torch

from openwork.errors import FormatError
from openwork.formats import FORMATS, Bitmap, BlockSparse, Csr, NMSparse, block, choose, from_tensors

EYE = torch.eye(6, 8)
NAN = EYE.clone()
NAN[2, 2] = float("nan")
HUGE = EYE * 3.4e38


def masked(matrix, mask=None, **options):
    return Csr.pack(matrix, matrix != 0 if mask is None else mask, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masked([1.0], EYE != 0), "csr: the matrix must be a tensor, got list"),
        (lambda: masked(EYE, EYE), "csr: the mask must be bool, got torch.float32"),
        (lambda: masked(EYE.to_sparse(), EYE != 0), "the matrix must hold dense values, got torch.sparse_coo"),
        (lambda: masked(EYE[0]), r"the matrix must have two dimensions, got \(8,\); open its view first"),
        (lambda: masked(EYE.double()), "the matrix must be float32, bfloat16 or float16, got torch.float64"),
        (lambda: masked(EYE, EYE[:2] != 0), r"the mask must have the shape of the matrix \(6, 8\), got \(2, 8\)"),
        (lambda: masked(EYE, dtype=torch.float16), "dtype must be one of float32, bfloat16, int8, got torch.float16"),
        (lambda: masked(torch.zeros(2**31, 0)), r"sides must be at most 2147483647, got \(2147483648, 0\)"),
        (lambda: masked(NAN), "1 of 48 weights are NaN or infinite; repair the model before packing"),
        (lambda: masked(EYE, EYE < 0), "6 weights are not zero although the mask prunes them; write the masks first"),
        (lambda: masked(HUGE, dtype=torch.bfloat16), "6 weights are too large for bfloat16; pack as float32"),
        (lambda: masked(EYE, dtype=torch.int8, group=32), r"group must be None .one scale per row., 64 or 128 columns, got 32"),
        (lambda: masked(EYE, group=64), "group=64 is for int8 values, the dtype is torch.float32"),
        (
            lambda: BlockSparse.pack(EYE, EYE != 0, height=0, width=1),
            "block: height must be a positive whole number, got 0",
        ),
        (
            lambda: BlockSparse.pack(EYE, EYE != 0, height=1, width=2.0),
            "block: width must be a positive whole number, got 2.0",
        ),
        (lambda: NMSparse.pack(EYE, EYE != 0, n=3, m=2), "nm: 1 <= n <= m <= 256 must hold, got n=3, m=2"),
        (lambda: NMSparse.pack(EYE, EYE != 0, n=1, m=2, share=2), "share must be 1 or 4 outputs, got 2"),
        (lambda: NMSparse.pack(EYE, EYE != 0, n=1, m=3), "8 columns are no multiple of m=3; pack the matrix as Csr or Bitmap"),
        (
            lambda: NMSparse.pack(torch.ones(2, 8), torch.ones(2, 8) > 0, n=2, m=4),
            r"at most 2 of 4 places may be kept in 1 output.s., the mask keeps 4; use Csr",
        ),
        (lambda: choose("blocks"), "no storage format follows from 'blocks'; pass one of the structures"),
        (lambda: from_tensors({"format": "bitmpa"}, {}), "unknown format 'bitmpa'; did you mean 'bitmap'"),
        (lambda: from_tensors([], {}), "unknown format None"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed(call, message):
    with pytest.raises(FormatError, match=message):
        call()


def test_a_matrix_on_another_device_than_its_mask():
    with pytest.raises(FormatError, match="the mask must hold dense values"):
        Csr.pack(EYE, torch.zeros(6, 8, dtype=torch.bool, device="meta"))


def test_more_blocks_than_int32_can_number(monkeypatch):
    monkeypatch.setattr(block, "LARGEST", 5)
    with pytest.raises(FormatError, match="at most 5 blocks can be numbered, got 6; use larger blocks"):
        BlockSparse.pack(EYE, EYE != 0, height=1, width=1)


def packed(kind, dtype=torch.float32):
    """A small packed matrix of 6 x 10 (nm: 6 x 12) with ragged edges."""
    rng = torch.Generator().manual_seed(3)
    mask = torch.rand(6, 12 if kind == "nm" else 10, generator=rng) < 0.4
    weight = torch.randn(mask.shape, generator=rng).abs() * mask + mask
    if kind == "block":
        return BlockSparse.pack(weight, mask, height=4, width=3, dtype=dtype)
    if kind == "nm":
        mask = torch.tensor([True, True, False]).repeat(6, 4)
        return NMSparse.pack(torch.ones(6, 12) * mask, mask, n=2, m=3, share=4, dtype=dtype)
    return FORMATS[kind].pack(weight, mask, dtype=dtype)


def number(name, value):
    return lambda meta, tensors: meta.__setitem__(name, value)


def entry(name, at, value):
    def change(meta, tensors):
        tensors[name] = tensors[name].to(
            torch.int32 if tensors[name].dtype == torch.uint16 else tensors[name].dtype, copy=True
        )
        tensors[name][at] = value

    return change


def columns(at, value):
    """Change a column and keep the 16 bits."""

    def change(meta, tensors):
        wide = tensors["columns"].int()
        wide[at] = value
        tensors["columns"] = wide.to(torch.uint16)

    return change


def swap(name, function):
    return lambda meta, tensors: tensors.__setitem__(name, function(tensors[name]))


DAMAGE = [
    ("csr", number("format", "block"), "format must be 'csr', got 'block'"),
    ("csr", lambda m, t: m.pop("rows"), "the number 'rows' is missing"),
    ("csr", number("height", 3), "unknown number 'height'; known: format, dtype, rows, cols"),
    ("csr", number("dtype", "float64"), "dtype must be one of float32, bfloat16, int8, got 'float64'"),
    ("csr", number("rows", -1), "rows must be a whole number up to 2147483647, got -1"),
    ("csr", number("cols", 2**31), "cols must be a whole number up to 2147483647, got 2147483648"),
    ("csr", number("rows", True), "rows must be a whole number up to 2147483647, got True"),
    ("csr", number("rows", 7), r"row_starts must have the shape \(8,\), got \(7,\)"),
    ("csr", number("dtype", "bfloat16"), "values must be bfloat16, got torch.float32"),
    ("csr", lambda m, t: t.pop("columns"), "the tensor 'columns' is missing"),
    ("csr", lambda m, t: t.__setitem__("scales", t["values"]), "unknown tensor 'scales'; known: values, columns"),
    ("csr", lambda m, t: t.__setitem__("values", [1.0]), "values must be a dense tensor"),
    ("csr", swap("columns", lambda t: t.int()), "columns must be uint16, got torch.int32"),
    ("csr", swap("columns", lambda t: t[:-1]), r"columns must have the shape \(\d+,\), got"),
    ("csr", swap("values", lambda t: t[None]), r"values must have the shape \(\d+,\), got \(1, \d+\)"),
    ("csr", entry("row_starts", 0, 1), "row_starts must begin with 0, got 1"),
    ("csr", entry("row_starts", -1, 9), r"row_starts must end with \d+, the number of entries, got 9"),
    ("csr", entry("row_starts", 2, -5), "row_starts must not decrease, they do 1 times"),
    ("csr", columns(0, 10), r"columns must lie in 0 \.\.\. 9, 1 do not"),
    ("csr", columns(1, 0), "columns must increase strictly inside a row, 1 do not"),
    ("csr", entry("values", 0, float("inf")), r"1 of \d+ values are NaN or infinite"),
    ("block", number("height", 0), "height must be a positive whole number, got 0"),
    ("block", number("width", 4), r"values must have the shape \(\d+, 4, 4\), got"),
    ("block", number("rows", 9), r"row_starts must have the shape \(4,\), got \(3,\)"),
    ("block", entry("columns", 0, -1), r"columns must lie in 0 \.\.\. 3, 1 do not"),
    ("block", entry("columns", 1, 0), "columns must increase strictly inside a row, 1 do not"),
    ("block", swap("row_starts", lambda t: t.long()), "row_starts must be int32, got torch.int64"),
    ("block", entry("values", (-1, 3, 0), 1.0), "values below the last row of the matrix must be zero"),
    ("block", entry("values", (-1, 0, 2), 1.0), "values right of the last column of the matrix must be zero"),
    ("bitmap", entry("bits", (2, 1), 128), "bits beyond the last column must be zero, they are not in 1 rows"),
    ("bitmap", swap("values", lambda t: t[1:]), r"as many bits as values must be set, got \d+ bits and \d+ values"),
    ("bitmap", swap("bits", lambda t: t[:, :1]), r"bits must have the shape \(6, 2\), got \(6, 1\)"),
    ("nm", number("share", 3), "share must be 1 or 4 outputs, got 3"),
    ("nm", number("m", 1), "1 <= n <= m <= 256 must hold, got n=2, m=1"),
    ("nm", number("cols", 13), "13 columns are no multiple of m=3"),
    ("nm", number("cols", 15), r"values must have the shape \(2, 10, 4\), got \(2, 8, 4\)"),
    ("nm", entry("positions", (0, 0), 0b0111), r"positions must lie in 0 \.\.\. 2, 1 do not"),
    ("nm", entry("positions", (0, 0), 0b0101), "positions must increase strictly inside a group, 2 do not"),
    ("nm", entry("values", (1, 0, 3), 1.0), "values below the last row of the matrix must be zero, 1 are not"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "message"), DAMAGE)
def test_damaged_tensors(kind, change, message):
    whole = packed(kind)
    meta, tensors = whole.meta(), dict(whole.tensors())
    from_tensors(meta, tensors)
    change(meta, tensors)
    with pytest.raises(FormatError, match=message):
        FORMATS[kind].from_tensors(meta, tensors)


def test_filler_bits_of_positions():
    mask = torch.tensor([[True, False, False]])
    whole = NMSparse.pack(mask.float(), mask, n=1, m=3)
    damaged = {**whole.tensors(), "positions": torch.tensor([[4]], dtype=torch.uint8)}
    with pytest.raises(FormatError, match="the filler bits of positions must be zero, 1 are not"):
        NMSparse.from_tensors(whole.meta(), damaged)


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_damaged_scales(kind):
    whole = packed(kind, torch.int8)
    meta, tensors = whole.meta(), whole.tensors()
    for scales, message in (
        (tensors["scales"].double(), "scales must be float32, got torch.float64"),
        (tensors["scales"][:-1], r"scales must have the shape .*, got"),
        (-tensors["scales"], r"scales must be finite and positive, at most 2.679e.36; the tensors are damaged"),
        (tensors["scales"] * 0 + 3e36, "scales must be finite and positive"),
    ):
        with pytest.raises(FormatError, match=message):
            from_tensors(meta, {**tensors, "scales": scales})
    values = tensors["values"].clone()
    values.view(-1)[0] = -128
    with pytest.raises(FormatError, match=r"values must lie in -127 \.\.\. 127, found -128"):
        from_tensors(meta, {**tensors, "values": values})


def test_scales_and_dtype_go_together():
    whole = packed("csr", torch.int8)
    parts = {"columns": whole.columns, "row_starts": whole.row_starts}
    with pytest.raises(FormatError, match="int8 values need scales, got none"):
        Csr(whole.rows, whole.cols, values=whole.values, **parts).check()
    with pytest.raises(FormatError, match="scales belong to int8 values, these are torch.float32"):
        Csr(whole.rows, whole.cols, values=whole.values.float(), **parts, scales=whole.scales).check()


def test_meta_must_be_a_mapping():
    with pytest.raises(FormatError, match="csr: meta must be a mapping, got list"):
        Csr.from_tensors([], {})


def test_a_bitmap_counts_its_bits():
    whole = packed("bitmap")
    assert isinstance(whole, Bitmap)
    assert whole.mask().sum() == whole.values.numel()
