"""The compiled kernels, if they are there, and which instruction set they use."""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from openwork.errors import OpenworkError

PORTABLE_STRIP, PORTABLE_REACH, PORTABLE_VISIT = 16, 4096, 24  # layouts for the Python path, which reads any


@cache
def native() -> Any | None:
    """The extension module, or None where it was not built. ``OPENWORK_ISA`` forces an instruction set.

    Raises:
        OpenworkError: ``OPENWORK_ISA`` names a set that this build or this processor does not have.
    """
    wanted = os.environ.get("OPENWORK_ISA", "")
    try:
        module = import_module("openwork._native")
    except ImportError as problem:
        if wanted not in ("", "python"):
            raise OpenworkError(
                f"OPENWORK_ISA: {wanted!r} needs the native kernels, which are not installed ({problem}); unset it"
            ) from None
        return None
    if wanted == "python":
        return None
    module.share_team(*team())
    if wanted and not module.use(wanted):
        raise OpenworkError(
            f"OPENWORK_ISA: must be one of {', '.join([*module.isas(), 'python'])} on this processor, got {wanted!r}"
        )
    return module


def team() -> tuple[int, int]:
    """``GOMP_parallel`` and ``omp_get_thread_num`` of the OpenMP runtime that torch computes with, zeros without one.

    Threads of our own would wait on the same cores as torch's, and each would keep the other from work.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if "backend: OpenMP" not in torch.__config__.parallel_info() or not hasattr(os, "RTLD_NOLOAD"):
        return 0, 0
    try:  # looks into what torch itself was linked with, whatever else is loaded
        runtime = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        run, thread = runtime.GOMP_parallel, runtime.omp_get_thread_num
    except (OSError, AttributeError):
        return 0, 0
    return ctypes.cast(run, ctypes.c_void_p).value or 0, ctypes.cast(thread, ctypes.c_void_p).value or 0


def isa() -> str:
    """``amx``, ``avx512_bf16``, ``avx512``, ``avx2``, ``portable``, or ``python`` without the native kernels."""
    module = native()
    return "python" if module is None else module.isa()


def strip_of(height: int) -> int:
    """Height of the strips that the block kernel cuts blocks of this height into; 0 when it cannot."""
    module = native()
    if module is None:
        return PORTABLE_STRIP if height % PORTABLE_STRIP == 0 else 0
    return module.strip(height)


def reach_of(height: int) -> int:
    """How many inputs a column kernel of this height keeps in the first cache."""
    module = native()
    return PORTABLE_REACH if module is None else module.reach(height)


def visit_of(height: int) -> int:
    """How many columns of this height a visit to a group should bring, so that moving its sums is worth while."""
    module = native()
    return PORTABLE_VISIT if module is None else module.visit(height)


def spreads() -> bool:
    """Whether the kernels have a fast way from bits to the places of weights."""
    module = native()
    return module is not None and module.spreads()


def dots() -> bool:
    """Whether the kernels multiply int8 with int8."""
    module = native()
    return module is not None and module.dots()


def warn_if_slow() -> None:
    """Say, once a process, that only the slow path is there, unless ``OPENWORK_ISA=python`` asks for it."""
    if native() is None and os.environ.get("OPENWORK_ISA") != "python":
        _warn_once()


@cache
def _warn_once() -> None:
    warnings.warn(
        "openwork: the native kernels are not installed, packed layers run their slower Python path; install a C++ "
        "compiler (g++) and reinstall openwork",
        RuntimeWarning,
        stacklevel=4,
    )
