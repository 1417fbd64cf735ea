"""Whether Triton's kernels run where a tensor is: on a GPU, or in Python."""

from __future__ import annotations

import os

from torch import Tensor


def on_device(x: Tensor) -> bool:
    """Whether the Triton kernels take this tensor: on a GPU, or anywhere under Triton's interpreter."""
    return x.is_cuda or interpreted()


def interpreted() -> bool:
    """Whether Triton was told to run kernels in Python (``TRITON_INTERPRET=1``, set before Triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
