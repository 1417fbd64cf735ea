"""Weights that are not parameters of their layer yet, since a pruning mask or a norm is still computed into them."""

from __future__ import annotations

import torch
from torch import nn

from openwork.errors import OpenworkError

LEFT = {
    "weight_orig": "a mask of torch.nn.utils.prune: call torch.nn.utils.prune.remove(module, 'weight')",
    "weight_g": "torch.nn.utils.weight_norm: call torch.nn.utils.remove_weight_norm(module)",
}


def demand_plain_weights(name: str, module: nn.Module) -> None:
    """Refuse what pruning of torch leaves in a layer until it is removed.

    Raises:
        OpenworkError: a mask or a norm is still computed into the weight, or the weight is a sparse tensor of torch.
    """
    for leaf, what in LEFT.items():
        if leaf in module._parameters:
            raise OpenworkError(f"pack: {name or 'the model'} still carries {what} first")
    for leaf, param in module.named_parameters(recurse=False):
        if param.layout is not torch.strided:
            raise OpenworkError(
                f"pack: {leaf} of {name or 'the model'} must be a dense tensor with zeros in it, got {param.layout}; "
                "use to_dense() first"
            )
