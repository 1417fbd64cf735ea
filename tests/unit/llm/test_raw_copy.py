"""Tensors copied between safetensors files are the same bytes, aligned, and readable by everyone."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from openwork.errors import FileError
from openwork.llm import raw_copy
from openwork.llm.raw_copy import bits, copy_tensors


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    one = {"half": torch.randn(3).bfloat16(), "wide": torch.randn(2, 5, dtype=torch.float64), "none": torch.zeros(0, 4)}
    two = {"flag": torch.tensor([True, False, True]), "full": torch.randn(7, 3), "count": torch.arange(5)}
    two["eighth"] = torch.randn(9).to(torch.float8_e4m3fn)
    save_file(one, tmp_path / "one.safetensors")
    save_file(two, tmp_path / "two.safetensors")
    return tmp_path, one | two, {n: tmp_path / f"{'one' if n in one else 'two'}.safetensors" for n in one | two}


@pytest.mark.parametrize("piece", [1, 5, raw_copy.PIECE])
def test_every_tensor_arrives_as_it_was(files, piece, monkeypatch):
    monkeypatch.setattr(raw_copy, "PIECE", piece)
    folder, tensors, sources = files
    for names in (list(tensors), ["full", "half"], ["none"], []):
        copy_tensors({n: sources[n] for n in names}, folder / "out.safetensors")
        found = load_file(folder / "out.safetensors")
        assert found.keys() == set(names)
        for name in names:
            assert (found[name].dtype, found[name].shape) == (tensors[name].dtype, tensors[name].shape)
            assert torch.equal(found[name].view(torch.uint8), tensors[name].view(torch.uint8))
        data = [t.data_ptr() % t.element_size() for t in found.values() if t.numel()]
        assert not any(data)


def test_the_widest_come_first_so_that_all_are_aligned(files):
    folder, _, sources = files
    copy_tensors(sources, folder / "out.safetensors")
    header, base = raw_copy._header(folder / "out.safetensors")
    assert base % 8 == 0
    for name in sources:
        assert header[name]["data_offsets"][0] % (bits(header[name]["dtype"]) // 8) == 0


def test_a_source_that_was_cut_leaves_no_file(files):
    folder, _, sources = files
    path = folder / "two.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileError, match=r"two.safetensors: became shorter while it was read"):
        copy_tensors(sources, folder / "out.safetensors")
    assert not [p for p in folder.iterdir() if "out" in p.name]
