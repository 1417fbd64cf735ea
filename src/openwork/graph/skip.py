"""What stands where a residual block was: a module that passes its first input on."""

from __future__ import annotations

from typing import Any

from torch import nn

from openwork.errors import StructureError


class Skip(nn.Module):
    """Returns its first input, in a tuple where the block returned one. Holds no parameters."""

    def __init__(self, wrap: bool = False):
        super().__init__()
        self.wrap = wrap

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()))
        return (x,) if self.wrap else x

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its blocks (the kind of attention, for instance) stay readable."""
        kept = self.__dict__.get("_plain", {})
        return kept[name] if name in kept else super().__getattr__(name)


def skip(model: nn.Module, path: str, wrap: bool) -> None:
    """Put a ``Skip`` in the place of a module; its plain attributes stay readable there.

    Raises:
        StructureError: no such module.
    """
    modules = dict(model.named_modules())
    block = modules.get(path)
    if block is None or not path:
        raise StructureError(f"{path}: the plan removes this module, but the model has none of that name")
    above, _, leaf = path.rpartition(".")
    made = Skip(wrap).train(block.training)
    plain = {k: v for k, v in vars(block).items() if not k.startswith("_") and k != "training"}
    made.__dict__["_plain"] = {k: v for k, v in plain.items() if isinstance(v, str | int | float | bool)}
    setattr(modules[above], leaf, made)
