"""The Criteo click logs of the Kaggle challenge of 2014, read from ``train.txt`` block by block."""

from __future__ import annotations

import hashlib
import warnings
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwork.data.click_lines import CATEGORIES, FIELDS, Array, parse_lines
from openwork.data.dataset import StreamedSet
from openwork.data.places import ROOT_VARIABLE, Root, not_found, roots
from openwork.errors import DataError

FILE = "train.txt"
BLOCK = 1 << 20  # bytes, to the end of the line; about 4,000 lines
WINDOW = 64  # blocks that are shuffled together and stay parsed, about 45 MB
BROKEN = 1e-4
FORM = "a label, 13 integers and 26 hexadecimal categories with tabs between"
HINT = (
    f"Pass the folder of the Kaggle file {FILE} (Display Advertising Challenge, 45,840,617 lines) or the file as "
    f"root= or {ROOT_VARIABLE}."
)


@dataclass(frozen=True)
class Index:
    """Where the blocks of a file begin, and how many whole lines lie before each; both have one entry more."""

    offsets: list[int]
    lines: list[int]


class ClickSource:
    """A range of the whole lines of a file.

    x is float32 ``[n, 39]``: 13 logarithms and 26 category numbers, see ``parse_lines``; y is 1 for a click.

    Args:
        path: the file.
        index: its blocks.
        begin: number of the first line.
        end: number after the last.
        bins: categories a field.

    Raises:
        DataError: on reading, the file is no longer the one that was indexed.
    """

    def __init__(self, path: Path, index: Index, begin: int, end: int, bins: int):
        self.path, self.index, self.begin, self.end, self.bins = path, index, begin, end, bins
        self._parsed: OrderedDict[int, tuple[Array, Array]] = OrderedDict()
        self._room = WINDOW + 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (FIELDS,)

    @property
    def chunk(self) -> int:
        return 4096

    def __len__(self) -> int:
        return self.end - self.begin

    def order(self, generator: torch.Generator) -> Tensor:
        """Blocks in random order; the lines of each 64 consecutive ones of that order shuffled together."""
        first = bisect_right(self.index.lines, self.begin) - 1
        last = bisect_right(self.index.lines, self.end - 1)
        blocks = (torch.randperm(last - first, generator=generator) + first).tolist()
        pieces = []
        for start in range(0, len(blocks), WINDOW):
            ranges = [(self.index.lines[b], self.index.lines[b + 1]) for b in blocks[start : start + WINDOW]]
            lines = torch.cat([torch.arange(max(a, self.begin), min(b, self.end)) for a, b in ranges])
            pieces.append((lines - self.begin)[torch.randperm(len(lines), generator=generator)].int())
        return torch.cat(pieces)

    def read(self, numbers: Tensor | slice, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        wanted = np.arange(*numbers.indices(len(self))) if isinstance(numbers, slice) else numbers.numpy()
        lines = wanted.astype(np.int64) + self.begin
        blocks = np.searchsorted(self.index.lines, lines, side="right") - 1
        x, y = np.empty((len(lines), FIELDS), dtype=np.float32), np.empty(len(lines), dtype=np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            rows = lines[here] - self.index.lines[block]
            whole, labels = self._block(block)
            x[here], y[here] = whole[rows], labels[rows]
        return torch.from_numpy(x), torch.from_numpy(y)

    def fingerprint(self) -> bytes:
        """A SHA-256 over the range, the blocks, the bins, and the bytes of the first and the last block."""
        blocks = (0, len(self.index.offsets) - 2)
        digest = hashlib.sha256(repr((self.begin, self.end, self.bins, self.index)).encode())
        for block in blocks:
            digest.update(self._bytes(block))
        return digest.digest()

    def _block(self, block: int) -> tuple[Array, Array]:
        if block not in self._parsed:
            x, y, _ = parse_lines(self._bytes(block), self.bins)
            if len(y) != self.index.lines[block + 1] - self.index.lines[block]:
                raise DataError(f"{self.path} has changed since it was indexed; load the data set again")
            self._parsed[block] = x, y
            if len(self._parsed) > self._room:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(block)
        return self._parsed[block]

    def _bytes(self, block: int) -> bytes:
        begin, end = self.index.offsets[block : block + 2]
        with self.path.open("rb") as stream:
            stream.seek(begin)
            return _closed(stream.read(end - begin))


def criteo(
    root: Root = None, bins: int = 100_000, test: float = 0.1, broken: float = BROKEN, rows: int | None = None
) -> StreamedSet:
    """Click prediction on Criteo's logs: 13 counts, 26 categories, two classes; the test lines are the last ones.

    Loading reads the file once to find and check its lines (minutes for the whole 11 GB); afterwards the lines
    are parsed when a batch needs them. The lines lie in the order of time, so the test set is later than training.

    Args:
        root: ``train.txt`` or its folder; ``OPENWORK_DATA`` is searched next.
        bins: categories that a field keeps apart, from 2 to 2**24 (what float32 holds exactly). The values in the
            file are hashes already; their remainder chooses the bin, and 0 is kept for missing ones.
        test: share of the lines, at the end, for testing.
        broken: share of lines that may break the form; they are left out with a warning.
        rows: read only so many lines from the start, to the end of their block; None reads all.

    Raises:
        DataError: found nowhere, too many broken lines, a side without lines, or a refused option.
    """
    if not 2 <= bins <= 2**24 or not 0 < test < 1 or not 0 <= broken < 1 or (rows is not None and rows < 2):
        raise DataError(
            f"criteo: bins must lie in 2..2**24, test in (0, 1), broken in [0, 1) and rows above 1, got {bins}, "
            f"{test}, {broken} and {rows}"
        )
    path = _find(root)
    index = _indexed(path, broken, rows)
    count = index.lines[-1]
    held = round(test * count)
    sides = ClickSource(path, index, 0, count - held, bins), ClickSource(path, index, count - held, count, bins)
    return StreamedSet("criteo", *sides, classes=2, sizes=(bins,) * CATEGORIES)


def _find(root: Root) -> Path:
    named = [p if p.is_file() else p / inner / FILE for p in roots(root) for inner in ("", "criteo", "dac")]
    for place in named:
        if place.is_file():
            return place
    raise not_found("criteo", named or ["no folder was named"], HINT)


def _indexed(path: Path, broken: float, rows: int | None) -> Index:
    offsets, lines = [0], [0]
    seen = wrong = first = 0
    for block in _blocks(path):
        _, _, kept = parse_lines(_closed(block), 2)
        if wrong == 0 and not kept.all():
            first = seen + int(np.argmin(kept)) + 1
        seen += len(kept)
        wrong += int((~kept).sum())
        offsets.append(offsets[-1] + len(block))
        lines.append(seen - wrong)
        if lines[-1] == 0 or (rows is not None and seen >= rows):
            break
    if wrong > broken * seen:
        raise DataError(
            f"{path}: {wrong} of {seen} lines are broken, the first is line {first}, and at most {broken:g} of them "
            f"may be; each must hold {FORM}, so repair the file or raise the option broken"
        )
    if wrong:
        warnings.warn(f"criteo: {wrong} of {seen} lines of {path} are broken and left out, first {first}", stacklevel=3)
    return Index(offsets, lines)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            rest = b"" if block.endswith(b"\n") else stream.readline(BLOCK)
            if len(rest) == BLOCK and not rest.endswith(b"\n"):
                raise DataError(f"{path} has a line longer than {BLOCK} bytes; each must hold {FORM}")
            yield block + rest


def _closed(block: bytes) -> bytes:
    """The last line of a file may lack its newline."""
    return block if block.endswith(b"\n") else block + b"\n"
