"""The model of a folder, built again from what the folder says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from openwork.errors import OpenworkError
from openwork.zoo.registry import rebuild_model


def rebuilt(folder: Path, data: Mapping[str, Any], allow_factory: bool) -> nn.Module:
    """A fresh model by the ``source`` of an index; its weights come later.

    Raises:
        OpenworkError: the index has no source.
    """
    if data.get("source") is None:
        raise OpenworkError(
            f"{folder}: the folder does not say how to build its model ({data.get('model_class')}); "
            "build it yourself and pass model="
        )
    return rebuild_model(data["source"], allow_factory=allow_factory)
