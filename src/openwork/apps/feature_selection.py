"""Feature selection by Sequential Attention: a function for tensors, and an estimator for scikit-learn."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.apps.selector import SequentialSelector as SequentialSelector
from openwork.errors import DataError, DivergedError, RecipeError

ENOUGH = 20  # training steps in a phase; with fewer the logits hardly leave their start


@dataclass(frozen=True, eq=False)
class Selection:
    """What was selected.

    Attributes:
        order: feature indices, first pick first.
        attention: ``(phases, n)`` float32, the gates at the end of each phase, before its pick; 0 where constant.
        constant: indices of constant features, which were no candidates.
        losses: the training loss at the end of each phase.
    """

    order: tuple[int, ...]
    attention: Tensor
    constant: tuple[int, ...]
    losses: tuple[float, ...]


def mlp(inputs: int, outputs: int, hidden: int = 67) -> nn.Module:
    """The network of the paper's experiments: one hidden layer of 67 units, ReLU."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def select_features(
    x: object,
    y: object,
    k: int,
    *,
    model: nn.Module | None = None,
    steps: int = 4000,
    per_step: int = 1,
    start: float = 0.1,
    lr: float = 2e-3,
    batch_size: int = 128,
    standardise: bool = True,
    seed: int = 0,
) -> Selection:
    """Pick ``k`` features by training one network whose inputs pass the gates of a `SequentialSelector` (Algorithm 1).

    The weights persist over the phases; the logits, and Adam's moments of them, start anew after every pick.

    Args:
        x: features ``(rows, n)``; taken as float32.
        y: integer or bool classes ``(rows,)`` for cross-entropy, or floats ``(rows,)`` or ``(rows, m)`` for the
            mean squared error.
        k: how many features.
        model: maps ``(batch, n)`` to logits or predictions, trained in place; an MLP with 67 hidden units when None.
            Constant columns stay in its input, with a gate of 0.
        steps: Adam steps in total.
        per_step: picks a phase.
        start: the share of steps with all gates open.
        lr: learning rate of the weights and the logits.
        batch_size: rows in a batch; batches are drawn by shuffling, all rows at most.
        standardise: give every feature mean 0 and standard deviation 1 first, as the gates interact with the scale.
        seed: of the default model, the batches and the logits.

    Raises:
        DataError: NaN or infinity, shapes that do not fit, too few features that vary, or a single class.
        RecipeError: ``k``, ``per_step``, ``start``, ``steps``, ``lr`` or ``batch_size`` is out of range.
        DivergedError: the loss became NaN or infinite.

    Warns:
        UserWarning: features are constant, or a phase has fewer than 20 steps.
    """
    x, y, outputs = _checked(x, y)
    varies = (x != x[:1]).any(0)
    live, n = varies.nonzero().flatten(), x.shape[1]
    constant = tuple((~varies).nonzero().flatten().tolist())
    if isinstance(k, int) and len(live) < k <= n:
        raise DataError(f"select_features: k = {k} features must vary, got {len(live)} of {n}; lower k")
    select = SequentialSelector(max(1, len(live)), k, per_step, start, seed)
    if steps < math.ceil(select.phases / (1 - start)) or batch_size < 1:
        raise RecipeError(
            f"select_features: steps must be at least one a phase ({select.phases} phases) and batch_size at least 1, "
            f"got {steps} and {batch_size}"
        )
    if not lr > 0:
        raise RecipeError(f"select_features: lr must be positive, got {lr}")
    if constant:
        warnings.warn(f"select_features: left out {len(constant)} constant features: {_some(constant)}", stacklevel=2)
    if (1 - start) * steps / select.phases < ENOUGH:
        warnings.warn(
            f"select_features: {steps} steps give {(1 - start) * steps / select.phases:.3g} to each of "
            f"{select.phases} phases; below {ENOUGH} the picks are close to random",
            stacklevel=2,
        )
    if standardise:
        x = x - x.double().mean(0).float()
        x = x / torch.where(varies, x.double().std(0, correction=0).float(), 1.0).clamp_min(1e-30)
    rng = torch.Generator().manual_seed(seed)
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = mlp(n, outputs)
    return _train(x, y, live, constant, model, select, steps, lr, batch_size, rng)


def _train(
    x: Tensor,
    y: Tensor,
    live: Tensor,
    constant: tuple[int, ...],
    model: nn.Module,
    select: SequentialSelector,
    steps: int,
    lr: float,
    batch_size: int,
    rng: torch.Generator,
) -> Selection:
    optimizer = torch.optim.Adam([*model.parameters(), select.logits], lr=lr)
    open_ = torch.zeros(x.shape[1])
    history, losses = [], []
    rows = torch.empty(0, dtype=torch.int64)
    model.train()
    for step in range(steps):
        if len(rows) < min(batch_size, len(x)):
            rows = torch.randperm(len(x), generator=rng)
        at, rows = rows[:batch_size], rows[batch_size:]
        gates = open_.index_copy(0, live, select.gates(step / steps))
        out = model(x[at] * gates)
        loss = F.mse_loss(out.reshape(y[at].shape), y[at]) if y.is_floating_point() else F.cross_entropy(out, y[at])
        if not bool(loss.isfinite()):
            raise DivergedError(
                f"select_features: the loss must stay finite, got {float(loss.detach())} at step {step}; lower lr"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = select.attention().detach()
        if select.advance((step + 1) / steps):
            optimizer.state.pop(select.logits, None)
            history.append(open_.index_copy(0, live, before))
            losses.append(float(loss.detach()))
    order = tuple(live[list(select.order)].tolist())
    return Selection(order, torch.stack(history), constant, tuple(losses))


def _checked(x: object, y: object) -> tuple[Tensor, Tensor, int]:
    """Features float32, targets int64 or float32, and the number of outputs."""
    x, y = _tensor(x, "x").float(), _tensor(y, "y")
    if x.ndim != 2 or not x.numel():
        raise DataError(f"select_features: x must be (rows, features) and not empty, got {tuple(x.shape)}")
    if len(y) != len(x) or y.ndim not in (1, 2) or (y.ndim == 2 and not y.is_floating_point()):
        raise DataError(
            f"select_features: y must be (rows,) classes or (rows,) or (rows, m) floats for {len(x)} rows, got "
            f"{tuple(y.shape)} {y.dtype}"
        )
    if y.is_floating_point():
        return x, y.float(), 1 if y.ndim == 1 else y.shape[1]
    y = y.long()
    if int(y.min()) < 0 or len(y.unique()) < 2:
        found = "1 class" if len(y.unique()) == 1 else f"several from {int(y.min())}"
        raise DataError(
            f"select_features: y must hold at least two classes numbered from 0, got {found}; number them so"
        )
    return x, y, int(y.max()) + 1


def _tensor(values: object, name: str) -> Tensor:
    found = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
    if found.is_floating_point() and not bool(found.float().isfinite().all()):
        raise DataError(f"select_features: {name} must be finite, got NaN or infinity; drop or fill those rows first")
    return found


def _some(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


if TYPE_CHECKING:
    SequentialAttentionSelector: Any
else:

    def __getattr__(name: str) -> Any:
        """``SequentialAttentionSelector`` is made when it is first asked for: its bases come from scikit-learn."""
        if name != "SequentialAttentionSelector":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from openwork.apps.estimator import make_estimator

        globals()[name] = make_estimator(__name__)
        return globals()[name]
