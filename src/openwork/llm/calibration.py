"""Text or token ids -> calibration windows ``[windows, length]``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwork.errors import DataError

SEPARATOR = "<|endoftext|>"
TEXTS = (".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".py", ".html")


def read_text(path: str | Path) -> str:
    """A text file, or all of a folder in the order of their names.

    Raises:
        DataError: nothing there, nothing readable, or only white space.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: the text does not exist")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in TEXTS)
    if not files:
        raise DataError(f"{path}: the folder holds no texts ({', '.join(TEXTS)})")
    try:
        text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: must be UTF-8 text ({problem})") from None
    if not text.strip():
        raise DataError(f"{path}: the text is empty")
    return text


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder, never from the network.

    Raises:
        DataError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as problem:  # transformers lets many kinds through: OSError, ValueError, KeyError, ImportError
        first = (str(problem).splitlines() or ["?"])[0]
        raise DataError(
            f"{folder}: holds no tokenizer that works without the network ({first}); pass tokenizer=FOLDER "
            "(--tokenizer) or a .npy file of token ids"
        ) from None


def refuse_long_windows(length: int, config: Any) -> None:
    """Windows must fit into the context that the config names (``max_position_embeddings``), if it names one.

    Raises:
        DataError: they do not.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and length > int(context):
        raise DataError(
            f"windows of {length} tokens are longer than the model's context of {context}; use fewer tokens"
        )


def token_ids(source: str | Path | Tensor, tokenizer: Any) -> Tensor:
    """``[tokens]`` or ``[windows, length]`` int64: a tensor as it is, a ``.npy`` file of ids, or text.

    Documents of a text (separated by ``<|endoftext|>``) are encoded one by one and put in a row.
    """
    if isinstance(source, Tensor):
        return source.long()
    path = Path(source)
    if path.suffix == ".npy":
        import numpy as np

        try:
            ids = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as problem:
            raise DataError(f"{path}: not a .npy file of token ids ({problem})") from None
        if not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"{path}: token ids must be integers, got {ids.dtype}")
        return torch.as_tensor(ids.astype("int64"))
    return torch.cat(documents_of(path, tokenizer))


def documents_of(path: str | Path, tokenizer: Any) -> list[Tensor]:
    """The token ids of every document of a text; one document where nothing separates them.

    Raises:
        DataError: no tokenizer, or no text.
    """
    text = read_text(path)
    if tokenizer is None:
        raise DataError(f"{path}: text needs a tokenizer; pass tokenizer= or token ids")
    pieces = [text] if SEPARATOR not in text else [p.strip() for p in text.split(SEPARATOR) if p.strip()]
    return [torch.tensor(tokenizer(piece, verbose=False)["input_ids"], dtype=torch.int64) for piece in pieces]


def refuse_unknown(ids: Tensor, vocabulary: int) -> None:
    """Raise DataError for token ids that the model does not have."""
    if ids.numel() and (int(ids.max()) >= vocabulary or int(ids.min()) < 0):
        bad = int(ids.max()) if int(ids.max()) >= vocabulary else int(ids.min())
        raise DataError(
            f"the text holds token id {bad}, but the model knows 0 to {vocabulary - 1}; "
            "the tokenizer belongs to another model"
        )


def windows_of(ids: Tensor, length: int, count: int, seed: int, vocabulary: int) -> Tensor:
    """``[count, length]`` random windows of a running text; ids that are windows already keep their form.

    Raises:
        DataError: too few tokens, or ids that the model does not know.
    """
    if ids.ndim not in (1, 2) or ids.numel() == 0:
        raise DataError(f"calibration must be [tokens] or [windows, length], got shape {tuple(ids.shape)}")
    refuse_unknown(ids, vocabulary)
    if ids.ndim == 2:
        return ids
    if len(ids) < length + 1:
        raise DataError(
            f"calibration has {len(ids)} tokens, one window needs {length}; give more text or a smaller length"
        )
    rng = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(ids) - length, (count,), generator=rng)
    return torch.stack([ids[s : s + length] for s in starts.tolist()])


def digest(windows: Tensor | None) -> str:
    """A hash of the windows, for manifests and for refusing to resume with others."""
    return "none" if windows is None else hashlib.sha256(windows.contiguous().numpy().tobytes()).hexdigest()
