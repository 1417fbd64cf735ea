"""Where blocks come from and where they go: a model in memory, or a checkpoint folder rewritten as it is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from openwork.errors import FileError
from openwork.llm.checkpoint import INDEX, SINGLE, Checkpoint
from openwork.llm.naming import Stored, stored_as
from openwork.llm.raw_copy import copy_tensors
from openwork.llm.skeleton import empty, fill
from openwork.ship.atomic import new_folder, write_file

STATE = "state.json"
REST = 5_000_000_000
"""Bytes of a file that holds what is in no block, at most, but for a single tensor that is larger."""


class Home(Protocol):
    """A block's weights are there between ``enter`` and ``leave``."""

    done: list[dict[str, Any]]
    keeps_masks: bool
    """Whether masks and units of all blocks stay in memory: where the weights do."""

    def open_front(self) -> None: ...
    def close_front(self) -> None: ...
    def enter(self, index: int) -> None: ...
    def settle(self, index: int) -> None: ...
    def leave(self, index: int, row: Mapping[str, Any] | None) -> None: ...


class ModelHome:
    """A model that is in memory already, and is pruned in place."""

    keeps_masks = True

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []

    def open_front(self) -> None:
        pass

    def close_front(self) -> None:
        pass

    def enter(self, index: int) -> None:
        pass

    def settle(self, index: int) -> None:
        pass

    def leave(self, index: int, row: Mapping[str, Any] | None) -> None:
        if row is not None:
            self.done.append(dict(row))


class FolderHome:
    """One block at a time from a checkpoint; every finished block goes to a shard of ``work``, with the rows so far."""

    keeps_masks = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        work: Path | None,
        dtype: torch.dtype | None,
    ):
        """Find every parameter in the files.

        Raises:
            FileError: a parameter that is in no file, or in another shape.
        """
        self.checkpoint, self.model, self.work, self.dtype = checkpoint, model, work, dtype
        self.blocks = list(blocks.values())
        self.done: list[dict[str, Any]] = []
        self.identity: dict[str, Any] = {}
        prefix = str(getattr(model, "base_model_prefix", ""))
        self.stored: dict[str, Stored] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
                continue  # positions and masks: the model builds them itself, the files' own go along with the rest
            found = stored_as(name, tuple(tensor.shape), checkpoint, prefix)
            if found is not None:
                self.stored[name] = found
            elif isinstance(tensor, nn.Parameter):
                raise FileError(
                    f"{checkpoint.folder}: {name} {tuple(tensor.shape)} is in the model of config.json, but in none of "
                    f"the files ({len(checkpoint.shapes)} tensors)"
                )
        for stored in self.stored.values():
            for name in stored.names:
                checkpoint.dtype(name)
        inside = {n: [p for p in self.stored if p.startswith(f"{n}.")] for n in blocks}
        self.inside = list(inside.values())
        taken = {p for names in self.inside for p in names}
        self.front = [p for p in self.stored if p not in taken and not self._is_head(p)]

    def _is_head(self, name: str) -> bool:
        """The output head is of no use before the first block, unless it is tied to the embedding."""
        model: Any = self.model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return head is not None and any(p is self.model.get_parameter(name) for p in head.parameters()) and not any(
            p is self.model.get_parameter(name) for m in self.model.modules() if isinstance(m, nn.Embedding)
            for p in m.parameters()
        )  # fmt: skip

    def open_front(self) -> None:
        self._fill(self.front)

    def close_front(self) -> None:
        empty(self.model)

    def enter(self, index: int) -> None:
        if index < len(self.done):
            self._fill(self.inside[index], self._read_back(index))
        else:
            self._fill(self.inside[index])

    def _fill(self, names: Sequence[str], tensors: Mapping[str, Tensor] | None = None) -> None:
        for name in names:
            stored = self.stored[name]
            pieces = self.checkpoint.read(stored.names) if tensors is None else tensors
            value = stored.join(pieces)
            wide = self.dtype if self.dtype is not None and value.is_floating_point() else value.dtype
            fill(self.model, {name: value.to(wide)})

    def settle(self, index: int) -> None:
        """Round the block's weights to what the files will hold, before anything is computed with them."""
        with torch.no_grad():
            for name in self.inside[index]:
                value = self._value(name)
                value.copy_(value.to(self.checkpoint.dtype(self.stored[name].names[0])))

    def leave(self, index: int, row: Mapping[str, Any] | None) -> None:
        if row is not None and self.work is None:  # another process writes
            self.done.append(dict(row))
        elif row is not None and self.work is not None:
            tensors = self._pieces(self.inside[index])
            path = self.work / self.shard(index)
            content = to_bytes(tensors, metadata={"format": "pt"})
            write_file(path, content)
            digest = hashlib.sha256(content).hexdigest()
            self.done.append({**row, "shard": {"sha256": digest, "names": sorted(tensors)}})
            self._save_state()
        empty(self.blocks[index])

    def _value(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        found = module._parameters.get(leaf)
        return found.detach() if found is not None else module.get_buffer(leaf)

    def _pieces(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Parameters as the source files hold them: the same names, shapes and dtypes."""
        found: dict[str, Tensor] = {}
        for name in names:
            for key, piece in self.stored[name].split(self._value(name).cpu(), self.checkpoint.shapes).items():
                found[key] = piece.to(self.checkpoint.dtype(key)).contiguous()
        return found

    @staticmethod
    def shard(index: int) -> str:
        return f"block-{index:05d}.safetensors"

    def _save_state(self) -> None:
        assert self.work is not None
        state = {"identity": self.identity, "done": self.done}
        write_file(self.work / STATE, (json.dumps(state, indent=1) + "\n").encode())

    def begin(self, identity: Mapping[str, Any], resume: bool) -> None:
        """Open the folder of the run, fresh or where a run was stopped.

        Raises:
            FileError: the stopped run is of another recipe, model or calibration, or its files are damaged.
        """
        assert self.work is not None
        self.identity = dict(identity)
        path = self.work / STATE
        if resume and path.is_file():
            try:
                state = json.loads(path.read_text(encoding="utf-8"))
                other = [k for k, v in self.identity.items() if state["identity"].get(k) != v]
                self.done = list(state["done"])
            except (ValueError, KeyError, TypeError, AttributeError) as problem:
                raise FileError(f"{path}: not the state of a stopped run ({problem}); start anew") from None
            if other:
                self.done = []
                raise FileError(
                    f"{self.work}: the stopped run had another {', '.join(other)}; use the same, or start anew with "
                    "overwrite=True (--overwrite)"
                )
            return
        try:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
        except OSError as problem:
            raise FileError(f"{self.work}: could not be created ({problem.strerror or problem})") from problem
        self._save_state()

    def _read_back(self, index: int) -> dict[str, Tensor]:
        from safetensors.torch import load as from_bytes

        assert self.work is not None
        path = self.work / self.shard(index)
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise FileError(f"{path}: a finished block of the stopped run is gone ({problem.strerror})") from None
        if hashlib.sha256(content).hexdigest() != self.done[index]["shard"]["sha256"]:
            raise FileError(f"{path}: a finished block of the stopped run is damaged; start anew")
        return from_bytes(content)

    def finish(self, files: Mapping[str, bytes], out: Path, overwrite: bool) -> None:
        """Write everything outside the blocks, the index, and ``files``; then the folder gets its name."""
        assert self.work is not None
        weight_map = {n: self.shard(i) for i, row in enumerate(self.done) for n in row["shard"]["names"]}
        rest = [n for n in self.checkpoint.shapes if n not in weight_map]
        for number, names in enumerate(self._groups(rest)):
            file = f"rest-{number:05d}.safetensors"
            copy_tensors({n: self.checkpoint.folder / self.checkpoint.files[n] for n in names}, self.work / file)
            weight_map |= dict.fromkeys(names, file)
        shards = sorted(set(weight_map.values()))
        final = {s: f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i, s in enumerate(shards)}
        index = {
            "metadata": {"total_size": self.checkpoint.nbytes},
            "weight_map": {n: final[weight_map[n]] for n in sorted(weight_map)},
        }
        with new_folder(out, overwrite) as place:  # the stopped run stays as it is until the folder has its name
            for path in self.checkpoint.folder.iterdir():
                if path.is_file() and path.suffix not in (".safetensors", ".bin") and path.name not in (INDEX, SINGLE):
                    (place / path.name).write_bytes(path.read_bytes())
            for name, content in {**files, INDEX: (json.dumps(index, indent=1) + "\n").encode()}.items():
                (place / name).write_bytes(content)
            for old, new in final.items():
                _put(self.work / old, place / new)
        shutil.rmtree(self.work, ignore_errors=True)

    def _groups(self, names: Sequence[str]) -> list[list[str]]:
        groups: list[list[str]] = []
        held = REST + 1
        for name in names:
            size = self.checkpoint.size(name)
            if held + size > REST:
                groups.append([])
                held = 0
            groups[-1].append(name)
            held += size
        return groups


def _put(file: Path, place: Path) -> None:
    """The same file under a second name; a copy where the file system knows no such thing."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
