"""How much of a model its groups reach, and what the rest stays for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from openwork.graph.groups import Graph

PLACE = re.compile(r" in [\w.]+|(?<=output) \d+")
"""The module or the node in a reason: the same reason in another layer is one reason."""


@dataclass(frozen=True)
class Coverage:
    """``prunable`` of ``params`` entries of parameters lie in a group along some dimension.

    ``stays`` maps a reason to the entries that lie in no group and have a dimension that stays for it.
    """

    params: int
    prunable: int
    stays: Mapping[str, int]

    @property
    def share(self) -> float:
        """Of all parameters, in [0, 1]."""
        return self.prunable / max(1, self.params)


def coverage_of(model: nn.Module, graph: Graph) -> Coverage:
    """Count the parameters that some group can shorten.

    Examples:
        >>> import torch
        >>> from openwork.graph import build_graph
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> found = coverage_of(model, build_graph(model, torch.zeros(1, 4)))
        >>> found.params, found.prunable, found.stays
        (44, 42, {'output of the model': 2})
    """
    reached: dict[str, dict[int, int]] = {}
    for group in graph.groups:
        for site in group.sites:
            dims = reached.setdefault(site.tensor, {})
            dims[site.dim] = dims.get(site.dim, 0) + int((site.labels >= 0).sum())
    reasons: dict[str, set[str]] = {}
    for row in graph.frozen:
        reasons.setdefault(row.tensor, set()).add(PLACE.sub("", row.reason))
    params = prunable = 0
    stays: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        alone = 1
        for dim, size in enumerate(parameter.shape):
            alone *= max(0, size - reached.get(name, {}).get(dim, 0))
        params += parameter.numel()
        prunable += parameter.numel() - alone
        for reason in reasons.get(name, {"no axis"}) if alone else ():
            stays[reason] = stays.get(reason, 0) + alone
    return Coverage(params, prunable, dict(sorted(stays.items(), key=lambda pair: -pair[1])))
