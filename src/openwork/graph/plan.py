"""What compaction will do, as data: entries kept in every tensor, attributes rewritten. Plan, explain, apply."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import FileError, StructureError
from openwork.graph.skip import skip

FORMAT = 1
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Cut:
    """One dimension of one tensor: its length and the half-open ranges of entries that stay."""

    tensor: str
    dim: int
    size: int
    keep: Ranges

    @property
    def kept(self) -> int:
        """Entries that stay."""
        return sum(b - a for a, b in self.keep)

    def index(self) -> Tensor:
        """``[kept]`` int64."""
        return torch.cat([torch.arange(a, b) for a, b in self.keep])


@dataclass(frozen=True)
class Rewrite:
    """One attribute of one module: ``old`` must be found there, ``new`` is written."""

    module: str
    attribute: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Plan:
    """Everything that turns a model into its smaller self. ``over`` lists statistics that change with it.

    ``units`` holds kept and all units of every group; ``params`` the parameters before and after.
    """

    cuts: tuple[Cut, ...]
    rewrites: tuple[Rewrite, ...]
    units: Mapping[str, tuple[int, int]]
    params: tuple[int, int]
    over: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    tokens: Ranges = ()
    """Token ids that stay, in order, when the vocabulary was cut."""
    removed: tuple[tuple[str, bool], ...] = ()
    """Modules that are skipped, and whether they return a tuple."""

    def explain(self) -> str:
        """The plan as text: groups, tensors, attributes."""
        before, after = self.params
        lines = [f"{before:,} parameters become {after:,} ({after / max(1, before):.4f})"]
        lines += [f"  {name}: {kept} of {n} units stay" for name, (kept, n) in self.units.items() if kept < n]
        lines += [f"  cut {c.tensor} along {c.dim}: {c.size} -> {c.kept}" for c in self.cuts]
        lines += [f"  skip {path}" for path, _ in self.removed]
        lines += [f"  set {r.module or 'model'}.{r.attribute}: {r.old} -> {r.new}" for r in self.rewrites]
        lines += [f"  statistics over fewer entries: {o} (not the function of a network with zeros)" for o in self.over]
        return "\n".join([*lines, *(f"  note: {n}" for n in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "format": FORMAT,
            "cuts": [[c.tensor, c.dim, c.size, [list(r) for r in c.keep]] for c in self.cuts],
            "rewrites": [[r.module, r.attribute, _plain(r.old), _plain(r.new)] for r in self.rewrites],
            "units": {n: list(v) for n, v in self.units.items()},
            "params": list(self.params),
            "over": list(self.over),
            "notes": list(self.notes),
            "tokens": [list(r) for r in self.tokens],
            "removed": [list(r) for r in self.removed],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Inverse of ``to_dict``.

        Raises:
            FileError: not a plan, or a damaged one.
        """
        try:
            if data["format"] != FORMAT:
                raise FileError(f"a compaction plan must have format {FORMAT}, got {data['format']!r}")
            cuts = tuple(Cut(str(t), int(d), int(n), _ranges(keep, int(n))) for t, d, n, keep in data["cuts"])
            rewrites = tuple(Rewrite(str(m), str(a), _listed(old), _listed(new)) for m, a, old, new in data["rewrites"])
            units = {str(n): (int(k), int(a)) for n, (k, a) in data["units"].items()}
            before, after = data["params"]
            texts = (tuple(map(str, data["over"])), tuple(map(str, data["notes"])))
            tokens = tuple((int(a), int(b)) for a, b in data.get("tokens", ()))
            removed = tuple((str(path), bool(wrap)) for path, wrap in data.get("removed", ()))
            return cls(cuts, rewrites, units, (int(before), int(after)), *texts, tokens, removed)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            if isinstance(problem, FileError):
                raise
            raise FileError(f"not a compaction plan: {type(problem).__name__}: {problem}") from None

    def apply(self, model: nn.Module) -> nn.Module:
        """A smaller copy; ``model`` itself is not touched, so a refused plan leaves nothing half done.

        Raises:
            StructureError: the model is not the one that the plan was made for.
        """
        small = copy.deepcopy(model)
        tensors = dict(small.named_parameters(remove_duplicate=False)) | dict(
            small.named_buffers(remove_duplicate=False)
        )
        todo: dict[str, list[Cut]] = {}
        for cut in self.cuts:
            tensor = tensors.get(cut.tensor)
            if tensor is None or cut.dim >= tensor.ndim or tensor.shape[cut.dim] != cut.size:
                found = "none" if tensor is None else tuple(tensor.shape)
                raise StructureError(
                    f"{cut.tensor}: the plan cuts dimension {cut.dim} of length {cut.size}, but the model's tensor is "
                    f"{found}; apply it to the model it was made for"
                )
            todo.setdefault(cut.tensor, []).append(cut)
        smaller = {id(tensors[name]): _cut(tensors[name], cuts) for name, cuts in todo.items()}
        for module in small.modules():
            for store in (module._parameters, module._buffers):
                for leaf, value in store.items():
                    if value is not None and id(value) in smaller:
                        store[leaf] = smaller[id(value)]  # type: ignore[assignment]
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
        for path, wrap in self.removed:
            skip(small, path, wrap)
        self.rewrite(small)
        return small

    @property
    def token_ids(self) -> Tensor | None:
        """``[kept]`` int64: the old ids of the tokens that stay, in the order of the new ones; None for all."""
        return torch.cat([torch.arange(a, b) for a, b in self.tokens]) if self.tokens else None

    def rewrite(self, small: nn.Module) -> None:
        """Write the attributes into a model whose tensors are cut already."""
        modules = dict(small.named_modules(remove_duplicate=False))
        for r in self.rewrites:
            if r.module not in modules or _listed(_plain(getattr(modules[r.module], r.attribute, None))) != r.old:
                raise StructureError(
                    f"{r.module}.{r.attribute} must be {r.old!r} before compaction; apply the plan to the model it was "
                    "made for"
                )
            setattr(modules[r.module], r.attribute, r.new)


def finished(small: nn.Module, plan: Plan, source: Any) -> nn.Module:
    """The small model, knowing its plan and, when the dense one has a ``source``, how it is built again."""
    small.openwork_compaction = plan.to_dict()  # type: ignore[assignment]
    if source is not None:
        options = {"source": source, "plan": plan.to_dict()}
        small.openwork_source = {"kind": "compact", "name": type(small).__name__, "options": options}  # type: ignore[assignment]
    return small


def _cut(tensor: Tensor, cuts: Iterable[Cut]) -> Tensor:
    with torch.no_grad():
        made = tensor.detach()
        for cut in cuts:
            made = made.index_select(cut.dim, cut.index().to(tensor.device))
        made = made.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def ranges_of(keep: Tensor) -> Ranges:
    """A bool mask as half-open ranges.

    Examples:
        >>> ranges_of(torch.tensor([True, True, False, True]))
        ((0, 2), (3, 4))
    """
    padded = torch.cat([torch.zeros(1), keep.cpu().float(), torch.zeros(1)])
    steps = padded[1:] - padded[:-1]
    starts, ends = (steps > 0).nonzero().flatten().tolist(), (steps < 0).nonzero().flatten().tolist()
    return tuple(zip(starts, ends, strict=True))


def _ranges(keep: Any, size: int) -> Ranges:
    found = tuple((int(a), int(b)) for a, b in keep)
    last = 0
    for a, b in found:
        if not last <= a < b <= size:
            raise FileError(f"a compaction plan must keep rising ranges inside 0..{size}, got {found}")
        last = b
    return found


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _listed(value: Any) -> Any:
    return tuple(_listed(v) for v in value) if isinstance(value, list) else value
