"""What a batch is, how a model is called on it, and where batches come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import DataError, DivergedError, MissingStatistic

Loss = Callable[[Any, Any], Tensor]
Call = Callable[..., Any]


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a batch."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to_device(v, device) for v in batch)
    return batch


def forward(call: Call, batch: Any) -> Any:
    """The model's output on a batch: ``(x, y, ...)`` calls it on ``x``, a mapping by keyword, a tensor as it is."""
    if isinstance(batch, Mapping):
        return call(**batch)
    if isinstance(batch, tuple | list):
        return call(batch[0])
    return call(batch)


def loss_on(call: Call, batch: Any, loss: Loss | None, step: int = 0) -> Tensor:
    """The loss of one batch as a finite scalar.

    ``(x, y)`` gives ``loss(model(x), y)``; a mapping gives the output's own ``.loss`` when ``loss`` is None,
    else ``loss(output, batch)``.

    Raises:
        DivergedError: NaN or infinite loss; the message names the step.
        DataError: a batch without a target.
    """
    output = forward(call, batch)
    if isinstance(batch, Mapping):
        value = getattr(output, "loss", None) if loss is None else loss(output, batch)
        if value is None:
            raise DataError("the model's output has no .loss; put labels into the batch or pass loss=")
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        if loss is None:
            raise MissingStatistic("a loss is needed for (x, y) batches; pass loss=, for instance F.cross_entropy")
        value = loss(output, batch[1])
    else:
        raise DataError(f"a batch must be (x, y) or a mapping to compute a loss, got {type(batch).__name__}")
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise DataError(
            f"loss must return a scalar tensor, got {value if not isinstance(value, Tensor) else tuple(value.shape)}"
        )
    if not bool(torch.isfinite(value)):
        raise DivergedError(
            f"the loss is {float(value.detach())} at step {step}; lower the learning rate or check the data"
        )
    return value


class Feed:
    """Endless batches from the user's data; a loader that can be restarted is, one that cannot must be long enough."""

    def __init__(self, data: Iterable[Any] | None, device: torch.device):
        self.data, self.device = data, device
        self.served = 0
        self._iterator: Iterator[Any] | None = None

    def next(self, needed: str = "") -> Any:
        """The next batch on the model's device.

        Raises:
            MissingStatistic: no data was given.
            DataError: the data is empty, or a one-way iterator ended.
        """
        if self.data is None:
            raise MissingStatistic(f"data is needed{needed and ' for ' + needed}; pass data=, an iterable of batches")
        if self._iterator is None:
            try:
                self._iterator = iter(self.data)
            except TypeError:
                raise DataError(f"data must be an iterable of batches, got {type(self.data).__name__}") from None
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self.served == 0:
                raise DataError("the data is empty: iterating over it gave no batch") from None
            if self._iterator is self.data:
                raise DataError(
                    f"the data ended after {self.served} batches but more are needed{needed and ' for ' + needed}; "
                    "pass a DataLoader or a list, which can be read again, or fewer steps"
                ) from None
            self._iterator = iter(self.data)
            batch = next(self._iterator, None)
            if batch is None:
                raise DataError(
                    f"the data gave {self.served} batches and none when it was read again; pass a DataLoader or a list"
                ) from None
        self.served += 1
        return to_device(batch, self.device)

    def sweep(self, batches: int | None, needed: str = "") -> Iterator[Any]:
        """So many batches; with None every batch once, from the first one on where the data can be read again."""
        if batches is not None:
            for _ in range(batches):
                yield self.next(needed)
            return
        if self._iterator is not self.data:
            self._iterator = None
        yield self.next(needed)
        for batch in self._iterator or ():
            self.served += 1
            yield to_device(batch, self.device)

    def skip(self, count: int) -> None:
        """Draw and drop batches, so that a resumed run sees the same ones as a run that never stopped."""
        while self.data is not None and self.served < count:
            self.next("resuming")


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter, or of the first buffer when there is none."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def logits_of(output: Any) -> Tensor:
    """The tensor that a model returned, or its ``.logits``."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise DataError(f"the model must return a tensor or something with .logits, got {type(output).__name__}")
    return logits
