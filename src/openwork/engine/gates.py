"""Gates on their way in and out of a model: parametrisations, their optimiser entries, folding."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from openwork.core.partition import Partition
from openwork.core.protocols import Gate, Relaxation
from openwork.core.shards import local
from openwork.engine.session import Session
from openwork.errors import DivergedError, RecipeError
from openwork.structure.coupled import Coupled


class Gates:
    """The gates of one run; inactive (and free) when masks are written into the weights."""

    def __init__(self, model: nn.Module, session: Session, relaxation: Relaxation | None, optimizer: Optimizer):
        self._model, self._session, self._optimizer = model, session, optimizer
        self._relaxation = relaxation
        self._gates: dict[str, Gate] = {}
        self._on: dict[str, list[Gate]] = {}  # parameter -> the gates on it
        self._of: dict[str, list[Gate]] = {}  # partition -> its gate, once for each parameter it stands on
        self._before: dict[str, Tensor] = {}
        self._own: Optimizer | None = None
        self._kept: list[tuple[nn.Parameter, Tensor | None]] = []
        self._joined: list[nn.Parameter] = []
        self._groups: list[dict[str, Any]] = []
        if relaxation is None:
            return
        self._orders = {id(m): list(m._parameters) for m in model.modules()}
        shares = _own_shares(session) if getattr(relaxation, "own_share", False) else {}
        for name, part in session.parts.items():
            members = _gated(part)
            seen = part.reading if isinstance(part, Coupled) else part
            gate = relaxation.gate(seen, shares.get(name, session.recipe.density))
            if gate is None:
                continue
            if gate.reparametrises and isinstance(part, Coupled):
                raise RecipeError(
                    f"{name}: {type(gate).__name__} replaces the weights of one tensor, but the units lie in "
                    f"{len(part.members)} coupled ones; take a method that masks or scales units"
                )
            self._gates[name] = gate.to(session.device)
            for member, view in zip(members, _views(self._gates[name], members), strict=True):
                self._on.setdefault(member, []).append(view)
                self._of.setdefault(name, []).append(view)
        try:
            for name, gate in self._gates.items():
                self._join(name, session.params[_gated(session.parts[name])[0]], gate)
            for member, views in self._on.items():
                param = session.params[member]
                for view in views:
                    if view.reparametrises:
                        self._before[member] = param.detach().clone()
                        with torch.no_grad():
                            param.copy_(view.invert(param))
                    for module, leaf in _owners(model, param):
                        parametrize.register_parametrization(module, leaf, view, unsafe=True)
            if hasattr(relaxation, "optimizer"):
                self._own = relaxation.optimizer([p for g in self._gates.values() for p in g.parameters()])
            self.at_step(0)
        except BaseException:
            self.restore()
            raise

    @property
    def active(self) -> bool:
        return bool(self._gates)

    def set_units(self, units: Mapping[str, Tensor]) -> None:
        for name, views in self._of.items():
            for view in views:
                view.set_units(units[name])

    def updated(self, before: Mapping[str, Tensor], phase: str) -> None:
        """Take over the session's new units; the relaxation may settle what becomes of those that come back."""
        units = self._session.units
        self.set_units(units)
        settle = getattr(self._relaxation, "at_update", None)
        if self._gates and settle is not None:
            weights = {n: self._session.params[n].detach() for n in self._on}
            with torch.no_grad():
                settle(self._of, weights, {n: units[n] & ~before[n] for n in self._gates}, phase)

    def learned(self, phase: str) -> dict[str, Tensor]:
        """Gate values per partition, for criteria.

        Raises:
            DivergedError: they are not finite; ``phase`` is named.
        """
        found = {name: gate.learned() for name, gate in self._gates.items()}
        values = {name: value for name, value in found.items() if value is not None}
        for name, value in values.items():
            if not bool(torch.isfinite(value).all()):
                raise DivergedError(
                    f"{name}: {self._gates[name].learns} became NaN or infinite in the {phase} phase; lower the "
                    "learning rate"
                )
        return values

    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> the weight as the network would use it without masks."""
        return {n: self._bare(n, local(p.detach())) for n, p in self._session.params.items()}

    def under(self, edits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New weights -> what must be written underneath."""
        return {n: self._on[n][0].invert(v) if n in self._on else v for n, v in edits.items()}

    def before_step(self) -> None:
        """Keep the gradients of self-optimised gates away from the user's optimiser, which has just unscaled them."""
        if self._own is not None:
            self._kept = [(p, p.grad) for g in self._gates.values() for p in g.parameters()]
            for param, _ in self._kept:
                param.grad = None

    def after_step(self, step: int) -> None:
        """Step the gates' own optimiser, then whatever the relaxation does between steps."""
        if self._own is not None:
            for param, grad in self._kept:
                param.grad = grad
            self._own.step()
            self._own.zero_grad()
            self._kept = []
        self.at_step(step)

    def at_step(self, step: int) -> None:
        """Let the relaxation settle what follows from the step alone: temperatures, projections, thresholds."""
        settle = getattr(self._relaxation, "at_step", None)
        if self._gates and settle is not None:
            weights = {n: self._session.params[_gated(self._session.parts[n])[0]].detach() for n in self._gates}
            with torch.no_grad():
                settle(self._gates, weights, self._own, step)

    def state_dict(self) -> dict[str, Any]:
        """The state of the gates' own optimiser; their parameters travel with the model."""
        return self._own.state_dict() if self._own is not None else {}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        if self._own is not None:
            self._own.load_state_dict(dict(state))
        self.at_step(step)

    def fold(self, phase: str) -> None:
        """Write the effective weights into the parameters and take every gate away.

        Raises:
            DivergedError: gate values or kept weights are not finite; ``phase`` is named and nothing is written.
        """
        self.learned(phase)
        values = {n: self._session.params[n].detach() for n in self._on}
        masks = self._session.masks() if self._on else {}
        with torch.no_grad():
            for name, views in self._on.items():
                for view in views:
                    values[name] = view(values[name])
                if not bool(torch.isfinite(values[name][masks[name]]).all()):
                    raise DivergedError(
                        f"{name}: weights under {type(views[0]).__name__} became NaN or infinite in the {phase} phase; "
                        "lower the learning rate"
                    )
        self._leave(values)

    def remove(self) -> None:
        """Take every gate away and keep the weights, without masks."""
        self._leave({n: self._bare(n, self._session.params[n].detach()).clone() for n in self._on})

    def restore(self) -> None:
        """Take every gate away and leave everything as it was before the first step."""
        self._leave({n: self._before.get(n, self._session.params[n].detach().clone()) for n in self._on})

    def _bare(self, name: str, raw: Tensor) -> Tensor:
        gate = next(iter(self._on.get(name, ())), None)
        if gate is None or not gate.reparametrises:
            return raw
        with torch.no_grad():
            return gate.bare(raw)

    def _leave(self, values: Mapping[str, Tensor]) -> None:
        for name in self._on:
            param = self._session.params[name]
            for module, leaf in _owners(self._model, param):
                _unregister(module, leaf, param, self._orders[id(module)])
            with torch.no_grad():
                param.copy_(values[name])
        self._gates, self._on, self._of = {}, {}, {}
        self._part()

    def _join(self, name: str, weight: nn.Parameter, gate: Gate) -> None:
        """Gate parameters join the optimiser group of their weight, so they share its learning rate and decay.

        A relaxation with a ``learning_rate`` factor or ``group`` options gets a group of its own. Self-optimised gates
        join too, so that gradient scalers and clipping see them.
        """
        rate = getattr(self._relaxation, "learning_rate", 1.0)
        own = dict(getattr(self._relaxation, "group", {}))
        group = next(g for g in self._optimizer.param_groups if any(p is weight for p in g["params"]))
        mine = {f"{name}.{leaf}": param for leaf, param in gate.named_parameters()}
        names = {"param_names": list(mine)} if "param_names" in group else {}
        if (rate == 1.0 and not own) or not mine:
            group["params"].extend(mine.values())
            if names:
                group["param_names"].extend(names["param_names"])
        else:
            if "initial_lr" in group:
                raise RecipeError(
                    f"{name}: gates with a learning rate of their own ({rate:g}) need a parameter group "
                    "that no earlier scheduler knows; make the scheduler after ow.attach"
                )
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")} | own
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


def _own_shares(session: Session) -> dict[str, float]:
    """Partition -> the share of its units that stays in the end, where an allocation shares unequally by shape."""
    allocation = getattr(session.recipe.rule, "allocation", None)
    if getattr(allocation, "scored", True):
        return {}
    scores = {n: torch.ones(p.n_units) for n, p in session.parts.items()}
    counts = allocation(session.now(0), scores, session.recipe.density)  # type: ignore[misc]
    return {n: max(1, int(count)) / session.parts[n].n_units for n, count in counts.items()}


def _gated(part: Partition) -> tuple[str, ...]:
    """The tensors that a gate stands on: those that read the units of a coupled partition."""
    return part.gated if isinstance(part, Coupled) else part.members


def _views(gate: Gate, members: Sequence[str]) -> list[Gate]:
    """The same gate, once for every tensor: parameters and masks are shared, only the tensor it looks at differs."""
    views = [gate]
    for member in members[1:]:
        view = copy.copy(gate)
        view._buffers = dict(gate._buffers)
        view.__dict__["member"] = member
        views.append(view)
    return views


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
