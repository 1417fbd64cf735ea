"""Ten thousand mutated files: the loader refuses with a FileError or returns something a kernel may walk through.

Half of the files are damaged as bytes; since every byte counts in a checksum, such a file is refused or gives back exactly
what was written. The other half are forgeries with right checksums, so that the checks of indices are alone; what gets
through is unpacked by plain loops that would leave an array if an index did.
"""

import json
import random
import struct

import numpy as np
import pytest
import torch
from tests.unit.ship.packing import content, forge, parts_of, same

from openwork.errors import FileError
from openwork.formats import Bitmap, BlockSparse, Csr, NMSparse
from openwork.ship import read_packed, write_packed

NUMBERS = (-1, 0, 1, 2, 3, 5, 8, 127, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400)
STRANGE = (
    *NUMBERS,
    1.5,
    1e308,
    True,
    False,
    None,
    "",
    "csr",
    "dense",
    "int8",
    "float32",
    [],
    [1],
    {},
    {"format": "csr"},
)


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def flip(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data, rng):
    del data[rng.randrange(len(data)) :]


def lengthen(data, rng):
    data += bytes(rng.randrange(1, 100))


def drop(data, rng):
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 40)]


def overwrite(data, rng):
    at, size = rng.randrange(len(data)), rng.randrange(1, 40)
    data[at : at + size] = rng.choice((b"\xff", b"\x00", b"9", b'"', b"\x80")) * len(data[at : at + size])


def exchange(data, rng):
    size = rng.randrange(1, 64)
    one, two = sorted(rng.randrange(len(data) - size) for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


def length_of_header(data, rng):
    data[:8] = struct.pack(
        "<Q", rng.choice((0, 1, 7, len(data), len(data) - 8, 2**31, 2**63, 2**64 - 1, rng.randrange(10**4)))
    )


def header(data, rng):
    """Change one number or word of the JSON header, with the right length in front."""
    (size,) = struct.unpack("<Q", data[:8])
    try:
        top = json.loads(data[8 : 8 + size])
    except ValueError:  # an earlier mutation hit the header
        return
    name = rng.choice(sorted(top))
    if name == "__metadata__":
        text = top[name]["openwork"]
        at = rng.randrange(len(text))
        top[name]["openwork"] = (
            text[:at] + rng.choice(("", "0", "9", '"', "}", "[", "-", "\\", "é")) + text[at + rng.randrange(2) :]
        )
    else:
        field = rng.choice(("dtype", "shape", "data_offsets"))
        if field == "dtype":
            top[name][field] = rng.choice(("F32", "F64", "I8", "U16", "I32", "BF16", "F8_E4M3", "C64", "X", "BOOL"))
        else:
            values = top[name][field]
            if values and rng.random() < 0.8:
                values[rng.randrange(len(values))] = rng.choice(NUMBERS)
            else:
                values.append(rng.choice(NUMBERS))
    if rng.random() < 0.2:
        top[rng.choice(("z", "bias2", "a.weight"))] = top[name]
    text = json.dumps(top).encode()
    data[: 8 + size] = struct.pack("<Q", len(text)) + text


RAW = (flip, flip, cut, lengthen, drop, overwrite, exchange, length_of_header, header, header)


def small():
    """Files of two entries each, so that a mutation hits something that matters; together every format."""
    whole = content()
    names = list(whole)
    return [{name: whole[name] for name in pair} for pair in zip(names, names[1:] + names[:1], strict=True)]


def test_5000_damaged_files(folder):
    path, rng, accepted, refused = folder / "m", random.Random(0), 0, []
    written = [(write_packed(path, one, {"model": "tiny"}).read_bytes(), one) for one in small()]
    for _ in range(5000):
        whole, one = rng.choice(written)
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2))):
            if len(data) > 200:
                rng.choice(RAW)(data, rng)
        path.unlink()  # truncating would wait for the disk
        path.write_bytes(data)
        try:
            found, meta = read_packed(path)
        except FileError as problem:
            refused.append(str(problem))
            continue
        accepted += 1
        assert same(found, one)
        assert meta == {"model": "tiny"}
    assert accepted < 500
    assert all(message.startswith(f"{path}: ") for message in refused)


def values(tensor, rng):
    """Some entries become extreme, or the neighbour's."""
    flat = tensor.reshape(-1)
    for _ in range(rng.choice((1, 1, 2, 5)) if flat.numel() else 0):
        at = rng.randrange(flat.numel())
        if flat.dtype == torch.bool:
            flat[at] = ~flat[at]
        elif flat.is_floating_point():
            flat[at] = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e38, -0.0))
        elif flat.dtype == torch.uint16:
            flat.view(torch.int16)[at] = rng.choice((-1, 0, 1, 4, 5, 12, 13, 14, 2**15 - 1, -(2**15)))
        else:
            low, high = torch.iinfo(flat.dtype).min, torch.iinfo(flat.dtype).max
            flat[at] = rng.choice(
                (low, high, low + 1, max(low, -1), 0, 1, 2, 3, 7, 100, int(flat[rng.randrange(flat.numel())]))
            )
    return tensor


def shape(tensor, rng):
    choices = (
        lambda t: t[:-1] if t.ndim else t, lambda t: t[None], lambda t: t.reshape(-1), lambda t: t[:0] if t.ndim else t,
        lambda t: torch.cat([t, t]) if t.ndim else t, lambda t: t.transpose(0, -1) if t.ndim > 1 else t,
    )  # fmt: skip
    return rng.choice(choices)(tensor)


def cast(tensor, rng):
    return tensor.to(
        rng.choice(
            (torch.float32, torch.int8, torch.int32, torch.int64, torch.uint16, torch.uint8, torch.float64, torch.bool)
        )
    )


def tamper(tensors, entries, rng):
    """One forgery."""
    name, kind = rng.choice(sorted(tensors)), rng.random()
    if kind < 0.5:
        tensors[name] = values(tensors[name].clone(), rng)
    elif kind < 0.6:
        tensors[name] = rng.choice((shape, cast))(tensors[name], rng)
    elif kind < 0.68:
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif kind < 0.72:
        del tensors[name]
    elif kind < 0.75:
        tensors[name + rng.choice(("", "/scales", "2"))] = tensors[rng.choice(sorted(tensors))]
    else:
        entry = entries[rng.choice(sorted(entries))]
        field = rng.choice((*entry, "group", "n"))
        if rng.random() < 0.1:
            entry.pop(field, None)
        else:
            entry[field] = rng.choice(STRANGE)


def walk(packed):
    """Unpack by plain loops over numpy arrays; an index beyond its array raises, a negative one is caught."""
    dense = np.zeros((packed.rows, packed.cols))
    stored = packed.values.float().numpy()

    def put(row, col, value):
        assert 0 <= row < packed.rows
        assert 0 <= col < packed.cols
        assert dense[row, col] == 0
        dense[row, col] = value

    if isinstance(packed, BlockSparse):
        starts = packed.row_starts.tolist()
        for down in range(len(starts) - 1):
            for i in range(starts[down], starts[down + 1]):
                for y, x in np.argwhere(stored[i]):
                    put(down * packed.height + y, int(packed.columns[i]) * packed.width + x, stored[i, y, x])
    elif isinstance(packed, Csr):
        starts = packed.row_starts.tolist()
        for row in range(packed.rows):
            for i in range(starts[row], starts[row + 1]):
                put(row, int(packed.columns[i]), stored[i])
    elif isinstance(packed, Bitmap):
        bits = np.unpackbits(packed.bits.numpy(), axis=1, bitorder="little")
        for i, (row, col) in enumerate(np.argwhere(bits)):
            put(row, col, stored[i])
    elif isinstance(packed, NMSparse):
        width = (packed.m - 1).bit_length()
        bits = np.unpackbits(packed.positions.numpy(), axis=1, bitorder="little")
        for strip, j in np.ndindex(stored.shape[:2]):
            place = sum(int(b) << k for k, b in enumerate(bits[strip, j * width : (j + 1) * width]))
            for lane in np.flatnonzero(stored[strip, j]):
                put(strip * packed.share + lane, j // packed.n * packed.m + place, stored[strip, j, lane])
    if packed.scales is None:
        assert np.array_equal(dense, packed.unpack().double().numpy())
    else:
        assert bool(torch.isfinite(packed.unpack()).all())


@pytest.mark.parametrize("quarter", range(4))
def test_5000_forged_files(folder, quarter):
    path, rng, accepted, refused = folder / "m", random.Random(1 + quarter), 0, []
    written = [parts_of(one) for one in small()]
    for _ in range(1250):
        whole = rng.choice(written)
        tensors, entries = dict(whole[0]), {name: dict(entry) for name, entry in whole[1].items()}
        for _ in range(rng.choice((1, 1, 2))):
            if tensors:
                tamper(tensors, entries, rng)
        forge(path, tensors, entries)
        try:
            found, _ = read_packed(path)
        except FileError as problem:
            refused.append(str(problem))
            continue
        accepted += 1
        for value in found.values():
            if not isinstance(value, torch.Tensor) and value.rows * value.cols < 10**5:
                walk(value)
    assert 100 < accepted < 1000
    assert all(message.startswith(f"{path}: ") for message in refused)
