"""Forged weights never reach a kernel, and sound ones are read through once."""

import gc

import pytest
import torch
from tests.unit.kernels.making import block, close, conv, formats, layouts, linear
from tests.unit.runtime.models import always, mlp

import openwork as ow
from openwork.kernels import Columns, Layout, layout_of, trust
from openwork.kernels.layout import bits_layout, block_layout, columns_of_dense, int8_layout
from openwork.kernels.trust import demand_sound

OPS = torch.ops.openwork


def blocks(dtype=torch.float32, run=48):
    """Blocks of depth 8, or of as many inputs as lie side by side."""
    torch.manual_seed(0)
    f = block(32, 48, 16, 8, dtype, density=2)
    return block_layout(f.values, f.columns, f.row_starts, f.rows, f.cols, run=run, scales=f.scales)


def matrix():
    torch.manual_seed(0)
    mask = torch.rand(20, 45) < 0.5
    return torch.randn(20, 45) * mask, mask


def columns(dtype=torch.float32):
    c = columns_of_dense(*matrix())
    if dtype == torch.int8:
        values = torch.randint(-9, 9, c.values.shape, dtype=torch.int8)
        c = Columns(c.rows, c.cols, c.groups, c.inputs, values, torch.rand(20))
    # Several chunks, the last of them narrower, and several parts.
    chunk, chunks = 16, -(-c.cols // 16)
    slot = c.inputs // chunk * c.rows + c.groups
    by = (slot * c.cols + c.inputs).argsort()
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(slot, minlength=chunks * c.rows).cumsum(0)])
    order = torch.arange(c.rows, dtype=torch.int32).repeat(chunks)
    scales = () if c.scales is None else (c.scales,)
    tensors = (c.values[by].contiguous(), (c.inputs[by] % chunk).to(torch.uint16), starts, order, *scales)
    return Layout("column", tensors, (chunk, 1, c.rows, 8, c.cols))


def bits(dtype=torch.float32):
    c = columns_of_dense(*matrix())
    if dtype == torch.int8:
        values = torch.randint(-9, 9, c.values.shape, dtype=torch.int8)
        c = Columns(c.rows, c.cols, c.groups, c.inputs, values, torch.rand(20))
    return bits_layout(c)


def dots(dtype=torch.int8):
    torch.manual_seed(0)
    f = block(32, 48, 16, 8, dtype, density=2, by_row=True)
    return int8_layout(f.values, f.columns, f.row_starts, f.rows, f.cols, scales=f.scales)


MAKE = {"block": blocks, "column": columns, "bits": bits, "int8": dots}


def at(index, change):
    """The layout with one tensor changed."""

    def forge(layout):
        tensors = [t.clone() for t in layout.tensors]
        tensors[index] = change(tensors[index])
        return Layout(layout.kind, tuple(tensors), layout.sizes)

    return forge


def put(index, place, value):
    """The layout with one number of one tensor changed."""

    def change(t):
        if t.dtype == torch.uint16:
            t.view(torch.int16)[place] = value
        else:
            t[place] = value
        return t

    return at(index, change)


def size(place, value):
    """The layout with another size."""
    return lambda a: Layout(a.kind, a.tensors, (*a.sizes[:place], value, *a.sizes[place + 1 :]))


def apart(t):
    """The same numbers, every other one in memory."""
    return torch.stack([t, t], -1)[..., 0]


FORGED = [
    # numbers that lead out of the weights or the inputs
    ("block", put(1, 0, 48), "inputs must be multiples of the depth 8 from 0 to below 48"),
    ("block", put(1, 0, 65535), "inputs must be multiples of the depth"),
    ("block", put(1, 0, -8), "inputs must be multiples of the depth"),
    ("block", put(1, 0, 3), "inputs must be multiples of the depth"),
    ("block", put(2, -1, 1 << 40), "starts must rise from 0 to 12, got 0 to 1099511627776"),
    ("block", put(2, 0, -1), "starts must rise from 0"),
    ("block", put(2, 1, 1 << 40), "starts must rise from 0"),
    ("int8", put(1, 0, 48), "inputs must be multiples of the depth 8 from 0 to below 48"),
    ("int8", put(2, -1, 1 << 40), "starts must rise from 0 to 12, got 0 to 1099511627776"),
    ("int8", at(3, lambda t: t[1:].clone()), "sums must hold 32 numbers, got 31"),
    ("int8", at(3, lambda t: t.long()), "sums must be torch.int32 in 1 dimensions, got torch.int64"),
    ("int8", at(0, lambda t: t.flatten(2)), r"values must have the shape \(12, 2, 16, 4\), got \(12, 2, 64\)"),
    ("int8", size(1, 6), "int8 blocks have a depth that 4 divides and at most 65536 inputs, got 6 and 48"),
    (
        "int8",
        lambda a: Layout("int8", (a.tensors[0].float(), *a.tensors[1:4]), a.sizes),
        "values of the kind int8 must be int8, got torch.float32",
    ),
    ("column", put(1, 0, -1), "inputs must lie inside their chunk of 16 and below 45"),
    ("column", put(1, -1, 14), "inputs must lie inside their chunk"),
    ("column", put(2, -1, 1 << 40), "starts must rise from 0"),
    ("column", put(2, 3, -(1 << 40)), "starts must rise from 0"),
    ("column", put(3, 0, 1 << 20), "order must name each of the 20 groups once in every chunk"),
    ("column", put(3, 0, -1), "order must name each"),
    ("column", put(3, 0, 1), "order must name each"),
    ("column", at(3, lambda t: t.view(3, 20).flip(1).flatten()), "order must name each of the .* part by part"),
    ("bits", put(1, 0, 255), "starts must leave every row as many values as it has bits"),
    ("bits", put(2, 1, 1 << 40), "starts must rise from 0"),
    ("bits", put(2, -1, 1 << 40), "starts must rise from 0"),
    # sums of starts that leave the range of 64 bits
    (
        "bits",
        at(2, lambda t: torch.cat([t[:1], torch.tensor([2**63 - 1, -(2**63), -1]), t[4:]])),
        "starts must rise from 0",
    ),
    # types, shapes and the order in memory
    *((k, at(0, lambda t: t.double()), "values must be float32, bfloat16 or int8, got torch.float64") for k in MAKE),
    *((k, at(0, apart), "values must be contiguous and on the processor") for k in MAKE),
    *((k, at(2, apart), "starts must be contiguous and on the processor") for k in MAKE),
    *((k, at(2, lambda t: t.int()), "starts must be torch.int64 in 1 dimensions, got torch.int32") for k in MAKE),
    *((k, at(2, lambda t: t[:-1].clone()), "starts must hold .* numbers, got") for k in MAKE),
    *((k, at(2, lambda t: t[None]), "starts must be torch.int64 in 1 dimensions, got torch.int64 in 2") for k in MAKE),
    ("block", at(1, lambda t: t.long()), "inputs must be torch.int32 in 1 dimensions, got torch.int64"),
    ("column", at(1, lambda t: t.long()), "inputs must be torch.uint16 in 1 dimensions, got torch.int64"),
    ("column", at(3, lambda t: t.long()), "order must be torch.int32 in 1 dimensions, got torch.int64"),
    ("column", at(3, lambda t: t[:-1].clone()), "order must hold 60 numbers, got 59"),
    ("bits", at(1, lambda t: t.bool()), "bits must be torch.uint8 in 2 dimensions, got torch.bool"),
    ("bits", at(1, lambda t: t[:, 1:].clone()), r"bits must have the shape \(20, 6\), got \(20, 5\)"),
    ("block", at(1, lambda t: t[1:].clone()), "inputs must hold 12 numbers, got 11"),
    ("column", at(1, lambda t: t[1:].clone()), "inputs must hold .* numbers, got"),
    ("block", at(0, lambda t: t[1:].clone()), "inputs must hold 11 numbers, got 12"),
    ("block", at(0, lambda t: t[:, 1:].clone()), r"values must have the shape \(12, 8, 16\), got \(12, 7, 16\)"),
    ("block", at(0, lambda t: t[0, 0, 0]), "values must have the shape"),
    ("block", at(0, lambda t: t.view(12, 4, 16, 2)), "values must have the shape"),
    ("column", at(0, lambda t: t[:, 0].clone()), "values must have the shape"),
    ("bits", at(0, lambda t: t[:, None]), "values must have one dimension and 16 more than are stored"),
    ("bits", at(0, lambda t: t[:3].clone()), "values must have one dimension and 16 more than are stored"),
    ("bits", at(0, lambda t: t[:-16].clone()), "starts must rise from 0"),
    *((k, lambda a: Layout(a.kind, (), a.sizes), "begin with their values, got no tensors") for k in MAKE),
    *((k, lambda a: Layout(a.kind, a.tensors[:-1], a.sizes), "are the tensors values, .*, got") for k in MAKE),
    # sizes
    *(
        (k, lambda a: Layout(a.kind, a.tensors, a.sizes[1:]), "weights have the sizes .* outputs, .*, got")
        for k in MAKE
    ),
    *((k, size(2, -1), "the size outputs of .* weights must be 0 to 4611686018427387904, got -1") for k in MAKE),
    *((k, size(0, 0), "the size .* of .* weights must be 1 to 65536, got 0") for k in MAKE),
    *((k, size(2, 1 << 61), "starts must hold|order must hold|bits must have the shape") for k in MAKE),
    ("block", size(2, 33), "starts must hold 4 numbers, got 3"),
    ("block", size(1, 1 << 20), "the depth of blocks must be at most 65536, got 1048576"),
    ("column", size(1, 3), "values must have the shape"),
    ("column", size(3, 1 << 40), "the size part of column weights must be 1 to 65536"),
    # another kind
    *(
        (k, lambda a: Layout("nope", a.tensors, a.sizes), "must be one of block, column, bits, int8, got 'nope'")
        for k in MAKE
    ),
]


@pytest.mark.parametrize(("kind", "forge", "words"), FORGED)
def test_forged_weights_are_refused(kind, forge, words):
    layout = MAKE[kind]()
    x = torch.randn(7, layout.sizes[-1])
    wanted = linear(x, layout)
    for _ in range(2):  # a refusal is not remembered as a pass
        forged = forge(layout)
        with pytest.raises(ValueError, match=f"sparse_linear: .*({words})"):
            OPS.sparse_linear(x, forged.kind, list(forged.tensors), list(forged.sizes), None, None, "none")
    assert torch.equal(linear(x, layout), wanted)


@pytest.mark.parametrize("kind", MAKE)
def test_forged_scales_are_refused(kind):
    layout = MAKE[kind](torch.int8)
    x = torch.randn(7, layout.sizes[-1])
    linear(x, layout)
    for change, words in (
        (lambda t: t[1:].clone(), "scales must hold"),
        (lambda t: t.double(), "scales must be torch.float32 in 1 dimensions, got torch.float64"),
        (apart, "scales must be contiguous and on the processor"),
    ):
        with pytest.raises(ValueError, match=words):
            linear(x, at(-1, change)(layout))
    with pytest.raises(ValueError, match="are the tensors values, .*, scales, got"):
        linear(x, Layout(layout.kind, layout.tensors[:-1], layout.sizes))


def test_bits_behind_the_inputs_are_refused():
    layout = bits()
    forged = put(1, (0, -1), int(layout.tensors[1][0, -1]) | 128)(layout)
    values, packed, starts = forged.tensors
    more = torch.cat([values[:1], values]), packed, torch.cat([starts[:1], starts[1:] + 1])
    with pytest.raises(ValueError, match="bits behind the last of the 45 inputs must be zero"):
        linear(torch.randn(2, 45), Layout("bits", more, forged.sizes))


def test_pairs_of_bfloat16_have_their_own_shape():
    layout = blocks(torch.bfloat16)
    assert layout.tensors[0].shape == (12, 4, 16, 2)
    x = torch.randn(9, 48)
    linear(x, layout)
    with pytest.raises(ValueError, match="values must have the shape"):
        linear(x, at(0, lambda t: t[..., :1].clone())(layout))
    wide = blocks(torch.int8)
    with pytest.raises(ValueError, match="values must have the shape"):
        linear(x, at(0, lambda t: t.view(12, 4, 16, 2))(wide))


def test_forged_weights_of_convolutions_are_refused():
    layout, x = blocks(run=12), torch.randn(2, 12, 5, 5)
    window = ([2, 2], [1, 1], [0, 0], [1, 1])
    conv(x, layout, None, None, "none", *window)
    with pytest.raises(ValueError, match="sparse_conv2d: inputs must be multiples of the depth 4"):
        conv(x, put(1, 0, 48)(layout), None, None, "none", *window)
    with pytest.raises(
        ValueError, match="sparse_conv2d: the kind of weights must be one of block, column, int8, got 'nope'"
    ):
        conv(x, Layout("nope", layout.tensors, layout.sizes), None, None, "none", *window)
    single, x = bits(), torch.randn(2, 45, 3, 3)
    linear(torch.randn(2, 45), single)  # sound, but not for convolutions
    with pytest.raises(
        ValueError, match="sparse_conv2d: the kind of weights must be one of block, column, int8, got 'bits'"
    ):
        conv(x, single, None, None, "none", [1, 1])


def test_windows_that_no_image_has_are_refused():
    layout, x = blocks(run=12), torch.randn(2, 12, 5, 5)
    for place, wrong in ((0, [0, 2]), (1, [0, 1]), (1, [1]), (2, [-1, 0]), (3, [1, 0]), (3, [1, 1, 1])):
        window = [[2, 2], [1, 1], [0, 0], [1, 1]]
        window[place] = wrong
        with pytest.raises(ValueError, match="sparse_conv2d: kernel, stride and dilation must be two numbers from 1"):
            conv(x, layout, None, None, "none", *window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_every_layout_of_every_format_is_sound(isa, dtype):
    for rows, cols in ((33, 72), (1, 4), (64, 300), (7, 1)):
        for fmt in formats(rows, cols, dtype):
            for layout in layouts(fmt):
                demand_sound("sparse_linear", layout.kind, list(layout.tensors), list(layout.sizes))
    empty = ow.formats.Csr.pack(torch.zeros(5, 8), torch.zeros(5, 8, dtype=torch.bool), dtype=dtype)
    for few in (False, True):
        layout = layout_of(empty, "column", run=8, few=few)
        demand_sound("sparse_linear", layout.kind, list(layout.tensors), list(layout.sizes))


@pytest.fixture
def examined(monkeypatch):
    """How often weights were read through."""
    seen, examine = [], trust._examine
    monkeypatch.setattr(trust, "_examine", lambda *args: (seen.append(args[1]), examine(*args)))
    return seen


@pytest.mark.parametrize("kind", MAKE)
def test_weights_are_read_through_once(kind, examined):
    layout = MAKE[kind]()
    x = torch.randn(7, layout.sizes[-1])
    wanted = linear(x, layout)
    for _ in range(3):
        assert torch.equal(linear(x, layout), wanted)
    assert len(examined) == 1
    key, values = id(layout.tensors[0]), layout.tensors[0]
    assert key in trust._known
    values.neg_()
    if kind == "int8":
        layout.tensors[3].neg_()
    close(linear(x, layout), -wanted.double())
    assert len(examined) == 2
    del values
    layout = None
    gc.collect()
    assert key not in trust._known


@pytest.mark.parametrize("kind", MAKE)
def test_sound_weights_are_not_trusted_when_they_change(kind):
    last = {"block": 2, "column": 2, "bits": 2, "int8": 2}[kind]
    x = torch.randn(7, MAKE[kind]().sizes[-1])
    layout = MAKE[kind]()
    linear(x, layout)
    layout.tensors[last][-1] += 1
    with pytest.raises(ValueError, match="starts must rise from 0"):
        linear(x, layout)
    layout = MAKE[kind]()
    linear(x, layout)
    layout.tensors[last].data = layout.tensors[last] * 2
    with pytest.raises(ValueError, match="starts must rise from 0"):
        linear(x, layout)
    layout = MAKE[kind]()
    linear(x, layout)
    for change in (lambda t: t[:-1], lambda t: t[None], lambda t: t.view(torch.float64)):
        whole = layout.tensors[last].data
        layout.tensors[last].data = change(whole)  # at the same place in memory, and uncounted
        with pytest.raises(ValueError, match="starts must"):
            linear(x, layout)
        layout.tensors[last].data = whole
        linear(x, layout)
    with pytest.raises(ValueError, match="sizes|the weights take|must hold|must have the shape"):
        linear(x, size(2, layout.sizes[2] + 64)(layout))
    for _ in range(30):  # a freed tensor leaves its place, and its name, to the next
        tensors = [t.clone() for t in layout.tensors]
        linear(x, Layout(layout.kind, tuple(tensors), layout.sizes))
        tensors[last][-1] += 1
        tensors[last] = tensors[last].clone()
        with pytest.raises(ValueError, match="starts must rise from 0"):
            linear(x, Layout(layout.kind, tuple(tensors), layout.sizes))


def test_weights_whose_changes_are_not_counted_are_read_every_time(examined):
    with torch.inference_mode():
        layout = blocks()
        x = torch.randn(7, 48)
        for _ in range(3):
            linear(x, layout)
        assert len(examined) == 3
        layout.tensors[1][0] = 1 << 20
        with pytest.raises(ValueError, match="inputs must be multiples of the depth"):
            linear(x, layout)


def test_packed_layers_do_not_pay(examined):
    packed = always(mlp())
    for count in (1, 9):
        packed(torch.randn(count, 48))
    assert not examined


def test_an_exported_program_with_forged_weights_is_refused():
    packed = always(mlp(), ow.Block(4, 1))
    x = torch.randn(5, 48)
    module = torch.export.export(packed, (x,)).module()
    torch.testing.assert_close(module(x), packed(x))
    forged = [t for _, t in module.named_buffers() if t.dtype == torch.uint16]
    assert forged
    for tensor in forged:
        tensor.view(torch.int16).fill_(-1)
    with pytest.raises(ValueError, match="inputs must lie inside their chunk"):
        module(x)
