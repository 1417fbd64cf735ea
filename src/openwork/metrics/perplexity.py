"""Perplexity over windows of a text, and how often two models agree; always with the counts behind the number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.core.batches import device_of, logits_of
from openwork.errors import DataError, DivergedError


@dataclass(frozen=True)
class Perplexity:
    """``value`` = exp of the mean cross-entropy of ``targets`` tokens in ``windows`` windows of at most ``length``."""

    value: float
    windows: int
    targets: int
    length: int
    stride: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"perplexity {self.value:.4f} over {self.targets:,} targets, {self.windows} windows of {self.length}, "
            f"stride {self.stride}, {self.tokens:,} tokens"
        )


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor | Sequence[Tensor], length: int, stride: int | None = None) -> Perplexity:
    """Perplexity of a causal language model on a running text, or on documents.

    Args:
        model: returns logits ``[batch, tokens, vocabulary]`` (or something with ``.logits``).
        ids: ``[tokens]`` int64, or one such tensor per document; windows never cross documents.
        length: tokens per window.
        stride: None: the protocol of SparseGPT and Wanda, ``floor(T / length)`` windows without overlap, ``length - 1``
            targets each, the remainder of a running text dropped, that of a document scored as a shorter window. A
            number below ``length``: windows begin every ``stride`` tokens, and every token but the first is a target
            once, with as much context as the window holds; nothing is dropped.

    Raises:
        DataError: fewer tokens than a window needs, or a stride out of range.
        DivergedError: the cross-entropy is not finite.
    """
    running = isinstance(ids, Tensor)
    documents = [ids] if isinstance(ids, Tensor) else list(ids)
    if not documents or any(d.ndim != 1 for d in documents):
        raise DataError("perplexity needs token ids of shape [tokens], or a list of them")
    if length < 2 or (stride is not None and not 1 <= stride <= length):
        raise DataError(f"perplexity: length must be at least 2 and 1 <= stride <= length, got {length} and {stride}")
    tokens = sum(map(len, documents))
    if max(map(len, documents)) < (length if running and stride is None else 2):
        raise DataError(f"perplexity: the text has {tokens} tokens, a window needs {length}; give more text")
    was = [(m, m.training) for m in model.modules()]
    model.eval()
    total, targets, windows = 0.0, 0, 0
    try:
        for document in documents:
            for begin, end, scored in _windows(len(document), length, stride, running):
                window = document[begin:end].to(device_of(model))
                logits = logits_of(model(window[None]))[0, :-1]
                losses = F.cross_entropy(logits.float(), window[1:], reduction="none")[-scored:]
                total += float(losses.double().sum())
                targets += scored
                windows += 1
    finally:
        for module, training in was:
            module.training = training
    if not math.isfinite(total):
        raise DivergedError(f"perplexity: the cross-entropy is {total} over {targets} targets; the model is broken")
    mean = total / targets
    return Perplexity(math.exp(mean) if mean < 700 else math.inf, windows, targets, length, stride or length, tokens)


def _windows(tokens: int, length: int, stride: int | None, running: bool = True) -> Iterator[tuple[int, int, int]]:
    """(begin, end, how many of its last tokens are scored)."""
    if stride is None:
        for begin in range(0, tokens, length):
            end = min(begin + length, tokens)
            if end - begin == length or (not running and end - begin >= 2):
                yield begin, end, end - begin - 1
        return
    scored_to = 1  # the first token has no context
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        if end > scored_to:
            yield begin, end, min(end - scored_to, end - begin - 1)
            scored_to = end
        if end == tokens:
            return


@dataclass(frozen=True)
class Agreement:
    """Two models on the same tokens: share of equal most likely next tokens, mean KL(reference || model) in nats."""

    top1: float
    divergence: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def agreement(model: nn.Module, reference: nn.Module, ids: Tensor, length: int) -> Agreement:
    """How far a pruned model still says what the dense one says, window by window.

    Raises:
        DataError: fewer tokens than one window.
    """
    if ids.ndim != 1 or len(ids) < length:
        raise DataError(f"agreement needs [tokens] of at least one window of {length}, got {tuple(ids.shape)}")
    same, divergence, count = 0, 0.0, 0
    was = [(m, m.training) for both in (model, reference) for m in both.modules()]
    try:
        model.eval()
        reference.eval()
        for begin, end, _ in _windows(len(ids), length, None):
            window = ids[begin:end][None]
            mine = logits_of(model(window.to(device_of(model))))[0].float().cpu()
            theirs = logits_of(reference(window.to(device_of(reference))))[0].float().cpu()
            same += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
            log_p, log_q = theirs.log_softmax(-1), mine.log_softmax(-1)
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
            count += len(mine)
    finally:
        for module, training in was:
            module.training = training
    return Agreement(same / count, divergence / count, count)
