"""A sparsity penalty on chosen scales of normalisation layers only (MaskSparsity), for any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from openwork.errors import DivergedError, RecipeError

Kind = Literal["l1", "l2", "smooth_l1"]
KINDS = ("l1", "l2", "smooth_l1")


class MaskedScalePenalty:
    """``lam sum_c P_c |gamma_c|`` (or squares) over the scales that ``prune_mask`` marks True, those to be removed.

    Args:
        prune_mask: parameter name -> bool ``[channels]``, True = will be removed.
        lam: strength; the paper's is 5e-4.
        kind: ``l1`` adds ``lam sign(gamma)`` to the gradient, ``l2`` ``lam gamma``; ``smooth_l1`` is ``l1`` until
            ``|gamma| < lr lam`` and then ``lam gamma``, so that scales do not swing around zero.

    Raises:
        RecipeError: an unknown kind, or a negative ``lam``.

    Examples:
        >>> norm = nn.BatchNorm1d(3)
        >>> penalty = MaskedScalePenalty({"weight": torch.tensor([True, False, True])}, lam=0.1)
        >>> penalty.prox_(dict(norm.named_parameters()), lr=1.0)
        >>> [round(v, 4) for v in norm.weight.tolist()]
        [0.9, 1.0, 0.9]
    """

    def __init__(self, prune_mask: Mapping[str, Tensor], lam: float = 5e-4, kind: Kind = "l1"):
        check_penalty("MaskedScalePenalty", lam, kind)
        self.prune_mask = dict(prune_mask)
        self.lam, self.kind = lam, kind

    def gradient(self, name: str, scale: Tensor, lr: float = 0.0) -> Tensor:
        """The penalty's gradient with respect to one tensor of scales.

        Raises:
            RecipeError: a mask of another length.
            DivergedError: a scale that is NaN.
        """
        mask = self.prune_mask[name]
        if mask.shape != scale.shape:
            raise RecipeError(f"{name}: prune_mask holds {mask.numel()} channels, but there are {scale.numel()} scales")
        if bool(torch.isnan(scale).any()):
            raise DivergedError(f"{name}: a scale is NaN; lower the learning rate")
        slope = scale if self.kind == "l2" else scale.sign()
        if self.kind == "smooth_l1":
            slope = torch.where(scale.abs() < lr * self.lam, scale, slope)
        return self.lam * torch.where(mask.to(scale.device), slope, torch.zeros_like(scale))

    @torch.no_grad()
    def add_grad_(self, params: Mapping[str, nn.Parameter], lr: float = 0.0) -> None:
        """Add the penalty to the gradients: after ``backward`` and clipping, before ``optimizer.step``."""
        for name, mask in self.prune_mask.items():
            grad = params[name].grad
            if grad is not None and bool(mask.any()):
                grad += self.gradient(name, params[name], lr)

    @torch.no_grad()
    def prox_(self, params: Mapping[str, nn.Parameter], lr: float) -> None:
        """The proximal step of the L1 penalty, ``gamma <- soft(gamma, lr lam)``, after ``optimizer.step``.

        For Adam and its kin, which would divide an added gradient away.
        """
        for name, mask in self.prune_mask.items():
            scale = params[name]
            soft = scale.sign() * (scale.abs() - lr * self.lam).clamp_min(0)
            scale.copy_(torch.where(mask.to(scale.device), soft, scale))


def check_penalty(owner: str, lam: float, kind: str) -> None:
    """Refuse an unknown kind or a negative strength."""
    if kind not in KINDS or not lam >= 0:
        raise RecipeError(
            f"{owner}: kind must be one of {', '.join(KINDS)} and lam not negative, got {kind!r} and {lam}"
        )


def group_vote(removals: Tensor) -> Tensor:
    """Which channels of one residual stream go, by the wishes of its norms; bool ``[channels]``.

    With m the smallest number of removals that any norm wants, the largest number of votes i is taken that at least m
    channels have; channels with i votes and more go.

    Args:
        removals: bool ``[norms, channels]``, True = this norm would remove the channel.

    Examples:
        >>> group_vote(torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]).bool()).tolist()
        [False, True, True, False]
    """
    votes = removals.long().sum(0)
    least = int(removals.sum(1).min())
    enough = [i for i in range(len(removals), 0, -1) if int((votes >= i).sum()) >= least]
    return votes >= enough[0] if enough else torch.zeros_like(votes, dtype=torch.bool)
