"""A Hugging Face checkpoint folder, read tensor by tensor: config, index, safetensors shards. Never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openwork.errors import DataError, FileError, RecipeError
from openwork.llm.raw_copy import bits

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """What a folder holds, from its headers alone; ``read`` brings single tensors into memory.

    Attributes:
        folder: the folder.
        config: ``config.json``.
        files: tensor name -> file name.
        shapes: tensor name -> shape.
        dtypes: tensor name -> safetensors dtype word.
    """

    def __init__(self, folder: str | Path):
        """Open a folder.

        Raises:
            FileError: no folder, no config, no safetensors weights, shards that are missing, truncated or corrupt, an
                index that names absent tensors.
            DataError: a quantised checkpoint.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileError(f"{folder}: is no folder; models are never downloaded, pass the folder of a checkpoint")
        self.config = _json(self.folder / "config.json", "a Hugging Face model")
        quantised = self.config.get("quantization_config") or self.config.get("compression_config")
        if quantised is not None:
            kind = quantised.get("quant_method", "unnamed") if isinstance(quantised, Mapping) else quantised
            raise DataError(
                f"{self.folder}: the checkpoint is quantised ({kind}); prune the floating-point checkpoint and "
                "quantise the result"
            )
        self.files = self._find()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._headers()

    def _find(self) -> dict[str, str]:
        if (self.folder / INDEX).is_file():
            listed = _json(self.folder / INDEX, "an index").get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
                raise FileError(f"{self.folder / INDEX}: weight_map must map tensor names to files")
            outside = sorted({f for f in listed.values() if Path(f).name != f or "\\" in f})
            if outside:
                raise FileError(f"{self.folder / INDEX}: shards must lie in this folder, got {outside[0]!r}")
            lost = sorted({f for f in listed.values() if not (self.folder / f).is_file()})
            if lost:
                raise FileError(f"{self.folder}: {len(lost)} shards that the index names are missing, first {lost[0]}")
            return dict(listed)
        if (self.folder / SINGLE).is_file():
            return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        if any(self.folder.glob("*.bin")):
            raise FileError(f"{self.folder} holds weights only as pickles (.bin); convert them to safetensors")
        raise FileError(f"{self.folder}: holds neither {SINGLE} nor {INDEX}")

    def _open(self, file: str) -> Any:
        try:
            return safe_open(self.folder / file, "pt")
        except (SafetensorError, OSError) as problem:
            raise FileError(f"{self.folder / file}: corrupt or truncated, not readable ({problem})") from None

    def _headers(self) -> None:
        by_file: dict[str, list[str]] = {}
        for name, file in self.files.items():
            by_file.setdefault(file, []).append(name)
        for file, names in by_file.items():
            handle = self._open(file)
            present = set(handle.keys())
            for name in names:
                if name not in present:
                    raise FileError(f"{self.folder / INDEX}: names {name} in {file}, which does not hold it")
                piece = handle.get_slice(name)
                self.shapes[name], self.dtypes[name] = tuple(piece.get_shape()), piece.get_dtype()

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a weight.

        Raises:
            DataError: not floating point: the checkpoint is quantised.
        """
        word = self.dtypes[name]
        if word not in _FLOATS:
            raise DataError(f"{self.folder}: {name} is stored as {word}; quantised weights cannot be pruned")
        return _FLOATS[word]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of some tensors; the files are closed again, so that their pages can leave the memory."""
        found: dict[str, Tensor] = {}
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for file, wanted in by_file.items():
            handle = self._open(file)
            found |= {name: handle.get_tensor(name).clone() for name in wanted}
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.size(n) for n in self.shapes)

    def size(self, name: str) -> int:
        """Bytes of one tensor."""
        count = 1
        for length in self.shapes[name]:
            count *= length
        return count * max(1, bits(self.dtypes[name]) // 8)

    def fingerprint(self) -> str:
        """A hash of the config, the index, and the size and time of every shard; not of the weights themselves."""
        parts: list[Any] = [self.config, sorted(self.files.items()), sorted(self.shapes.items())]
        for file in sorted(set(self.files.values())):
            stat = (self.folder / file).stat()
            parts.append([file, stat.st_size, stat.st_mtime_ns])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _json(path: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise FileError(f"{path}: must be a readable JSON file of {what} ({problem})") from None
    if not isinstance(data, dict):
        raise FileError(f"{path}: must hold a JSON object, got {type(data).__name__}")
    return data


def load_config(folder: Path) -> Any:
    """The config object of transformers, read from the folder only.

    Raises:
        RecipeError: transformers is missing, or does not know the architecture.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise RecipeError(f"{folder} needs transformers; install it: pip install 'openwork[hf]'") from None
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as problem:  # a config's own checks raise kinds that belong to another package
        first = " ".join(str(problem).split())
        raise RecipeError(f"{folder}: transformers does not know this architecture ({first})") from None
