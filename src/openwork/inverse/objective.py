"""Smooth convex losses over coordinates: value, gradient, refit on a support, and the Lipschitz constant."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openwork.errors import DataError, DivergedError, RecipeError


class Objective(Protocol):
    """What a search needs to know of a loss ``L``; ``shape`` is that of ``beta``, ``(n,)`` or ``(n, m)``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def value(self, beta: Tensor) -> float:
        """``L(beta)``."""

    def grad(self, beta: Tensor) -> Tensor:
        """``grad L(beta)``, float64, the shape of ``beta``."""

    def refit(self, support: Tensor) -> Tensor:
        """The minimiser of ``L`` over all ``beta`` that vanish outside ``support``, bool ``(n,)``."""

    def curvature(self, beta: Tensor, index: Tensor) -> Tensor:
        """The Hessian of ``L`` at ``beta`` on some coordinates (one output's), float64 ``(d, d)``."""

    def lipschitz(self) -> float:
        """A Lipschitz constant of the gradient."""


class Quadratic:
    """``L(beta) = <beta, Q beta> / 2 - <b, beta> + constant``, ``Q`` ``(n, n)`` positive semidefinite, ``b`` ``(n,)``.

    With ``b`` of shape ``(n, m)`` there are ``m`` outputs, and ``beta`` is ``(n, m)``. All float64.

    Raises:
        DataError: NaN or infinite entries, shapes that do not fit, or ``Q`` is not symmetric.
    """

    def __init__(self, Q: Tensor, b: Tensor, constant: float = 0.0):
        self.Q, self.b = matrix(Q, "Q"), vectors(b, "b")
        self.constant = float(constant)
        n = len(self.b)
        if self.Q.shape != (n, n):
            raise DataError(f"Quadratic: Q must be {n} x {n} like b is long, got {tuple(self.Q.shape)}")
        if not torch.allclose(self.Q, self.Q.T, rtol=1e-8, atol=1e-10 * float(self.Q.abs().max())):
            raise DataError("Quadratic: Q must be symmetric; pass (Q + Q.T) / 2, which is the same loss")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.b.shape)

    def value(self, beta: Tensor) -> float:
        return float((beta * (self.Q @ beta / 2 - self.b)).sum()) + self.constant

    def grad(self, beta: Tensor) -> Tensor:
        return self.Q @ beta - self.b

    def refit(self, support: Tensor) -> Tensor:
        beta = torch.zeros(self.shape, dtype=torch.float64)
        if bool(support.any()):
            beta[support] = solve(self.Q[support][:, support], self.b[support])
        return beta

    def curvature(self, beta: Tensor, index: Tensor) -> Tensor:
        return self.Q[index][:, index]

    def lipschitz(self) -> float:
        return float(torch.linalg.eigvalsh(self.Q)[-1])


class LeastSquares(Quadratic):
    """``L(beta) = |y - X beta|^2 / 2``, summed over rows and outputs; works from ``X^T X`` and ``X^T y`` alone.

    Args:
        X: ``(rows, n)``, taken as float64.
        y: ``(rows,)``, or ``(rows, m)`` for ``m`` outputs that share the selection.

    Raises:
        DataError: NaN or infinite entries, or ``X`` and ``y`` differ in rows.

    Examples:
        >>> loss = LeastSquares(torch.eye(2), torch.tensor([3.0, 4.0]))
        >>> loss.value(loss.refit(torch.tensor([False, True])))
        4.5
    """

    def __init__(self, X: Tensor, y: Tensor):
        X, y = matrix(X, "X"), vectors(y, "y")
        same_rows("LeastSquares", X, y)
        super().__init__(X.T @ X, X.T @ y, float(y.square().sum()) / 2)

    @classmethod
    def from_gram(cls, H: Tensor, c: Tensor, total: float = 0.0) -> LeastSquares:
        """From ``H = X^T X`` ``(n, n)``, ``c = X^T y`` ``(n,)`` or ``(n, m)``, and ``total = |y|^2``.

        ``total`` only shifts the values of the loss.
        """
        made = cls.__new__(cls)
        Quadratic.__init__(made, H, c, total / 2)
        return made


class Logistic:
    """``L(beta) = sum log(1 + exp(x beta)) - y x beta + ridge |beta|^2 / 2`` for ``y`` in {0, 1}.

    Args:
        X: ``(rows, n)``, taken as float64. There is no intercept: centre the columns, or add a column of ones.
        y: ``(rows,)``.
        ridge: makes the minimiser unique and finite where a support separates the classes.

    Raises:
        DataError: NaN entries, ``X`` and ``y`` differ in rows, or ``y`` has values other than 0 and 1.
        RecipeError: ``ridge`` is negative.
        DivergedError: in `refit`, Newton's method found no minimiser.
    """

    def __init__(self, X: Tensor, y: Tensor, ridge: float = 0.0):
        self.X, self.y = matrix(X, "X"), vectors(y, "y")
        same_rows("Logistic", self.X, self.y)
        if self.y.ndim != 1 or not bool(((self.y == 0) | (self.y == 1)).all()):
            raise DataError("Logistic: y must be one column of 0 and 1; number the two classes so")
        if not ridge >= 0:
            raise RecipeError(f"Logistic: ridge must not be negative, got {ridge}")
        self.ridge = float(ridge)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.X.shape[1],)

    def value(self, beta: Tensor) -> float:
        z = self.X @ beta
        return float((F.softplus(z) - self.y * z).sum() + self.ridge / 2 * beta.square().sum())

    def grad(self, beta: Tensor) -> Tensor:
        return self.X.T @ (torch.sigmoid(self.X @ beta) - self.y) + self.ridge * beta

    def curvature(self, beta: Tensor, index: Tensor) -> Tensor:
        p, X = torch.sigmoid(self.X @ beta), self.X[:, index]
        return X.T @ ((p * (1 - p))[:, None] * X) + self.ridge * torch.eye(len(index), dtype=torch.float64)

    def refit(self, support: Tensor) -> Tensor:
        """Newton's method, each step halved until the loss falls."""
        beta = torch.zeros(self.shape, dtype=torch.float64)
        index = support.nonzero().flatten()
        if not index.numel():
            return beta
        scale = float(self.grad(beta).abs().max()) + 1.0
        for _ in range(100):
            grad = self.grad(beta)[index]
            if float(grad.abs().max()) <= 1e-11 * scale:
                return beta
            step = solve(self.curvature(beta, index), grad)
            now, fall = self.value(beta), float(grad @ step)
            length = 1.0
            while length > 1e-8:
                tried = beta.clone()
                tried[index] -= length * step
                if self.value(tried) <= now - 1e-4 * length * fall + 1e-13 * (1 + abs(now)):
                    break
                length /= 2
            beta = tried
        raise DivergedError(
            f"Logistic: Newton's method must converge in 100 steps, got a gradient of {float(grad.abs().max()):.2g}; "
            "these columns may separate the classes, pass a ridge"
        )

    def lipschitz(self) -> float:
        return float(torch.linalg.eigvalsh(self.X.T @ self.X)[-1]) / 4 + self.ridge


def solve(A: Tensor, b: Tensor) -> Tensor:
    """``A^+ b`` for a symmetric positive semidefinite ``A``: Cholesky, or eigenvalues above 1e-11 where it is singular.

    One step of refinement follows, so that the residual is at rounding level.
    """
    factor, info = torch.linalg.cholesky_ex(A)
    diagonal = factor.diagonal()
    if int(info) == 0 and float(diagonal.min()) > 1e-5 * float(diagonal.max()):

        def inverse(v: Tensor) -> Tensor:
            return torch.cholesky_solve(v.reshape(len(v), -1), factor).reshape(v.shape)
    else:
        values, vectors = torch.linalg.eigh(A)
        keep = values > 1e-11 * values[-1]
        values, vectors = values[keep], vectors[:, keep]

        def inverse(v: Tensor) -> Tensor:
            return vectors @ ((vectors.T @ v.reshape(len(v), -1)) / values[:, None]).reshape(-1, *v.shape[1:])

    x = inverse(b)
    return x + inverse(b - A @ x)


def matrix(values: object, name: str) -> Tensor:
    """Float64 ``(rows, columns)`` without NaN."""
    found = _finite(values, name)
    if found.ndim != 2:
        raise DataError(f"{name}: must have 2 dimensions, got shape {tuple(found.shape)}")
    return found


def vectors(values: object, name: str) -> Tensor:
    """Float64 ``(rows,)`` or ``(rows, m)`` without NaN."""
    found = _finite(values, name)
    if found.ndim not in (1, 2):
        raise DataError(f"{name}: must have 1 or 2 dimensions, got shape {tuple(found.shape)}")
    return found


def same_rows(owner: str, X: Tensor, y: Tensor) -> None:
    """Refuse two tensors of unequal length."""
    if len(X) != len(y):
        raise DataError(f"{owner}: X and y must have equally many rows, got {len(X)} and {len(y)}")


def _finite(values: object, name: str) -> Tensor:
    found = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    found = found.to("cpu", torch.float64)
    if not found.numel():
        raise DataError(f"{name}: must not be empty, got shape {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise DataError(f"{name}: must be finite, got NaN or infinity; drop or fill those rows first")
    return found
