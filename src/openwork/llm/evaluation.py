"""Folders of language models evaluated on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import DataError, FileError
from openwork.llm.calibration import (
    documents_of,
    load_tokenizer,
    read_text,
    refuse_long_windows,
    refuse_unknown,
    token_ids,
)
from openwork.llm.checkpoint import Checkpoint, load_config
from openwork.llm.skeleton import BIDIRECTIONAL, auto_class_of
from openwork.metrics.perplexity import agreement, perplexity
from openwork.ship import load
from openwork.ship.export import PACKED


def load_model(folder: str | Path) -> nn.Module:
    """The language model of a folder, never from the network; a packed one of ``openwork export`` as well.

    Raises:
        FileError: transformers cannot load it, or finds weights missing.
        RecipeError: transformers does not know its architecture.
    """
    if (Path(folder) / PACKED).is_file():
        return load(folder)[0]
    import transformers

    auto: Any = getattr(transformers, auto_class_of(load_config(Checkpoint(folder).folder)))
    try:
        model, told = auto.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        first = (str(problem).splitlines() or ["?"])[0]
        raise FileError(f"{folder}: transformers cannot load it ({first})") from None
    if told["missing_keys"]:
        raise FileError(f"{folder}: {sorted(told['missing_keys'])[0]} is in none of the files")
    return model.eval()


def refuse_encoder(folder: str | Path) -> None:
    """Raise DataError for a folder whose model predicts no next token, FileError for what is no folder."""
    if not Path(folder).is_dir():
        raise FileError(f"{folder}: is no folder; models are never downloaded, pass the folder of a model")
    if not (Path(folder) / "config.json").is_file():
        return  # packed, or to be refused by whoever opens it
    config = load_config(Path(folder))
    if auto_class_of(config) in BIDIRECTIONAL:
        raise DataError(
            f"{folder}: {config.architectures[0]} predicts no next token, so it has no perplexity and "
            "no tasks of language models; measure it on its own task"
        )


def evaluation_text(folder: str | Path, text: str | Path, tokenizer: str | Path | None = None) -> list[Tensor]:
    """The token ids of every document of a text; what is wrong with it is said before any model is loaded.

    Raises:
        DataError: no text, no tokenizer, or a folder whose model predicts no next token.
        FileError: no folder.
    """
    refuse_encoder(folder)
    if Path(text).suffix == ".npy":
        return [token_ids(text, None).flatten()]
    read_text(text)  # a missing text is named before a missing tokenizer
    return documents_of(text, load_tokenizer(tokenizer or folder))


def fitting(model: nn.Module, documents: list[Tensor], length: int | None) -> tuple[Tensor | list[Tensor], int]:
    """The documents as ``perplexity`` takes them, and tokens per window: the context, at most 2048, unless given.

    Raises:
        DataError: ids that the model does not know, or windows longer than its context.
    """
    config: Any = model.config
    refuse_unknown(torch.cat(documents), int(config.vocab_size))
    if length is None:
        length = min(2048, int(getattr(config, "max_position_embeddings", 2048)))
    refuse_long_windows(length, config)
    return documents[0] if len(documents) == 1 else documents, length


def evaluate(
    folder: str | Path,
    text: str | Path,
    length: int | None = None,
    stride: int | None = None,
    tokenizer: str | Path | None = None,
    against: str | Path | None = None,
) -> dict[str, Any]:
    """Perplexity, and with ``against`` agreement; everything that is needed to measure it again."""
    documents = evaluation_text(folder, text, tokenizer)
    model = load_model(folder)
    source, length = fitting(model, documents, length)
    found = {"model": str(folder), "text": str(text), "documents": len(documents)}
    found["perplexity"] = perplexity(model, source, length, stride).to_dict()
    if against is not None:
        ids = torch.cat(documents)
        found["agreement"] = agreement(model, load_model(against), ids, min(length, len(ids))).to_dict()
    return found


def compare(
    dense: str | Path, pruned: str | Path, text: str | Path, length: int | None, tokenizer: str | Path | None
) -> dict[str, Any]:
    """The perplexities of two folders and their agreement."""
    mine = evaluate(pruned, text, length, None, tokenizer or dense, dense)
    theirs = evaluate(dense, text, length, None, tokenizer or dense)
    return {"text": str(text), "dense": theirs["perplexity"], "pruned": mine["perplexity"],
            "agreement": mine["agreement"]}  # fmt: skip
