"""A writer of stranded checkpoints for the tests, written with numpy from the description of the layout."""

import json

import numpy as np
import torch
from safetensors.torch import save_file


def bitmask_parts(dense, two_of_four=False):
    """The tensors of one weight; non-zero entries are kept (2:4: the two largest of four, zeros included)."""
    if two_of_four:
        quads = dense.float().abs().reshape(-1, 4)
        mask = torch.zeros_like(quads, dtype=torch.bool)
        mask.scatter_(1, quads.topk(2).indices, True)
        mask = mask.view(dense.shape)
    else:
        mask = dense != 0
    bits = torch.from_numpy(np.packbits(mask.numpy(), axis=-1, bitorder="little"))
    shape = torch.tensor(dense.shape)
    if two_of_four:
        half = (dense.shape[0], dense.shape[1] // 2)
        return {"compressed": dense[mask].view(half), "bitmask": bits, "shape": shape.view(-1, 1)}
    counts = mask.sum(-1)
    offsets = torch.cumsum(counts, 0) - counts
    return {"compressed": dense[mask], "bitmask": bits, "shape": shape, "row_offsets": offsets}


def strand(folder, state, sparse, *, two_of_four=False, old=False, shards=1, config=None, where="quantization_config"):
    """Write a folder in which the names of ``sparse`` are compressed and the other tensors dense."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, dense in state.items():
        if name in sparse:
            prefix = name if old else name.removesuffix(".weight")
            tensors |= {f"{prefix}.{part}": t.contiguous() for part, t in bitmask_parts(dense, two_of_four).items()}
        else:
            tensors[name] = dense.clone().contiguous()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        placed = {key: names[i % shards] for i, key in enumerate(sorted(tensors))}
        for name in names:
            save_file({k: t for k, t in tensors.items() if placed[k] == name}, folder / name, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    kind = "sparse-24-bitmask" if two_of_four else "sparse-bitmask"
    sparsity = {"format": kind, "sparsity_structure": "2:4" if two_of_four else "unstructured", "targets": ["Linear"]}
    outer = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "sparsity_config": sparsity}
    described = {where: outer} if where else {"sparsity_config": sparsity}
    (folder / "config.json").write_text(json.dumps({**(config or {}), **described}))
    return folder
