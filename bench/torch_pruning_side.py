"""The same networks cut by Torch-Pruning, when it can be imported: its importances and its iterative pruner.

pip install --no-deps --target FOLDER torch-pruning==1.6.1     and FOLDER in PYTHONPATH
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.data import Batches

NAME = "torch-pruning"
VERSION = "1.6.1"


def importances(names: tuple[str, ...] = ()) -> dict[str, Callable[[], Any]]:
    """Importances by name; empty when the package cannot be imported."""
    if importlib.util.find_spec("torch_pruning") is None:
        return {}
    import torch_pruning

    kinds = torch_pruning.importance
    made = {
        "GroupMagnitude": lambda: kinds.GroupMagnitudeImportance(p=2),
        "GroupMagnitude, p=1": lambda: kinds.GroupMagnitudeImportance(p=1),
        "BNScale": kinds.BNScaleImportance,
        "LAMP": kinds.LAMPImportance,
        "FPGM": kinds.FPGMImportance,
        "Random": kinds.RandomImportance,
        "GroupTaylor": kinds.GroupTaylorImportance,
        "GroupHessian": kinds.GroupHessianImportance,
    }
    return {name: make for name, make in made.items() if not names or name in names}


def cut(dense: nn.Module, x: Tensor, importance: Any, batches: Batches, share: float, seed: int) -> nn.Module:
    """Their pruner in 400 small steps over the whole network until the budget is reached, as their scripts do."""
    import torch_pruning

    torch.manual_seed(seed)
    model = copy.deepcopy(dense)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model, x, importance, global_pruning=True, pruning_ratio=1.0, iterative_steps=400, ignored_layers=head
        )
        _gradients(model, importance, batches)
        count = whole = torch_pruning.utils.count_ops_and_params(model, x)[0]
        while count > share * whole:
            pruner.step()
            count = torch_pruning.utils.count_ops_and_params(model, x)[0]
    model.zero_grad()
    return model


def _gradients(model: nn.Module, importance: Any, batches: Batches) -> None:
    """What Taylor and Hessian importances read: as many inputs as ours see."""
    name = type(importance).__name__
    model.eval()
    if "Taylor" in name:
        for i in range(4):
            x, y = batches.batch(i)
            F.cross_entropy(model(x), y).backward()
    elif "Hessian" in name:
        importance.zero_grad()
        x, y = batches.batch(0)
        for i in range(64):
            model.zero_grad()
            F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
            importance.accumulate_grad(model)
