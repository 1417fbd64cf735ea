"""Tensors that go from safetensors files into another byte for byte, without being in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from openwork.core.files import new_file
from openwork.errors import FileError

PIECE = 1 << 22
"""Bytes that are in memory at once."""


def copy_tensors(sources: Mapping[str, Path], out: Path) -> None:
    """Write a safetensors file of tensors that other files hold.

    Args:
        sources: tensor name -> file that holds it, of a checkpoint that was opened before.
        out: the new file; it appears whole or not at all.

    Raises:
        FileError: a source that is damaged since it was opened, or ``out`` cannot be written.
    """
    headers = {path: _header(path) for path in dict.fromkeys(sources.values())}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ranges: list[tuple[Path, int, int]] = []
    size = 0
    for name in sorted(sources, key=lambda n: (-bits(headers[sources[n]][0][n]["dtype"]), n)):  # so all are aligned
        path = sources[name]
        entries, data = headers[path]
        first, last = entries[name]["data_offsets"]
        table[name] = {**entries[name], "data_offsets": [size, size + last - first]}
        ranges.append((path, data + first, last - first))
        size += last - first
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with new_file(out) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for path, first, length in ranges:
            with path.open("rb") as source:
                source.seek(first)
                _copy(source, length, file, path)


def bits(dtype: str) -> int:
    """Of one entry, by the word that safetensors has for its dtype: 16 for ``BF16``, 8 for ``F8_E4M3`` and ``BOOL``."""
    return int("".join(c for c in dtype.split("_")[0] if c.isdigit()) or 8)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a file by tensor name, and where its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _copy(source: BinaryIO, length: int, target: BinaryIO, path: Path) -> None:
    while length:
        piece = source.read(min(length, PIECE))
        if not piece:
            raise FileError(f"{path}: became shorter while it was read; do not change a checkpoint during a run")
        target.write(piece)
        length -= len(piece)
