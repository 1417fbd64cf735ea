"""What all formats share: a matrix as a few plain tensors and a few plain numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from openwork.formats.stored import DTYPES, LARGEST, demand

F = TypeVar("F", bound="Format")


class Format(ABC):
    """A packed matrix ``[rows, cols]``. Subclasses are frozen dataclasses of plain tensors, never parameters.

    ``check`` holds for everything that ``pack`` and ``from_tensors`` return, and only checked tensors may reach a
    kernel: no index is out of range, no list is out of order, no value is NaN.
    """

    kind: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]]
    rows: int
    cols: int
    values: Tensor
    scales: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored values."""
        return self.values.dtype

    @property
    @abstractmethod
    def stored(self) -> int:
        """Entries of the matrix that have a place in ``values``; padding does not count."""

    @property
    def density(self) -> float:
        """Share of the matrix that is stored; 1 for an empty matrix."""
        return self.stored / (self.rows * self.cols) if self.rows * self.cols else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as they go to disk."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def __repr__(self) -> str:
        own = "".join(f"{getattr(self, n)} {n}, " for n in self.numbers)
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.rows} x {self.cols}, {own}{dtype}, density {self.density:.4g})"

    @abstractmethod
    def unpack(self) -> Tensor:
        """The matrix, float32 ``[rows, cols]``, zero where nothing is stored."""

    @abstractmethod
    def check(self) -> None:
        """Look at every number and every index.

        Raises:
            FormatError: what is wrong with which tensor.
        """

    def meta(self) -> dict[str, Any]:
        """What the tensors do not say; plain data for JSON."""
        dtype = next(name for name, d in DTYPES.items() if d == self.dtype)
        own = {name: getattr(self, name) for name in self.numbers}
        return {"format": self.kind, "rows": self.rows, "cols": self.cols, "dtype": dtype, **own}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors as they go to disk; ``scales`` only for int8."""
        own = {name: getattr(self, name) for name in self.parts}
        return own if self.scales is None else {**own, "scales": self.scales}

    @classmethod
    def from_tensors(cls: type[F], meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> F:
        """Inverse of ``meta`` and ``tensors``, for numbers of unknown origin: everything is checked.

        Raises:
            FormatError: an unknown or missing number or tensor, a wrong dtype or shape, an index out of range or out
                of order, padding that is not zero, values or scales that are not finite.
        """
        who = cls.kind
        numbers = ("rows", "cols", *cls.numbers)
        demand(isinstance(meta, Mapping), who, f"meta must be a mapping, got {type(meta).__name__}")
        expect_names(who, "number", meta, ("format", "dtype", *numbers))
        demand(meta["format"] == cls.kind, who, f"format must be {cls.kind!r}, got {meta['format']!r}")
        dtype = meta["dtype"]
        demand(
            isinstance(dtype, str) and dtype in DTYPES, who, f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}"
        )
        for name in numbers:
            value = meta[name]
            whole = isinstance(value, int) and not isinstance(value, bool)
            demand(
                whole and 0 <= value <= LARGEST,
                who,
                f"{name} must be a whole number up to {LARGEST}, got {value!r:.40}",
            )
        expect_names(who, "tensor", tensors, (*cls.parts, *(("scales",) if dtype == "int8" else ())))
        for name, tensor in tensors.items():
            demand(
                isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_meta,
                who,
                f"{name} must be a dense tensor",
            )
        demand(tensors["values"].dtype == DTYPES[dtype], who, f"values must be {dtype}, got {tensors['values'].dtype}")
        own = {name: tensors[name].detach() for name in cls.parts}
        numbered = {name: meta[name] for name in numbers}
        made = cls(**numbered, **cls.from_disk(own), scales=tensors.get("scales"))  # type: ignore[call-arg]
        made.check()
        return made

    @classmethod
    def from_disk(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts as they are held in memory, where that differs."""
        return tensors


def expect_names(who: str, what: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Exactly the ``known`` names.

    Raises:
        FormatError: a name is missing or unknown.
    """
    lost = sorted(set(known) - set(found))
    demand(not lost, who, f"the {what} {lost[0] if lost else ''!r} is missing")
    extra = sorted(map(str, set(found) - set(known)))
    demand(not extra, who, f"unknown {what} {extra[0] if extra else ''!r}; known: {', '.join(known)}")


def expect(who: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
    """One of ``dtypes`` and exactly ``shape``.

    Raises:
        FormatError: anything else.
    """
    listed = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
    demand(tensor.dtype in dtypes, who, f"{name} must be {listed}, got {tensor.dtype}")
    demand(tuple(tensor.shape) == shape, who, f"{name} must have the shape {shape}, got {tuple(tensor.shape)}")


def starts_of(counts: Tensor) -> Tensor:
    """Entries per row ``[rows]`` -> where each row begins, ``[rows + 1]``; int32 unless the sum needs int64.

    Examples:
        >>> starts_of(torch.tensor([2, 0, 1]))
        tensor([0, 2, 2, 3], dtype=torch.int32)
    """
    starts = torch.zeros(counts.numel() + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=starts[1:])
    return starts if int(starts[-1]) > LARGEST else starts.int()


def row_of(starts: Tensor) -> Tensor:
    """Inverse reading of ``starts``: the row of every entry, int64 ``[starts[-1]]``."""
    rows = torch.arange(starts.numel() - 1, device=starts.device)
    return rows.repeat_interleave(starts.long().diff())


def check_starts(who: str, starts: Tensor, count: int) -> None:
    """From 0 to ``count`` without a step back.

    Raises:
        FormatError: otherwise.
    """
    first, last = int(starts[0]), int(starts[-1])
    demand(first == 0, who, f"row_starts must begin with 0, got {first}")
    demand(last == count, who, f"row_starts must end with {count}, the number of entries, got {last}")
    back = int((starts[1:] < starts[:-1]).sum())
    demand(back == 0, who, f"row_starts must not decrease, they do {back} times")


def check_columns(who: str, columns: Tensor, starts: Tensor, limit: int) -> None:
    """int32 columns below ``limit`` that increase strictly inside every row; ``starts`` was checked before.

    Raises:
        FormatError: otherwise.
    """
    wrong = int(((columns < 0) | (columns >= limit)).sum())
    demand(wrong == 0, who, f"columns must lie in 0 ... {limit - 1}, {wrong} do not")
    rises = columns[1:] > columns[:-1]
    inner = starts[1:-1].long()
    inner = inner[(inner > 0) & (inner < columns.numel())]
    rises[inner - 1] = True
    falls = rises.numel() - int(rises.sum())
    demand(falls == 0, who, f"columns must increase strictly inside a row, {falls} do not")
