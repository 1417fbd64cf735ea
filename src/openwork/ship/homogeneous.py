"""The config of a transformers model after compaction, for plain ``from_pretrained``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations, islice, product
from typing import Any

import torch
from torch import nn

from openwork.errors import OpenworkError
from openwork.graph.plan import Plan
from openwork.graph.skip import Skip

FIELDS = (
    "intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim",
    "num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
    "decoder_attention_heads", "head_dim", "hidden_size", "n_embd", "d_model", "dim", "num_local_experts",
    "num_experts", "n_routed_experts", "moe_intermediate_size", "word_embed_proj_dim", "vocab_size",
)  # fmt: skip
DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
INDICES = ("layer_idx", "layer_id", "layer_index")
MOST = 400
"""Configs that are tried before giving up."""


def with_config(model: nn.Module) -> None:
    """Edit ``model.config`` until a fresh model of it has the shapes of this one.

    Blocks that compaction removed leave their lists, and the rest is numbered anew, also in lists of the config that
    have an entry per block. Ids of special tokens are translated where the vocabulary was cut; those of tokens that are
    gone become None. Fields of the config that hold a size which compaction changed are tried one by one, then in
    pairs, then in threes.

    Raises:
        OpenworkError: no config, or no values of its fields give these shapes (layers of different widths, or a width
            that the config cannot say, such as heads of a width of their own).
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        raise OpenworkError(f"homogeneous=True needs a transformers model with a config, got {type(model).__name__}")
    depths = _close_gaps(model)
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    best: list[str] | None = None
    with _silent():
        for changes in islice(_candidates(model, config, depths), MOST):
            different = _differences(type(model), {**config.to_dict(), **changes}, config, wanted)
            if not different:
                for name, value in changes.items():
                    setattr(config, name, value)
                for name, value in _special(model, getattr(model, "generation_config", None)).items():
                    setattr(model.generation_config, name, value)
                return
            best = different if best is None or len(different) < len(best) else best
    raise OpenworkError(
        f"{type(model).__name__}: no config gives these widths (nearest: {best[0] if best else 'nothing to change'}, "
        f"{len(best or ())} tensors differ); keep the same number of units in every layer (scope='layer'), leave out "
        "what the config has no field for, or take homogeneous=False and load with ow.load"
    )


def _differences(kind: Any, plain: dict[str, Any], config: Any, wanted: dict[str, tuple[int, ...]]) -> list[str]:
    try:
        with torch.device("meta"):
            fresh = kind(type(config)(**plain))
    except Exception as problem:  # a config of impossible widths fails in its own ways
        return [f"{type(problem).__name__}: {problem}"] * (len(wanted) + 1)
    found = {n: tuple(t.shape) for n, t in fresh.state_dict().items()}
    names = dict.fromkeys((*wanted, *found))
    return [f"{n} is {wanted.get(n)}, not {found.get(n)}" for n in names if found.get(n) != wanted.get(n)]


def _close_gaps(model: nn.Module) -> dict[int, list[int]]:
    """Take removed blocks out of their lists; old length of a list -> the old numbers of the blocks that stay."""
    found: dict[int, list[int]] = {}
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or not any(isinstance(block, Skip) for block in module):
            continue
        stay = [i for i, block in enumerate(module) if not isinstance(block, Skip)]
        for new, old in enumerate(stay):
            for inner in module[old].modules():
                for name in INDICES:
                    if vars(inner).get(name) == old:
                        setattr(inner, name, new)
        found[len(module)] = stay
        blocks = [module[i] for i in stay]
        module._modules.clear()
        module.extend(blocks)
    return found


def _special(model: nn.Module, config: Any) -> dict[str, Any]:
    """The ids of special tokens in the small vocabulary, where it was cut."""
    plan = Plan.from_dict(model.openwork_compaction)
    ids = plan.token_ids
    if config is None or ids is None:
        return {}
    places = {int(old): new for new, old in enumerate(ids)}
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name.endswith("_token_id") and value is not None:
            many = [places[v] for v in value if v in places] if isinstance(value, list) else places.get(value)
            found[name] = many
    return found


def _candidates(model: nn.Module, config: Any, depths: Mapping[int, list[int]]) -> Iterator[dict[str, Any]]:
    plan: dict[str, Any] = model.openwork_compaction  # type: ignore[assignment]
    news: dict[int, set[int]] = {}
    for _, _, old, new in plan["rewrites"]:
        if isinstance(old, int) and isinstance(new, int):
            news.setdefault(old, set()).add(new)
    for kept, n in plan["units"].values():
        news.setdefault(n, set()).add(kept)
    halves = {(n * m, kept * left) for kept, n in plan["units"].values() for left, m in plan["units"].values()}
    for n, kept in halves:  # query heads are key-value heads times their repeats
        news.setdefault(n, set()).add(kept)
    known = hasattr(config, "head_dim") or any(hasattr(m, "head_dim") for m in model.modules())
    fixed: dict[str, Any] = {"head_dim": width} if (width := _head_width(config)) and known else {}
    fixed |= _special(model, config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) in depths:
            fixed[name] = [value[i] for i in depths[len(value)]]
    options: dict[str, list[int]] = {}
    for name in FIELDS:
        value = getattr(config, name, None)
        value = 4 * config.n_embd if name == "n_inner" and hasattr(config, name) and value is None else value
        smaller = sorted(n for n in news.get(value, ()) if n < value) if isinstance(value, int) else []
        if smaller:
            options[name] = smaller
    lengths: dict[str, Any] = {n: getattr(config, n, None) for n in DEPTHS}
    options |= {n: [len(depths[old])] for n, old in lengths.items() if old in depths}
    for count in (1, 2, 3):
        for names in combinations(options, count):
            for values in product(*(options[n] for n in names)):
                yield {**fixed, **dict(zip(names, values, strict=True))}


def _head_width(config: Any) -> int | None:
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    return getattr(config, "head_dim", None) or (hidden // heads if isinstance(hidden, int) and heads else None)


@contextmanager
def _silent() -> Iterator[None]:
    """No remarks of transformers about configs that are only tried."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
