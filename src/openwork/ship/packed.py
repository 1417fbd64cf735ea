"""Packed matrices in one safetensors file: written atomically, every byte and every index checked when read.

A matrix ``NAME`` lies in the file as ``NAME/values`` and so on, one tensor for each of its parts; a dense tensor as
``NAME``. The header's metadata holds one string, ``openwork``, with the index as JSON::

    {"version": 1, "meta": {...}, "sums": {stored name: sha256 of its bytes}, "sha256": of the index without this entry,
     "tensors": {NAME: {"format": "csr", "rows": ...}, NAME: {"format": "dense", "dtype": ..., "shape": ...}}}

Equal content gives equal bytes. The parts that hold indices are copied into memory when they are read, so nobody can
change them after they were checked; values stay mapped from the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openwork.errors import FileError, FormatError
from openwork.formats import FORMATS, Format, from_tensors
from openwork.ship.atomic import new_file

VERSION = 1
KEY, DENSE = "openwork", "dense"
SHORT = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The dtypes a packed file may hold, as safetensors calls them."""


def write_packed(
    path: str | Path, packed: Mapping[str, Format | Tensor], meta: Mapping[str, Any] | None = None
) -> Path:
    """Write packed matrices and the dense rest of a model; the file appears whole or not at all.

    Args:
        path: of the file; an older file is replaced.
        packed: name -> a format, or a dense tensor.
        meta: anything else that belongs to it; plain data for JSON.

    Raises:
        FileError: names that collide, a value that is no tensor, a dtype that packed files do not hold, ``meta`` that
            is no JSON, or a disk that refuses.
        FormatError: a packed matrix that was changed after packing and contradicts itself.
    """
    path = Path(path)
    stored: dict[str, Tensor] = {}
    entries: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in packed.items():
        parts, entries[name] = _disassemble(path, name, value)
        for key, tensor in parts.items():
            if key in stored:
                raise FileError(f"{path}: {name}: its part {key} has the name of another tensor; rename one of them")
            stored[key] = _alone(tensor, seen)
    index = {
        "version": VERSION,
        "tensors": entries,
        "sums": {k: _sum(t) for k, t in stored.items()},
        "meta": meta or {},
    }
    try:
        text = json.dumps({**index, "sha256": sum_of_index(index)}, allow_nan=False)
        same = json.loads(text)["meta"] == index["meta"]
    except (TypeError, ValueError, RecursionError) as problem:
        raise FileError(f"{path}: meta must be plain data for JSON ({problem})") from None
    if not same:
        raise FileError(f"{path}: meta must be plain data for JSON, its keys strings and its sequences lists")
    with new_file(path) as part:
        try:
            save_file(stored, part, metadata={KEY: text})
        except SafetensorError as problem:
            raise OSError(str(problem)) from problem
    return path


class PackedFile(Mapping[str, Format | Tensor]):
    """A packed file that is open: names are known and checked, a tensor is read and checked when it is asked for.

    Dense tensors and values are mapped from the disk; do not write into the file while they are in use (replacing it,
    as ``write_packed`` does, is harmless).

    Args:
        path: written by ``write_packed``.

    Attributes:
        meta: what was written with the tensors.
        sha256: of the index, which holds one of every tensor; it tells two files apart.

    Raises:
        FileError: no such file, not a packed file, another version, truncated, or with tensors that are missing,
            unknown or of another dtype or shape than the index says.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileError(f"{self.path}: no such file")
        try:
            self._file = safe_open(self.path, framework="pt")
            found = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            self._shapes = {n: (SHORT.get(s.get_dtype()), tuple(s.get_shape())) for n, s in found.items()}
            texts = self._file.metadata() or {}
        except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError) as problem:
            raise FileError(
                f"{self.path}: not a whole safetensors file ({problem}); it is truncated or foreign, write it again"
            ) from None
        index = _index(self.path, texts.get(KEY))
        self.meta: dict[str, Any] = index["meta"]
        self.sha256: str = index["sha256"]
        self._entries: dict[str, dict[str, Any]] = index["tensors"]
        self._sums: dict[str, str] = index["sums"]
        self._compare()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Format | Tensor:
        """One matrix or dense tensor, checked wholly.

        Raises:
            KeyError: no such name.
            FileError: bytes that differ from their checksum, or tensors that contradict each other.
        """
        entry = self._entries[name]
        parts = {key: self._read(name, key) for key in _keys(name, entry)}
        if entry["format"] == DENSE:
            return parts[name]
        tensors = {key.removeprefix(f"{name}/"): t for key, t in parts.items()}
        try:
            return from_tensors(entry, {k: t if k == "values" else t.clone() for k, t in tensors.items()})
        except FormatError as problem:
            raise FileError(f"{self.path}: {name}: {problem}; the file is damaged or was forged") from None

    def _read(self, name: str, key: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(key)
            whole = _sum(tensor) == self._sums[key]
        except (SafetensorError, OSError, ValueError, RuntimeError) as problem:
            raise FileError(f"{self.path}: {name}: {key} cannot be read ({problem})") from None
        if not whole:
            raise FileError(f"{self.path}: {name}: the checksum of {key} differs; the file is corrupt, write it again")
        return tensor

    def _compare(self) -> None:
        """The index and the tensors of the file speak of the same things."""
        claimed = [key for name, entry in self._entries.items() for key in _keys(name, entry)]
        known = set(claimed)
        for what, names in (("missing", known - set(self._shapes)), ("unknown", set(self._shapes) - known)):
            if names:
                raise FileError(f"{self.path}: the tensor {min(names)!r} is {what}; the file is damaged or was forged")
        if set(self._sums) != known or len(claimed) != len(known):
            raise FileError(
                f"{self.path}: the index must hold one name and one checksum per tensor; the file was forged"
            )
        for name, entry in self._entries.items():
            if entry["format"] == DENSE:
                dtype, shape = self._shapes[name]
                wanted = (entry.get("dtype"), entry.get("shape"))
                if (str(dtype).removeprefix("torch."), list(shape)) != wanted:
                    raise FileError(
                        f"{self.path}: {name}: must be {wanted[0]} {wanted[1]}, the file holds {dtype} {list(shape)}"
                    )
        strange = next((key for key, (dtype, _) in self._shapes.items() if dtype is None), None)
        if strange is not None:
            raise FileError(f"{self.path}: {strange}: its dtype is none of those of packed files")


def read_packed(path: str | Path) -> tuple[dict[str, Format | Tensor], dict[str, Any]]:
    """Everything in a packed file, checked wholly, and its ``meta``; ``PackedFile`` reads tensor by tensor.

    Raises:
        FileError: a file that is not exactly what ``write_packed`` wrote.
    """
    file = PackedFile(path)
    return dict(file), file.meta


def _disassemble(path: Path, name: str, value: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Stored name -> tensor, and the entry of the index."""
    if not isinstance(name, str) or not name:
        raise FileError(f"{path}: names must be text, got {name!r}")
    if isinstance(value, Format):
        value.check()
        return {f"{name}/{part}": t for part, t in value.tensors().items()}, value.meta()
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
        raise FileError(f"{path}: {name}: must be a packed matrix or a dense tensor, got {type(value).__name__}")
    if value.dtype not in SHORT.values():
        raise FileError(f"{path}: {name}: packed files hold no {value.dtype}; convert the tensor first")
    dtype = str(value.dtype).removeprefix("torch.")
    return {name: value}, {"format": DENSE, "dtype": dtype, "shape": list(value.shape)}


def _alone(tensor: Tensor, seen: set[int]) -> Tensor:
    """Contiguous, on the CPU, sharing memory with no other tensor of the file."""
    plain = tensor.detach().cpu().contiguous()
    whole = plain.untyped_storage()
    if whole.data_ptr() in seen or whole.nbytes() != plain.nbytes:
        plain = plain.clone(memory_format=torch.contiguous_format)
        whole = plain.untyped_storage()
    seen.add(whole.data_ptr())
    return plain


def _keys(name: str, entry: Mapping[str, Any]) -> list[str]:
    """The stored names of one entry of the index."""
    if entry["format"] == DENSE:
        return [name]
    scales = ("scales",) if entry.get("dtype") == "int8" else ()
    return [f"{name}/{part}" for part in (*FORMATS[entry["format"]].parts, *scales)]


def _sum(tensor: Tensor) -> str:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def sum_of_index(index: Mapping[str, Any]) -> str:
    """sha256 of an index in JSON without its own entry ``sha256``."""
    plain = {key: value for key, value in index.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _index(path: Path, text: str | None) -> dict[str, Any]:
    """The index of a file, its form checked.

    Raises:
        FileError: no index, another version, or a damaged one.
    """
    if text is None:
        raise FileError(f"{path}: not a packed file of openwork, its header holds no index; read it with safetensors")
    try:
        index = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as problem:
        raise FileError(f"{path}: the index in its header is not JSON ({problem})") from None
    version = index.get("version") if isinstance(index, dict) else None
    if type(version) is not int or version != VERSION:
        raise FileError(
            f"{path}: the format version must be {VERSION}, got {version!r:.40}; it was written by another openwork, "
            "use that one or pack the model again"
        )
    if set(index) != {"version", "tensors", "sums", "meta", "sha256"}:
        raise FileError(f"{path}: the index must hold tensors, sums, meta and sha256, got {sorted(index)!s:.200}")
    if index["sha256"] != sum_of_index(index):
        raise FileError(f"{path}: the checksum of the index differs; the file is corrupt, write it again")
    if not all(isinstance(index[key], dict) for key in ("tensors", "sums", "meta")):
        raise FileError(f"{path}: tensors, sums and meta of the index must be mappings; the file was forged")
    for name, entry in index["tensors"].items():
        kind = entry.get("format") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in (DENSE, *FORMATS):
            known = ", ".join((DENSE, *FORMATS))
            raise FileError(f"{path}: {name}: unknown format {kind!r:.40}; known: {known}; is this openwork too old?")
    return index


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
