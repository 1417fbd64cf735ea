"""Which stored tensors make up a parameter of the model: the same name, another name, or one tensor per expert."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.errors import FileError
from openwork.llm.checkpoint import Checkpoint

_RENAMED = (
    (r"lm_head\.weight", "embed_out.weight"),  # GPT-NeoX
    (r"(.*)\.mlp\.gate\.weight", r"\1.block_sparse_moe.gate.weight"),  # Mixtral
)
"""Name in the model -> name in the files, where transformers renames on loading."""

_EXPERTS = (
    (r"(.*)\.mlp\.experts\.gate_up_proj",
     (r"\1.block_sparse_moe.experts.{}.w1.weight", r"\1.block_sparse_moe.experts.{}.w3.weight")),
    (r"(.*)\.mlp\.experts\.down_proj", (r"\1.block_sparse_moe.experts.{}.w2.weight",)),
    (r"(.*)\.experts\.gate_up_proj", (r"\1.experts.{}.gate_proj.weight", r"\1.experts.{}.up_proj.weight")),
    (r"(.*)\.experts\.down_proj", (r"\1.experts.{}.down_proj.weight",)),
)  # fmt: skip
"""Fused parameter ``(E, out, in)`` -> the tensors of one expert, one below the other."""


@dataclass(frozen=True)
class Stored:
    """The stored tensors of a parameter: ``rows[e]`` are those of expert e; one row with one name is the plain case."""

    rows: tuple[tuple[str, ...], ...]
    fused: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for row in self.rows for name in row)

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Stored tensors -> the parameter."""
        if not self.fused:
            return tensors[self.rows[0][0]]
        return torch.stack([torch.cat([tensors[name] for name in row]) for row in self.rows])

    def split(self, parameter: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Inverse of ``join``."""
        if not self.fused:
            return {self.rows[0][0]: parameter}
        found: dict[str, Tensor] = {}
        for expert, row in zip(parameter, self.rows, strict=True):
            found |= dict(zip(row, expert.split([shapes[name][0] for name in row]), strict=True))
        return found


def stored_as(name: str, shape: tuple[int, ...], checkpoint: Checkpoint, prefix: str) -> Stored | None:
    """Where a parameter lies in a checkpoint; None when it lies nowhere.

    Args:
        name: in the model.
        shape: in the model.
        checkpoint: the files.
        prefix: of the base model (``transformer``), which some checkpoints leave out and others add.

    Raises:
        FileError: it lies there in another shape.
    """
    for other in _spellings(name, prefix):
        if other in checkpoint.shapes:
            if checkpoint.shapes[other] != shape:
                raise FileError(
                    f"{checkpoint.folder}: {other} is {checkpoint.shapes[other]}, but the config asks for {shape}"
                )
            return Stored(((other,),))
    for pattern, parts in _EXPERTS:
        if len(shape) == 3 and re.fullmatch(pattern, name):
            forms = [re.sub(pattern, part, name) for part in parts]
            rows = tuple(tuple(form.format(e) for form in forms) for e in range(shape[0]))
            if all(n in checkpoint.shapes for row in rows for n in row):
                found = Stored(rows, fused=True)
                sizes = {(sum(checkpoint.shapes[n][0] for n in row), *checkpoint.shapes[row[0]][1:]) for row in rows}
                if sizes != {shape[1:]}:
                    raise FileError(f"{checkpoint.folder}: the experts of {name} are {sizes}, but must be {shape[1:]}")
                return found
    return None


def _spellings(name: str, prefix: str) -> list[str]:
    names = [name, *(re.sub(p, r, name) for p, r in _RENAMED if re.fullmatch(p, name))]
    if prefix:
        names += [n.removeprefix(f"{prefix}.") for n in names if n.startswith(f"{prefix}.")]
        names += [f"{prefix}.{n}" for n in names]
    return names
