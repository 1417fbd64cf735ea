"""The config of a transformers model after compaction, for plain ``from_pretrained``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from openwork.errors import OpenworkError

FIELDS = (
    "intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim",
    "num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
    "decoder_attention_heads", "head_dim", "hidden_size", "n_embd", "d_model", "dim", "num_local_experts",
    "num_experts", "n_routed_experts", "moe_intermediate_size", "word_embed_proj_dim",
)  # fmt: skip
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")


def with_config(model: nn.Module) -> None:
    """Edit ``model.config`` until a fresh model of it has the shapes of this one.

    Raises:
        OpenworkError: no config, or no values of its fields give these shapes (layers of different widths, or a width
            that the config cannot say, such as a head width of its own).
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        raise OpenworkError(f"homogeneous=True needs a transformers model with a config, got {type(model).__name__}")
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    problem = "its layers differ"
    for changes in _candidates(model, config):
        made = type(config)(**{**config.to_dict(), **changes})
        problem = _difference(type(model), made, wanted)
        if not problem:
            for name, value in changes.items():
                setattr(config, name, value)
            return
    raise OpenworkError(
        f"{type(model).__name__}: no config gives these widths ({problem}); keep the same number of units in every "
        "layer (scope='layer'), or leave homogeneous=False and load with ow.load"
    )


def _difference(kind: Any, config: Any, wanted: dict[str, tuple[int, ...]]) -> str:
    try:
        with torch.device("meta"):
            fresh = kind(config)
    except Exception as problem:  # a config of impossible widths fails in its own ways
        return f"{type(problem).__name__}: {problem}"
    found = {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
    different = [n for n in wanted if found.get(n) != wanted[n]]
    return f"{different[0]} is {wanted[different[0]]}, not {found.get(different[0])}" if different else ""


def _candidates(model: nn.Module, config: Any) -> Iterator[dict[str, Any]]:
    """Values for the fields that the attributes of the small model suggest, the plainest first."""
    plan: dict[str, Any] = model.openwork_plan  # type: ignore[assignment]
    changes: dict[str, Any] = {}
    for _, _, old, new in plan["rewrites"]:
        for name in FIELDS:
            if getattr(config, name, None) == old and isinstance(old, int):
                changes.setdefault(name, new)
    counts: dict[int, set[int]] = {}
    for kept, n in plan["units"].values():
        counts.setdefault(n, set()).add(kept)
    for name in FIELDS:
        value = getattr(config, name, None)
        if isinstance(value, int) and len(counts.get(value, ())) == 1:
            changes[name] = next(iter(counts[value]))
    width = getattr(config, "head_dim", None) or _head_width(config)
    base = dict(changes)
    if width and hasattr(config, "head_dim"):
        base["head_dim"] = width
    yield base
    heads = next((n for n in HEADS if isinstance(getattr(config, n, None), int)), "")
    kv = getattr(config, "num_key_value_heads", None)
    if heads and kv:
        old = getattr(config, heads)
        for kept in sorted({k for k, n in plan["units"].values() if n == kv}):
            for rep in sorted({k for k, n in plan["units"].values() if n == old // kv} | {old // kv}, reverse=True):
                yield {**base, "num_key_value_heads": kept, heads: kept * rep}
    ffn = [n for n in FIELDS if n in base and n not in (*HEADS, "num_key_value_heads", "head_dim")]
    for name in ffn:
        yield {k: v for k, v in base.items() if k in (name, "head_dim")}


def _head_width(config: Any) -> int | None:
    hidden = getattr(config, "hidden_size", None)
    heads = next((getattr(config, n) for n in HEADS if isinstance(getattr(config, n, None), int)), None)
    return hidden // heads if isinstance(hidden, int) and heads else None
