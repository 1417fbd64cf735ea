"""Merge low-rank adapters into pruned weights without filling their zeros.

An ordinary merge adds ``scale B A`` everywhere and makes a pruned layer dense. Here the product is masked first; what
it loses by that is reported. Training with the mask inside (``Perp`` with ``mask_lora``) loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.engine.write import write_edits, write_masks
from openwork.errors import RecipeError

Factors = Mapping[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def merge_low_rank(
    model: nn.Module, masks: Mapping[str, Tensor], factors: Factors, scale: float = 1.0
) -> dict[str, float]:
    """``W <- W + scale M * (B A)`` in place, for weights stored as ``[out, in]``.

    Args:
        model: pruned.
        masks: parameter name -> bool, True = kept; a weight without one takes the whole product.
        factors: parameter name -> (A ``[rank, in]``, B ``[out, rank]``).
        scale: alpha / rank.

    Returns:
        Parameter name -> share of the squared product that the mask removed: 0 nothing, 1 everything.

    Raises:
        RecipeError: an unknown parameter, or factors of other shapes.
        DivergedError: a product that is not finite; nothing is written then.
    """
    named = dict(model.named_parameters())
    products = {}
    for name, (down, up) in factors.items():
        if name not in named:
            raise RecipeError(f"merge_low_rank: the model has no parameter {name}")
        shape = tuple(named[name].shape)
        if down.ndim != 2 or up.ndim != 2 or (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
            raise RecipeError(
                f"merge_low_rank: {name} is {shape}, but the factors are {tuple(up.shape)} and {tuple(down.shape)}"
            )
        products[name] = scale * up.float() @ down.float()
    return _merge(named, masks, products)


@torch.no_grad()
def merge_peft(model: Any, masks: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, float]]:
    """Merge the active LoRA adapters of a PEFT model under the masks, and take the adapters away.

    Args:
        model: a ``PeftModel`` with LoRA layers around linear ones (and Conv1D).
        masks: of pruning, by the parameter names of the model before PEFT wrapped it.

    Returns:
        The model without adapters, with the parameter names it had; and per weight the share of the update that the
        mask removed.

    Raises:
        RecipeError: no LoRA layer, masks for parameters that the model does not have, adapters merged already, or
            kinds of adapters that are no sum of a weight and a product (DoRA).
    """
    inner = getattr(getattr(model, "base_model", None), "model", None)
    layers = {
        n: m for n, m in (inner.named_modules() if isinstance(inner, nn.Module) else ()) if hasattr(m, "lora_A")
        and hasattr(m, "get_delta_weight")
    }  # fmt: skip
    if not layers:
        raise RecipeError(f"merge_peft needs a PeftModel with LoRA layers, got {type(model).__name__} without any")
    products = {}
    for name, layer in layers.items():
        if getattr(layer, "merged", False):
            raise RecipeError(f"{name}: its adapter was merged already, which filled the zeros; load it again")
        if any(getattr(layer, "use_dora", {}).values()):
            raise RecipeError(
                f"{name}: DoRA rescales whole rows, so it is no masked sum; only plain LoRA can be merged"
            )
        deltas = [layer.get_delta_weight(a) for a in layer.active_adapters if a in layer.lora_A]
        if deltas:
            products[f"{name}.weight"] = torch.stack([d.float() for d in deltas]).sum(0)
    base = model.unload()
    named = dict(base.named_parameters())
    strange = [n for n in masks if n not in named]
    if strange:
        raise RecipeError(f"merge_peft: the masks name {strange[0]}, which the model without adapters does not have")
    return base, _merge(named, masks, products)


def _merge(
    named: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], products: Mapping[str, Tensor]
) -> dict[str, float]:
    edits, lost = {}, {}
    for name, product in products.items():
        weight = named[name]
        mask = masks[name].to(weight.device) if name in masks else torch.ones_like(weight, dtype=torch.bool)
        masked = product.to(weight.device) * mask
        whole = float(product.double().square().sum())
        lost[name] = 1 - float(masked.double().square().sum()) / whole if whole else 0.0
        edits[name] = (weight.detach().float() + masked).to(weight.dtype)
    write_edits(named, edits)
    write_masks(named, {n: masks[n].to(named[n].device) for n in edits if n in masks})
    return lost
