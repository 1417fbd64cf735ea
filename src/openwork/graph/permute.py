"""The units of a group in another order, in every tensor that they lie in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from openwork.errors import StructureError
from openwork.graph.groups import Group


def permuted(tensors: Mapping[str, Tensor], group: Group, order: Tensor) -> dict[str, Tensor]:
    """The tensors of a group with unit ``order[j]`` at the place of unit j; copies, by name.

    Args:
        tensors: parameters and buffers of the model.
        group: of its graph.
        order: int64 ``[n_units]``, a permutation.

    Raises:
        StructureError: no permutation, or units of unequal size in some tensor.
    """
    if order.shape != (group.n_units,) or not bool((order.sort().values == torch.arange(group.n_units)).all()):
        raise StructureError(f"{group.name}: the order must hold each of its {group.n_units} units once")
    found: dict[str, Tensor] = {}
    for site in group.sites:
        labels = site.labels.cpu()
        places = (labels >= 0).nonzero().flatten()
        places = places[labels[places].argsort(stable=True)]  # unit after unit
        if not bool((torch.bincount(labels[places], minlength=group.n_units) * group.n_units == len(places)).all()):
            raise StructureError(
                f"{group.name}: its units differ in size in {site.tensor}, so they cannot trade places"
            )
        by_unit = places.reshape(group.n_units, -1)
        index = torch.arange(len(labels))
        index[by_unit.flatten()] = by_unit[order].flatten()
        now = found.get(site.tensor, tensors[site.tensor].detach())
        found[site.tensor] = now.index_select(site.dim, index.to(now.device))
    return found
