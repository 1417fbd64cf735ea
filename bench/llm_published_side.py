"""The class that the authors of SparseGPT published, on one layer, when a checkout of their repository is at hand."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

Method = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def methods(folder: Path | None, block: int, damp: float) -> dict[str, Method]:
    """``sparsegpt`` as (weight, Gram matrix, density) -> (weight, mask); empty without a folder.

    Args:
        folder: a checkout with ``sparsegpt.py``; it is imported, so it must be one you trust.
        block, damp: what its ``fasterprune`` is called with.
    """
    if folder is None:
        return {}
    sys.path.insert(0, str(folder))  # it imports its own quant.py
    spec = importlib.util.spec_from_file_location("published_sparsegpt", folder / "sparsegpt.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder}: holds no sparsegpt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    @torch.no_grad()
    def sparsegpt(weight: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.copy_(weight)
        solver = module.SparseGPT(layer)
        solver.H = gram.clone()
        with mock.patch("torch.cuda.synchronize"), contextlib.redirect_stdout(io.StringIO()):
            solver.fasterprune(1 - density, blocksize=block, percdamp=damp)
        return layer.weight.data, layer.weight != 0

    return {"sparsegpt": sparsegpt}
