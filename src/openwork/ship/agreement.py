"""Whether a packed model and the result beside it speak of the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from openwork.core.shards import local
from openwork.engine.result import Result
from openwork.errors import FileError, VerificationFailed
from openwork.metrics.density import Densities
from openwork.runtime.layers import Packed


def demand_result(model: nn.Module, result: Result) -> None:
    """Refuse the result of another model. A model that ``compact`` made smaller has no zeros to compare.

    Raises:
        VerificationFailed: a mask for a weight that the model does not have, or that prunes what is not zero.
    """
    if getattr(model, "openwork_compaction", None) is not None:
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, mask in result.masks.items():
        weight = weight_of(modules, name)
        if weight is None or weight.shape != mask.shape:
            raise VerificationFailed(
                f"export: {name}: the packed model has no such weight of shape {tuple(mask.shape)}; pass the result of "
                "the model that was packed"
            )
        known = local(mask)
        if known.shape != weight.shape:  # a shard knows only its own part
            continue
        alive = int((weight.detach()[~known.to(weight.device)] != 0).sum())
        if alive:
            raise VerificationFailed(
                f"export: {name}: {alive} entries that the mask prunes are not zero in the packed model; pass the "
                "result of the model that was packed"
            )


def weight_of(modules: Mapping[str, nn.Module], name: str) -> Tensor | None:
    """A weight by its name, unpacked; None when there is none."""
    owner, _, leaf = name.rpartition(".")
    module = modules.get(owner)
    if isinstance(module, Packed):
        return module.dense_weight() if leaf == "weight" else getattr(module, leaf, None)
    return getattr(module, leaf, None)


def counts_of(place: Path, density: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Densities:
    """The counts of an index, each a whole number and none above the next larger one.

    Raises:
        FileError: counts that no model can have.
        KeyError, TypeError: an index that lacks one.
    """
    names = ("kept", "targeted_numel", "prunable_numel", "total_numel")
    told = {name: density[name] for name in names}
    chains = [("the density", told)]
    chains += [(n, {"kept": r.get("kept", r["numel"]), "numel": r["numel"]}) for n, r in rows.items()]
    for owner, chain in chains:
        for name, count in chain.items():
            if type(count) is not int or count < 0:
                raise FileError(f"{place}: {name} of {owner} must be a whole number from 0 on, got {count!r:.40}")
        if list(chain.values()) != sorted(chain.values()):
            raise FileError(f"{place}: the counts of {owner} must not fall, got {chain}; the file is damaged")
    return Densities(*told.values())


def demand_counts(place: Path, rows: Mapping[str, Mapping[str, Any]], kept: int, masks: Mapping[str, Tensor]) -> None:
    """Refuse counts below what the weights hold; a kept weight may be zero, so they may hold less.

    Where a tensor is missing or of another shape, the model was compacted and nothing is compared.

    Args:
        place: the index.
        rows: of the tensors, by name.
        kept: of all of them.
        masks: where the weights are not zero.

    Raises:
        FileError: more weights than were kept.
    """
    targeted = {n: r for n, r in rows.items() if not r["skipped"]}
    if any(n not in masks or list(masks[n].shape) != list(r["shape"]) for n, r in targeted.items()):
        return
    total = 0
    for name, row in targeted.items():
        found = int(masks[name].sum())
        total += found
        if found > row["kept"]:
            raise FileError(f"{place}: {name} holds {found} weights that are not zero, but {row['kept']} were kept")
    if total > kept:
        raise FileError(f"{place}: promises {kept} kept weights in all, but the model holds {total}")
