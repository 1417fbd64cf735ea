"""Mutated stranded checkpoints: refused with a FileError, or read as tensors of the promised shape."""

import random

import pytest
import torch
from safetensors.torch import load_file, save
from tests.unit.ship.stranding import strand
from tests.unit.ship.test_packed_fuzz import RAW, cast, shape, values

from openwork.errors import FileError
from openwork.ship import read_stranded


@pytest.mark.parametrize("two_of_four", [False, True])
def test_1000_mutated_checkpoints(tmp_path, two_of_four):
    rng, accepted, refused = random.Random(2), 0, []
    dense = torch.randn(5, 12 if two_of_four else 11) * (torch.rand(5, 1) < 0.7)
    folder = strand(
        tmp_path / "m", {"a.weight": dense, "a.bias": torch.randn(5)}, ["a.weight"], two_of_four=two_of_four
    )
    path = folder / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    for i in range(1000):
        if i % 2:
            data = bytearray(whole)
            rng.choice([m for m in RAW if m.__name__ != "header"])(data, rng)
        else:
            name, mutation = rng.choice(sorted(tensors)), rng.choice((values, values, shape, cast))
            data = save({**tensors, name: mutation(tensors[name].clone(), rng).contiguous()})
        path.unlink()
        path.write_bytes(data)
        try:
            found = read_stranded(folder)
        except FileError as problem:
            refused.append(str(problem))
            continue
        accepted += 1
        assert all(t.numel() < 1000 for t in found.values())
    assert 50 < accepted < 900
    assert all(str(folder) in message for message in refused)
