"""What packing brought, measured: zeros, bytes, and milliseconds against both dense baselines."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from openwork.runtime.baseline import fastest_dense
from openwork.runtime.inputs import call, first_tensor, relative_error
from openwork.runtime.timing import interleaved, spread


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        zeros: share of the weights of all matrices that are zero.
        weights: entries of all matrices.
        bytes: of the packed file, or None when there is none.
        dense_bytes: of the dense file.
        times: ``dense`` (as it was trained), ``onednn`` (norms folded, layers in oneDNN's order, in float32 whatever
            the model's own dtype: many processors multiply bfloat16 slowly), ``packed``; each with ``ms`` (median),
            ``low`` and ``high`` (quartiles).
        error: largest difference of the outputs over the largest output.
        threads: of all three.
        batch: shapes of the inputs.
    """

    zeros: float
    weights: int
    bytes: int | None
    dense_bytes: int | None
    times: dict[str, dict[str, float]]
    error: float
    threads: int
    batch: tuple[tuple[int, ...], ...]

    def plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        t = self.times
        size = "no file"
        if self.bytes is not None and self.dense_bytes:
            size = (
                f"{self.bytes:,} instead of {self.dense_bytes:,} bytes on disk ({self.bytes / self.dense_bytes:.3f}x)"
            )

        def line(name: str) -> str:
            return f"{t[name]['ms']:.3g} ms ({t[name]['low']:.3g} to {t[name]['high']:.3g})"

        faster = " and ".join(
            f"{t[base]['ms'] / t['packed']['ms']:.2f}x over {what}"
            for base, what in (("dense", "dense"), ("onednn", "oneDNN prepacked"))
        )
        shapes = ", ".join("x".join(map(str, s)) for s in self.batch)
        plural = "s" * (self.threads > 1)
        lines = (
            f"zeros   {100 * self.zeros:.1f} % of {self.weights:,} weights",
            f"bytes   {size}",
            (
                f"time    {line('packed')} packed, {line('dense')} dense, {line('onednn')} oneDNN prepacked: {faster} "
                f"[input {shapes}, {self.threads} thread{plural}, error {self.error:.1e}]"
            ),
        )
        return "\n".join(lines)


def verdict(
    dense: nn.Module,
    packed: nn.Module,
    example: Any,
    *,
    rounds: int = 11,
    sizes: tuple[int, int] | None = None,
) -> Verdict:
    """Measure the packed copy against the dense model and against the fastest dense one there is, in turn.

    Args:
        dense: the pruned model as it was trained, with its zeros.
        packed: what ``pack`` made of it.
        example: an input, a tuple of inputs or a dict of keyword inputs.
        rounds: of the interleaved measurement.
        sizes: bytes of the packed and of the dense file.
    """
    dense = copy.deepcopy(dense).eval()
    fast, wide = fastest_dense(dense, example)
    models = {"dense": dense, "onednn": fast, "packed": packed}
    expected, found = first_tensor(call(dense, example)), first_tensor(call(packed, example))
    calls = {n: partial(call, m, wide if n == "onednn" else example) for n, m in models.items()}
    times = interleaved(calls, rounds=rounds)
    weights = [p for p in dense.parameters() if p.dim() > 1]
    total = sum(p.numel() for p in weights)
    zeros = sum(int((p == 0).sum()) for p in weights)
    inputs = (
        example.values() if isinstance(example, dict) else example if isinstance(example, tuple | list) else [example]
    )
    packed_bytes, dense_bytes = sizes or (None, None)
    return Verdict(
        zeros / max(1, total),
        total,
        packed_bytes,
        dense_bytes,
        {n: spread(t) for n, t in times.items()},
        relative_error(expected, found),
        torch.get_num_threads(),
        tuple(tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)),
    )
