"""Small packed files for the tests, and a writer that signs whatever it is given."""

import hashlib
import json

import torch
from safetensors.torch import save

from openwork.formats import Bitmap, BlockSparse, Csr, NMSparse


def content():
    """One of each format and dtype, ragged, with an empty one and a dense rest."""
    rng = torch.Generator().manual_seed(1)
    mask = torch.rand(7, 13, generator=rng) < 0.4
    weight = torch.randn(7, 13, generator=rng) * mask
    runs = torch.tensor([True, False, True, False]).repeat(6, 3)
    return {
        "a.weight": BlockSparse.pack(weight, mask, height=4, width=3),
        "b.weight": Csr.pack(weight, mask, dtype=torch.int8),
        "c.weight": Bitmap.pack(weight, mask, dtype=torch.bfloat16),
        "d.weight": NMSparse.pack(torch.randn(6, 12, generator=rng) * runs, runs, n=2, m=4, share=4),
        "e.weight": BlockSparse.pack(weight, mask, height=16, width=1, dtype=torch.int8),
        "f.weight": Csr.pack(torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.bool)),
        "bias": torch.randn(7, generator=rng),
        "steps": torch.tensor(12),
    }


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def sign(index):
    plain = {key: value for key, value in index.items() if key != "sha256"}
    return {**plain, "sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def forge(path, tensors, entries, meta=None, **changes):
    """Write tensors and an index with right checksums, whatever they say; ``changes`` replace parts of the index."""
    tensors = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    index = {
        "version": 1,
        "tensors": entries,
        "sums": {n: digest(t) for n, t in tensors.items()},
        "meta": {} if meta is None else meta,
    }
    text = json.dumps(sign({**index, **changes}))
    path.unlink(missing_ok=True)  # truncating would wait for the disk
    path.write_bytes(save(tensors, metadata={"openwork": text}))
    return path


def parts_of(packed):
    """What ``write_packed`` would store: tensors and entries of the index."""
    tensors, entries = {}, {}
    for name, value in packed.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value
            entries[name] = {"format": "dense", "dtype": str(value.dtype)[6:], "shape": list(value.shape)}
        else:
            tensors |= {f"{name}/{part}": t for part, t in value.tensors().items()}
            entries[name] = value.meta()
    return tensors, entries


def same(one, two):
    """Whether two contents are equal to the bit."""
    if list(one) != list(two):
        return False
    for name, value in one.items():
        if type(value) is not type(two[name]):
            return False
        if isinstance(value, torch.Tensor):
            pairs = [(value, two[name])]
        else:
            if value.meta() != two[name].meta():
                return False
            pairs = list(zip(value.tensors().values(), two[name].tensors().values(), strict=True))
        if not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs):
            return False
    return True
