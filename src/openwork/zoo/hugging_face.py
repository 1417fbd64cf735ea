"""Models of transformers, from a local folder or from the config that was kept. Never downloads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from openwork.errors import FileError, RecipeError

# The ending of the architecture's name chooses the class of transformers that builds it.
AUTO_CLASSES = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}


def from_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a folder with ``config.json``, and that config.

    Weights are read from ``.safetensors`` files; a folder without weights gives an untrained model.

    Raises:
        FileError: no readable config, or weights that are not in safetensors files.
        RecipeError: transformers is missing, or the architecture is of another kind.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{folder} must hold a readable config.json of a Hugging Face model: {error}") from error
    if any(folder.glob("*.safetensors")):
        auto = _auto_class(config, str(path))
        model = auto.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
        return model, config
    if any(folder.glob("*.bin")):
        raise FileError(f"{folder} holds weights only as pickles (.bin); convert them to safetensors")
    return from_config(config, str(path)), config


def from_config(config: Mapping[str, Any], owner: str) -> nn.Module:
    """An untrained model of a config.

    Raises:
        RecipeError: transformers is missing, or the config is not one it knows.
    """
    auto = _auto_class(config, owner)
    from transformers import AutoConfig

    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        built = AutoConfig.for_model(config.get("model_type") or "", **settings)
    except ValueError as error:
        raise RecipeError(f"{owner}: transformers does not know this model: {error}") from error
    return auto.from_config(built, trust_remote_code=False)


def _auto_class(config: Mapping[str, Any], owner: str) -> Any:
    architecture = (config.get("architectures") or ["none"])[0]
    name = next((auto for ending, auto in AUTO_CLASSES.items() if architecture.endswith(ending)), None)
    if name is None:
        endings = ", ".join(AUTO_CLASSES)
        raise RecipeError(f"{owner}: the architecture must end in one of {endings}, got {architecture}")
    try:
        import transformers
    except ImportError:
        raise RecipeError(f"{owner} needs transformers; install it: pip install 'openwork[hf]'") from None
    return getattr(transformers, name)
