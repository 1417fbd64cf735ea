"""Packed files: what was written comes back to the bit, they are small, and every damage is refused with its place."""

import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from tests.unit.ship.packing import content, forge, parts_of, same
from torch import nn

import openwork as ow
from openwork.core.targets import find_targets
from openwork.errors import FileError, FormatError
from openwork.formats import Csr, choose, matrices, smallest
from openwork.methods import magnitude
from openwork.ship import PackedFile, packed, read_packed, write_packed


def test_round_trip(tmp_path):
    meta = {"layers": ["a", "b"], "nested": {"x": 1.5, "y": None}}
    assert write_packed(tmp_path / "m.safetensors", content(), meta) == tmp_path / "m.safetensors"
    found, described = read_packed(tmp_path / "m.safetensors")
    assert same(found, content())
    assert described == meta
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_equal_content_gives_equal_bytes(tmp_path):
    one, two = (write_packed(tmp_path / n, content(), {"b": 1, "a": 2}).read_bytes() for n in ("one", "two"))
    assert one == two
    write_packed(tmp_path / "three", read_packed(tmp_path / "one")[0], {"b": 1, "a": 2})
    assert (tmp_path / "three").read_bytes() == one


def test_nothing_is_a_packed_file_too(tmp_path):
    assert read_packed(write_packed(tmp_path / "m", {})) == ({}, {})


@pytest.mark.parametrize(
    ("structure", "limit"), [(ow.Element(), 0.14), (ow.Block(32, 32), 0.105), (ow.GroupOf(4, dim=0), 0.12)], ids=repr
)
def test_a_model_at_90_percent_is_small(tmp_path, structure, limit):
    """Biases and the norm stay dense and count, as do header, index and checksums of the real files."""
    model = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384), nn.LayerNorm(384))
    result = ow.prune(model, magnitude(density=0.1, structure=structure))
    state = {n: t.clone() for n, t in model.state_dict().items()}
    save_file(state, tmp_path / "dense.safetensors")
    targets, _ = find_targets(model, ow.Select())
    for target in targets:
        (weight,), (mask,) = matrices(state[target.name], target), matrices(result.masks[target.name], target)
        state[target.name] = choose(structure).pack(weight, mask)
    write_packed(tmp_path / "packed.safetensors", state)
    ratio = (tmp_path / "packed.safetensors").stat().st_size / (tmp_path / "dense.safetensors").stat().st_size
    assert 0.1 < ratio <= limit
    found, _ = read_packed(tmp_path / "packed.safetensors")
    model.load_state_dict({n: t if isinstance(t, torch.Tensor) else t.unpack() for n, t in found.items()})
    assert ow.prune(model, magnitude(density=0.1, structure=structure)).masks.distance(result.masks) == 0


def test_tensors_are_read_one_by_one(tmp_path):
    path = write_packed(tmp_path / "m", content())
    data = bytearray(path.read_bytes())
    with safe_open(path, framework="pt") as file:
        assert file.metadata().keys() == {"openwork"}
    data[-1] ^= 1  # the last bytes are the bits of c.weight
    path.write_bytes(data)
    lazy = PackedFile(path)
    assert list(lazy) == list(content())
    assert len(lazy) == 8
    assert torch.equal(lazy["bias"], content()["bias"])
    with pytest.raises(
        FileError, match=r"m: [bcd].weight: the checksum of .* differs; the file is corrupt, write it again"
    ):
        dict(lazy)
    with pytest.raises(KeyError):
        lazy["g.weight"]


def test_indices_do_not_change_with_the_file(tmp_path):
    path = write_packed(tmp_path / "m", content())
    found, _ = read_packed(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            for part, tensor in value.tensors().items():
                assert part == "values" or torch.equal(tensor, content()[name].tensors()[part])


def test_shared_and_strided_tensors_are_written_whole(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    write_packed(tmp_path / "m", {"a": base, "tied": base, "column": base[:, 2], "turned": base.t()})
    found, _ = read_packed(tmp_path / "m")
    assert same(found, {"a": base, "tied": base, "column": base[:, 2], "turned": base.t()})


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_packed(tmp_path / "m", content())
    before = path.read_bytes()

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(packed, "save_file", full)
    with pytest.raises(FileError, match="m: could not be written .*No space left on device.; nothing was changed"):
        write_packed(path, {})
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(FileError, match="could not be written .Input/output error"):
        write_packed(path, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


WEIGHT = torch.eye(3)
EYE = Csr.pack(WEIGHT, WEIGHT != 0)


@pytest.mark.parametrize(
    ("value", "meta", "message"),
    [
        ({"a": EYE, "a/values": torch.zeros(1)}, None, "a/values: its part a/values has the name of another tensor"),
        ({"": EYE}, None, "names must be text, got ''"),
        ({"a": [1.0]}, None, "a: must be a packed matrix or a dense tensor, got list"),
        ({"a": WEIGHT.to_sparse()}, None, "a: must be a packed matrix or a dense tensor, got Tensor"),
        ({"a": WEIGHT.cfloat()}, None, "a: packed files hold no torch.complex64; convert the tensor first"),
        ({"a": EYE}, {"x": float("nan")}, "meta must be plain data for JSON .Out of range"),
        ({"a": EYE}, {"x": torch.zeros(1)}, "meta must be plain data for JSON .Object of type Tensor"),
        ({"a": EYE}, {1: "x"}, "meta must be plain data for JSON, its keys strings and its sequences lists"),
    ],
)
def test_what_cannot_be_written(tmp_path, value, meta, message):
    with pytest.raises(FileError, match=message):
        write_packed(tmp_path / "m", value, meta)
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_that_was_changed_after_packing_is_not_written(tmp_path):
    broken = Csr.pack(WEIGHT, WEIGHT != 0)
    broken.row_starts[1] = 7
    with pytest.raises(FormatError, match="row_starts must not decrease"):
        write_packed(tmp_path / "m", {"a": broken})


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileError, match="nope: no such file"):
        read_packed(tmp_path / "nope")
    with pytest.raises(FileError, match="no such file"):
        read_packed(tmp_path)
    save_file({"a": WEIGHT}, tmp_path / "plain")
    with pytest.raises(
        FileError, match="plain: not a packed file of openwork, its header holds no index; read it with"
    ):
        read_packed(tmp_path / "plain")
    (tmp_path / "bad").write_bytes(save({}, metadata={"openwork": '{"version": NaN}'}))
    with pytest.raises(FileError, match="bad: the index in its header is not JSON .NaN is not JSON"):
        read_packed(tmp_path / "bad")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path, share):
    path = write_packed(tmp_path / "m", content())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        FileError, match=r"m: not a whole safetensors file .*it is truncated or foreign, write it again"
    ):
        read_packed(path)


def test_an_unsigned_index(tmp_path):
    path = write_packed(tmp_path / "m", content(), {"model": "one"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b'model\\": \\"one', b'model\\": \\"two'))
    assert path.read_bytes() != data
    with pytest.raises(FileError, match="m: the checksum of the index differs; the file is corrupt, write it again"):
        read_packed(path)


def replaced(name, function):
    return lambda tensors, entries: tensors.__setitem__(name, function(tensors[name]))


FORGED = [
    (lambda t, e: t.pop("b.weight/scales"), {}, "the tensor 'b.weight/scales' is missing; the file is damaged or was"),
    (lambda t, e: t.__setitem__("extra", WEIGHT), {}, "the tensor 'extra' is unknown; the file is damaged or was forged"),
    (lambda t, e: None, {"version": 2}, "the format version must be 1, got 2; it was written by another openwork"),
    (lambda t, e: None, {"version": True}, "the format version must be 1, got True"),
    (lambda t, e: None, {"more": 1}, r"the index must hold tensors, sums, meta and sha256, got \['meta', 'more'"),
    (lambda t, e: None, {"meta": []}, "tensors, sums and meta of the index must be mappings; the file was forged"),
    (lambda t, e: None, {"sums": {}}, "the index must hold one name and one checksum per tensor; the file was forged"),
    (lambda t, e: e["a.weight"].update(format="blocks"), {}, "a.weight: unknown format 'blocks'; known: dense, block"),
    (lambda t, e: e["a.weight"].update(format=None), {}, "a.weight: unknown format None; known: dense, block"),
    (lambda t, e: e["bias"].update(shape=[8]), {}, r"bias: must be float32 \[8\], the file holds torch.float32 \[7\]"),
    (replaced("bias", torch.Tensor.double), {}, r"bias: must be float32 \[7\], the file holds torch.float64 \[7\]"),
    (lambda t, e: (t.update(z=torch.zeros(1).to(torch.float8_e4m3fn)), e.update(z={"format": "dense", "dtype": "None", "shape": [1]})), {}, "z: its dtype is none of those of packed files"),
    (replaced("a.weight/values", torch.Tensor.double), {}, "a.weight: block: values must be float32, got torch.float64; the file"),
    (replaced("a.weight/columns", lambda t: (t.int() + 5).to(torch.uint16)), {}, r"a.weight: block: columns must lie in 0 \.\.\. 4"),
    (replaced("b.weight/scales", lambda t: t * 0), {}, "b.weight: csr: scales must be finite and positive"),
    (replaced("c.weight/bits", torch.zeros_like), {}, "c.weight: bitmap: as many bits as values must be set, got 0 bits"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "index", "message"), FORGED)
def test_forged_files(tmp_path, change, index, message):
    tensors, entries = parts_of(content())
    change(tensors, entries)
    forge(tmp_path / "m", tensors, entries, **index)
    with pytest.raises(FileError, match=r"m: " + message):
        read_packed(tmp_path / "m")


def test_the_writer_of_the_tests_writes_what_openwork_writes(tmp_path):
    one, two = write_packed(tmp_path / "one", content()), forge(tmp_path / "two", *parts_of(content()))
    texts = []
    for path in (one, two):
        with safe_open(path, framework="pt") as file:
            texts.append(json.loads(file.metadata()["openwork"]))
    assert texts[0] == texts[1]
    assert same(read_packed(two)[0], content())


def test_a_tensor_that_cannot_be_read(tmp_path):
    file = PackedFile(write_packed(tmp_path / "m", {"a": WEIGHT, "b": smallest(WEIGHT, WEIGHT != 0)}))

    class Broken:
        def get_tensor(self, name):
            raise OSError("Input/output error")

    file._file = Broken()
    with pytest.raises(FileError, match=r"m: a: a cannot be read .Input/output error"):
        file["a"]
