"""A model and an example -> its ATen graph, by ``torch.export``. No values are computed, so meta tensors do as well."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from openwork.errors import OpenworkError
from openwork.graph.example import Example


class GraphRefused(OpenworkError):
    """A model cannot be turned into a graph: its control flow depends on data, or torch.export does not know it.

    ``why`` quotes torch.
    """

    why = ""


@dataclass(frozen=True)
class Traced:
    """The graph, which input of it is which parameter or buffer of the model, and constants made inside."""

    module: GraphModule
    tensors: dict[str, str]
    values: dict[str, Tensor]


def trace(model: nn.Module, example: Example) -> Traced:
    """Export a model in eval mode; the model is left as it was.

    Raises:
        GraphRefused: torch.export cannot follow the forward pass; the message quotes why.
    """
    args, kwargs = example.tensors(device_of(model))
    with quiet(model):
        try:
            with redirect_stderr(StringIO()):  # torch prints the graph so far when it gives up
                exported = torch.export.export(model, args, kwargs, strict=False)
        except Exception as problem:
            text = str(problem).strip().splitlines()
            why = f"{type(problem).__name__}: {(text[0] if text else '')[:300]}"
            refusal = GraphRefused(
                f"{type(model).__name__}: torch.export cannot follow the forward pass ({why}); check the example. "
                "Without a graph ow.channels masks single filters at a density, and nothing can be counted or cut"
            )
            refusal.why = why
            raise refusal from problem
    signature = exported.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    values = {n: exported.constants[c] for n, c in signature.inputs_to_lifted_tensor_constants.items()}
    return Traced(exported.graph_module, dict(tensors), values)


def device_of(model: nn.Module) -> torch.device:
    """Where the first tensor of a model lies."""
    found = next((t for t in (*model.parameters(), *model.buffers())), None)
    return found.device if isinstance(found, Tensor) else torch.device("cpu")


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode, no key-value cache in the outputs, no warnings of torch's own, and the speed that can be had.

    Half of the time of an export goes into Python source and stack traces that nobody reads here.
    """
    from torch.fx import config as settings
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    modes = [(m, m.training) for m in model.modules()]
    configs = [c for c in {id(c): c for c in map(_config, model.modules())}.values() if c is not None]
    caches = [(c, c.use_cache) for c in configs]
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    collecting, traces = gc.isenabled(), getattr(settings, "do_not_emit_stack_traces", None)
    gc.disable()
    try:
        model.eval()
        logger.setLevel(logging.CRITICAL)  # what it says of data in the control flow, GraphRefused says
        for config in configs:
            config.use_cache = False
        if traces is not None:
            settings.do_not_emit_stack_traces = True
        with warnings.catch_warnings(), _use_lazy_graph_module(True):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if traces is not None:
            settings.do_not_emit_stack_traces = traces
        for config, cache in caches:
            config.use_cache = cache
        for module, training in modes:
            module.training = training
        if collecting:
            gc.enable()


def _config(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if hasattr(config, "use_cache") and not isinstance(config, nn.Module) else None
