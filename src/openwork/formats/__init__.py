"""Sparse matrices as a few plain tensors: blocks, compressed rows, bitmaps, N of M."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openwork.errors import FormatError, did_you_mean
from openwork.formats.base import Format as Format
from openwork.formats.bitmap import Bitmap as Bitmap
from openwork.formats.block import BlockSparse as BlockSparse
from openwork.formats.choose import Blocks as Blocks
from openwork.formats.choose import Layout as Layout
from openwork.formats.choose import Runs as Runs
from openwork.formats.choose import Unstructured as Unstructured
from openwork.formats.choose import choose as choose
from openwork.formats.choose import smallest as smallest
from openwork.formats.csr import Csr as Csr
from openwork.formats.detect import detect as detect
from openwork.formats.nm import NMSparse as NMSparse
from openwork.formats.weights import matrices as matrices
from openwork.formats.weights import weight as weight

FORMATS: dict[str, type[Format]] = {c.kind: c for c in (BlockSparse, Csr, Bitmap, NMSparse)}
"""Every format, by the name that ``meta()["format"]`` gives it."""


def from_tensors(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Format:
    """The format that ``meta`` names, checked; see ``Format.from_tensors``.

    Raises:
        FormatError: an unknown format, or numbers and tensors that contradict each other.
    """
    kind = meta.get("format") if isinstance(meta, Mapping) else None
    if not isinstance(kind, str) or kind not in FORMATS:
        raise FormatError(f"unknown format {kind!r:.60}; {did_you_mean(str(kind), FORMATS)}")
    return FORMATS[kind].from_tensors(meta, tensors)
