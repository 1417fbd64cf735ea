"""What a job spends on training and on scoring, in multiply-accumulates, while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openwork.core.distributed import world
from openwork.engine.attach import Attached
from openwork.lab.cost import layer_macs
from openwork.metrics.training import step_macs
from openwork.relax import Masking


class Meter:
    """Counts by the formulas of ``metrics.training``: 2 f + g for every example of a training step.

    ``f`` is the work of a forward pass with the weights that the masks keep, ``g`` that of the gradients of weights:
    as much, or that of all weights at the steps where a rule asks for dense gradients. A soft method (gates other than
    plain masks) works on all weights until it ends, and once for every draw of a mask. Scoring counts every example
    that the model sees while it is pruned, with gradients three times. Biases, norms and products of activations
    with each other do not count.

    Args:
        spent: where the sums stand, ``{"training": ..., "scoring": ...}``; changed in place.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int], spent: dict[str, int]):
        self.spent, self._shape = spent, tuple(input_shape)
        self.begin(model)

    def begin(self, model: nn.Module) -> None:
        """Measure another model, say one that was cut, as it is."""
        self._macs = layer_macs(model, self._shape)
        self._sizes = {n: p.numel() for n, p in model.named_parameters()}
        self.dense = None if self._macs is None else sum(self._macs.values())
        self._forward, self._seen = self.dense, -1

    def under(self, masks: Mapping[str, Tensor]) -> None:
        """From now on these masks are in force; none is the whole model."""
        if self._macs is not None:
            cut = {n: int((~m).sum()) for n, m in masks.items() if n in self._macs}
            self._forward = sum(n * (self._sizes[k] - cut.get(k, 0)) // self._sizes[k] for k, n in self._macs.items())

    def step(self, examples: int, run: Attached | None = None) -> None:
        """One training step that is about to be made; ``run`` decides what is in force and what gets gradients."""
        if self._forward is None or self.dense is None:
            return
        gradients: int | None = None
        if run is not None:
            examples *= run.samples
        if run is not None and run.recipe.density < 1:
            if not isinstance(run.recipe.relaxation, Masking | None):
                self._forward = self.dense
            elif len(run.log) != self._seen:
                self.under(run.masks)
                self._seen = len(run.log)
            rule: Any = run.recipe.rule
            if rule.needs_grads and run.recipe.schedule(run.step + 1).update:
                gradients = self.dense
        self.spent["training"] += examples * int(step_macs(self._forward, gradients))

    @contextmanager
    def scoring(self, model: nn.Module) -> Iterator[None]:
        """Count the examples that a model is called with, those with gradients three times."""

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            if self.dense is not None and args and isinstance(args[0], Tensor):
                times = 3 if torch.is_grad_enabled() else 1
                self.spent["scoring"] += times * len(args[0]) * world() * self.dense

        handle = model.register_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    def told(self) -> dict[str, int | None]:
        """For the manifest; None where a weight of the model is not followed."""
        known = self.dense is not None
        return {f"{name}_macs": spent if known else None for name, spent in self.spent.items()}
