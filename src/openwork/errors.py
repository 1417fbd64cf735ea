"""Every error a caller can meet. All are ``OpenworkError``, so one ``except`` catches them.

Messages follow one template: who, what it must be, what was found, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class OpenworkError(ValueError):
    """Base of all errors that openwork raises on purpose."""


class StructureError(OpenworkError):
    """A structure (block, N:M, ...) does not fit a tensor, or a selection matches nothing."""


class RecipeError(OpenworkError):
    """A recipe, a method argument or a recipe file is not valid."""


class DataError(OpenworkError):
    """A loader, a batch or a data set cannot be used."""


class MissingStatistic(OpenworkError, LookupError):
    """A method needs a statistic (data, a loss, gradients) that this call cannot provide."""


class DivergedError(OpenworkError, ArithmeticError):
    """A loss, a score or a gate became NaN or infinite."""


class DensityMissed(OpenworkError, RuntimeError):
    """A run ended without reaching the density that its recipe promised."""


class VerificationFailed(OpenworkError, RuntimeError):
    """Two models that must agree do not."""


class FormatError(OpenworkError):
    """A matrix cannot be packed as asked, or packed tensors contradict each other."""


class KernelError(OpenworkError, RuntimeError):
    """A kernel cannot run: a package is missing, or the device, dtype or shape is one that it does not take."""


class FileError(OpenworkError):
    """A result folder, a checkpoint or a recipe file is missing, foreign, truncated or in the way."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the nearest known names first, for the end of an error message."""
    names = sorted(known)
    near = get_close_matches(name[:100], names, n=3, cutoff=0.5)
    more = f" and {len(names) - 60} more" if len(names) > 60 else ""
    listed = f"known: {', '.join(names[:60])}{more}"
    return f"did you mean {' or '.join(repr(n) for n in near)}? {listed}" if near else listed
