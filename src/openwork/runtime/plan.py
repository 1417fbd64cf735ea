"""Which kernel each layer runs, found by measuring the candidates at the user's own shapes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.machine import processor
from openwork.kernels import isa, native
from openwork.runtime.inputs import relative_error
from openwork.runtime.timing import interleaved, spread

DENSE = ("dense", "onednn")  # the candidates that store every weight
MARGIN = 0.97  # a sparse kernel must need at most this share of the fastest dense time
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.int8: 5e-2}  # of the largest output, else not a candidate


@dataclass(frozen=True)
class Choice:
    """What was decided for one layer.

    Attributes:
        name: of the layer.
        shape: of its input.
        format: how its weights are stored, or "" when they stay dense.
        density: stored share of the weights.
        times: candidate -> milliseconds, median; empty when nothing was measured.
        chosen: ``dense``, ``onednn``, ``block``, ``column`` or ``int8``.
        error: largest difference from the dense layer, over the largest output.
        reason: why the layer stays dense, or who decided otherwise.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    density: float
    times: Mapping[str, float] = field(default_factory=dict)
    chosen: str = "dense"
    error: float = 0.0
    reason: str = ""

    @property
    def packed(self) -> bool:
        """Whether the layer runs on packed weights."""
        return self.chosen in ("block", "column", "int8")


@dataclass(frozen=True)
class Plan:
    """The choices for a model, the instruction set and the number of threads they were made for."""

    choices: tuple[Choice, ...]
    isa: str = field(default_factory=isa)
    threads: int = field(default_factory=torch.get_num_threads)

    def __getitem__(self, name: str) -> Choice:
        for choice in self.choices:
            if choice.name == name:
                return choice
        raise KeyError(f"plan: {name!r} is not one of its layers: {', '.join(c.name for c in self.choices)}")

    def __str__(self) -> str:
        rows = [("layer", "input", "stored as", "density", "ms of the candidates", "chosen", "error")]
        for c in self.choices:
            times = ", ".join(f"{k} {v:.3g}" for k, v in sorted(c.times.items(), key=lambda kv: kv[1]))
            shape = "x".join(map(str, c.shape))
            error = f"{c.error:.1e}" if c.times else ""  # nothing was run, so nothing is known
            rows.append((c.name, shape, c.format, f"{c.density:.3g}", times or c.reason, c.chosen, error))
        wide = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, wide, strict=True)).rstrip() for r in rows]
        return "\n".join([*lines, f"{self.isa} kernels, {self.threads} thread{'s' * (self.threads > 1)}"])

    def plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"isa": self.isa, "threads": self.threads, "choices": [asdict(c) for c in self.choices]}

    @staticmethod
    def read(data: Mapping[str, Any]) -> Plan:
        """Inverse of ``plain``.

        Raises:
            KeyError, TypeError: data that ``plain`` did not write.
        """
        choices = tuple(Choice(**{**c, "shape": tuple(c["shape"])}) for c in data["choices"])
        return Plan(choices, str(data["isa"]), int(data["threads"]))


@torch.no_grad()
def decide(
    layer: nn.Module, candidates: Mapping[str, nn.Module], x: Tensor, key: str, dtype: torch.dtype
) -> tuple[dict[str, float], str, dict[str, float]]:
    """Times of the layer and its candidates on one input, the fastest that is right, and the errors of all.

    Measurements are remembered under ``key``, in the process and in the user's cache folder.
    """
    expected = layer(x)
    errors = {"dense": 0.0, **{n: relative_error(expected, c(x)) for n, c in candidates.items()}}
    rounding = 4 * torch.finfo(expected.dtype).eps  # of the dense layer itself
    right = {n: c for n, c in candidates.items() if errors[n] <= max(TOLERANCE[dtype], rounding)}
    known = _recall(key)
    if known is None or set(known) != {"dense", *right}:
        calls: dict[str, Callable[[], Any]] = {"dense": lambda: layer(x)}
        calls.update({n: (lambda c=c: c(x)) for n, c in right.items()})  # type: ignore[misc]
        known = {n: spread(t)["ms"] for n, t in interleaved(calls).items()}
        _remember(key, known)
    dense = {n: t for n, t in known.items() if n in DENSE}
    best_dense, best = min(dense, key=dense.__getitem__), min(known, key=known.__getitem__)
    chosen = best if best in dense or known[best] <= MARGIN * known[best_dense] else best_dense
    return known, chosen, errors


def key_of(**facts: Any) -> str:
    """A name for a measurement: everything that its outcome depends on."""
    machine = (processor(), isa(), _build(), torch.get_num_threads(), torch.__version__)
    text = json.dumps([machine, facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def _build() -> tuple[int, int]:
    """Tells compiled kernels apart: bytes and time of their file."""
    module = native()
    if module is None:
        return 0, 0
    found = Path(module.__file__).stat()
    return found.st_size, found.st_mtime_ns


_MEMORY: dict[str, dict[str, float]] = {}


def _file() -> Path | None:
    """``OPENWORK_CACHE`` (empty: no file), else the user's cache folder."""
    given = os.environ.get("OPENWORK_CACHE")
    if given is not None:
        return Path(given) / "plans.json" if given else None
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "openwork" / "plans.json"


def _stored() -> dict[str, dict[str, float]]:
    path = _file()
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return {str(k): {str(n): float(t) for n, t in v.items()} for k, v in data.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a cache that cannot be read is no cache


def _recall(key: str) -> dict[str, float] | None:
    if key not in _MEMORY:
        _MEMORY.update(_stored())
    return _MEMORY.get(key)


def _remember(key: str, times: dict[str, float]) -> None:
    _MEMORY[key] = times
    path = _file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        merged = {**_stored(), key: times}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as part:
            json.dump(merged, part)
        Path(part.name).replace(path)
    except OSError:
        pass  # without the file the next process measures again
