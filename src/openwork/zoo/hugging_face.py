"""Models of transformers, from a local folder or from the config that was kept. Never downloads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openwork.errors import FileError, RecipeError


def from_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a folder with ``config.json``, and that config.

    Weights are read from ``.safetensors`` files; a folder without weights gives an untrained model.

    Raises:
        FileError: no readable config, or weights that are not in safetensors files.
        RecipeError: transformers is missing, or has no such class of models.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{folder} must hold a readable config.json of a Hugging Face model: {error}") from error
    if any(folder.glob("*.safetensors")):
        kind = _class_of(config, str(path))
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True), config
    if any(folder.glob("*.bin")):
        raise FileError(f"{folder} holds weights only as pickles (.bin); convert them to safetensors")
    return from_config(config, str(path)), config


def from_config(config: Mapping[str, Any], owner: str) -> nn.Module:
    """An untrained model of a config, in the dtype that the config names.

    Raises:
        RecipeError: transformers is missing, or the config is not one it knows.
    """
    kind = _class_of(config, owner)
    from transformers import AutoConfig

    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        built = AutoConfig.for_model(config.get("model_type") or "", **settings)
    except ValueError as error:
        raise RecipeError(f"{owner}: transformers does not know this model: {error}") from error
    with _default_dtype(built.dtype):
        return kind(built)


def known_source(model: nn.Module) -> dict[str, Any] | None:
    """How a model is built again: its ``openwork_source``, or the class and the config of a transformers model.

    None when nothing tells: a class of the user's own, a model that compaction or LoRA changed, a quantized one.
    """
    if hasattr(model, "openwork_source"):
        return model.openwork_source  # type: ignore[return-value]
    config: Any = getattr(model, "config", None)
    ours = type(model).__module__.startswith("transformers.models.") and hasattr(config, "to_dict")
    if not ours or hasattr(model, "openwork_compaction") or getattr(config, "quantization_config", None):
        return None
    source = config_source(model)
    try:
        with torch.device("meta"):
            fresh = from_config(source["options"]["config"], source["name"]).state_dict()
    except Exception:  # a config that does not build its own model
        return None
    own = model.state_dict()
    same = own.keys() == fresh.keys() and all(
        own[n].shape == t.shape and own[n].dtype == t.dtype for n, t in fresh.items()
    )
    return source if same else None


def config_source(model: nn.Module) -> dict[str, Any]:
    """The class and the config of a transformers model as a source, with the dtype its parameters have now."""
    config: Any = model.config
    name = type(model).__name__
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    plain = json.loads(json.dumps({**config.to_dict(), "architectures": [name], "dtype": dtype}, default=str))
    return {"kind": "hf", "name": name, "options": {"config": plain}}


def _class_of(config: Mapping[str, Any], owner: str) -> Any:
    architecture = (config.get("architectures") or ["none"])[0]
    try:
        import transformers
    except ImportError:
        raise RecipeError(f"{owner} needs transformers; install it: pip install 'openwork[hf]'") from None
    kind = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise RecipeError(
            f"{owner}: architectures must name a model class of transformers {transformers.__version__}, got "
            f"{architecture}; code that a folder brings along is not run"
        )
    return kind


@contextmanager
def _default_dtype(dtype: torch.dtype | str | None) -> Iterator[None]:
    """New parameters in a dtype, as ``from_pretrained`` makes them; buffers with a dtype of their own keep it."""
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(wanted or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
