"""Gates on their way in and out of a model: parametrisations, their optimiser entries, folding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from openwork.core.protocols import Gate, Relaxation
from openwork.engine.session import Session
from openwork.errors import RecipeError


class Gates:
    """The gates of one run; inactive (and free) when masks are written into the weights."""

    def __init__(self, model: nn.Module, session: Session, relaxation: Relaxation | None, optimizer: Optimizer):
        self._model, self._session, self._optimizer = model, session, optimizer
        self._gates: dict[str, Gate] = {}
        self._joined: list[nn.Parameter] = []
        self._groups: list[dict[str, Any]] = []
        if relaxation is None:
            return
        self._orders = {id(m): list(m._parameters) for m in model.modules()}
        for name, part in session.parts.items():
            if len(part.members) != 1:
                raise RecipeError(f"{name}: gates need partitions of one tensor each, got {len(part.members)}")
            gate = relaxation.gate(part, session.recipe.density)
            if gate is not None:
                self._gates[name] = gate.to(session.device)
        try:
            for name, gate in self._gates.items():
                self._join(name, session.params[name], gate, getattr(relaxation, "learning_rate", 1.0))
                for module, leaf in _owners(model, session.params[name]):
                    parametrize.register_parametrization(module, leaf, gate, unsafe=True)
        except BaseException:
            self.remove()
            raise

    @property
    def active(self) -> bool:
        return bool(self._gates)

    def set_units(self, units: Mapping[str, Tensor]) -> None:
        for name, gate in self._gates.items():
            gate.set_units(units[name])

    def learned(self) -> dict[str, Tensor]:
        """Gate values per partition, for criteria."""
        found = {name: gate.learned() for name, gate in self._gates.items()}
        return {name: value for name, value in found.items() if value is not None}

    def fold(self) -> None:
        """Write the effective weights into the parameters and take every gate away."""
        self._leave(fold=True)

    def remove(self) -> None:
        """Take every gate away and keep the underlying weights."""
        self._leave(fold=False)

    def _leave(self, fold: bool) -> None:
        for name, gate in self._gates.items():
            param = self._session.params[name]
            with torch.no_grad():
                value = gate(param) if fold else param.detach().clone()
            for module, leaf in _owners(self._model, param):
                _unregister(module, leaf, param, self._orders[id(module)])
            with torch.no_grad():
                param.copy_(value)
        self._gates = {}
        self._part()

    def _join(self, name: str, weight: nn.Parameter, gate: Gate, rate: float) -> None:
        """Gate parameters join the optimiser group of their weight, so they share its learning rate and decay."""
        group = next(g for g in self._optimizer.param_groups if any(p is weight for p in g["params"]))
        mine = {f"{name}.{leaf}": param for leaf, param in gate.named_parameters()}
        names = {"param_names": list(mine)} if "param_names" in group else {}
        if rate == 1.0 or not mine:
            group["params"].extend(mine.values())
            if names:
                group["param_names"].extend(names["param_names"])
        else:
            if "initial_lr" in group:
                raise RecipeError(
                    f"{name}: gates with a learning rate of their own ({rate:g}) need a parameter group "
                    "that no earlier scheduler knows; make the scheduler after ow.attach"
                )
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            lr = group["lr"] * rate
            self._optimizer.add_param_group(
                {**options, "params": list(mine.values()), "lr": lr} | ({"params": list(mine.items())} if names else {})
            )
            self._groups.append(self._optimizer.param_groups[-1])
        self._joined.extend(mine.values())

    def _part(self) -> None:
        gone = {id(p) for p in self._joined}
        ours = {id(g) for g in self._groups}
        groups = self._optimizer.param_groups if gone else []
        groups[:] = [g for g in groups if id(g) not in ours]
        for group in groups:
            stay = [id(p) not in gone for p in group["params"]]
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [v for v, s in zip(group[key], stay, strict=True) if s]
        for param in self._joined:
            self._optimizer.state.pop(param, None)
        self._joined, self._groups = [], []


def _owners(model: nn.Module, param: nn.Parameter) -> list[tuple[nn.Module, str]]:
    """Every place where a parameter is registered (tied weights have several), parametrised or not."""
    found = []
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for leaf, value in module._parameters.items():
            if value is param:
                found.append((module, leaf))
        if parametrize.is_parametrized(module):
            for leaf, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if chain.original is param:
                    found.append((module, leaf))
    return found


def _unregister(module: nn.Module, leaf: str, param: nn.Parameter, order: list[str]) -> None:
    """Take one parametrisation away: the same Parameter object comes back, at its old place among the others.

    torch's own removal edits the class, which a deep copy of the model taken during the run shares; the copy would lose
    its weights. Here the module gets another class and the copy keeps the old one.
    """
    if not parametrize.is_parametrized(module, leaf):
        return  # attaching failed before this one had its turn
    cls = type(module)
    del module.parametrizations[leaf]  # type: ignore[union-attr, operator]
    if len(module.parametrizations):  # type: ignore[arg-type]
        rest = {k: v for k, v in vars(cls).items() if k not in (leaf, "__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, rest)
    else:
        del module.parametrizations
        module.__class__ = cls.__bases__[0]
    module._parameters[leaf] = param
    for name in order:
        if name in module._parameters:
            module._parameters[name] = module._parameters.pop(name)
