"""Where a run was made: the commit of the package's source, and what the cells of a comparison ran on."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


@functools.cache
def commit(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that tracks the package, with ``+changes`` where its files differ from it.

    None where the package is installed, also in an environment that lies inside another project's checkout, and
    where there is no git.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head, changed = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return None if head is None else head + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str | None:
    """What a git command prints; None where it fails."""
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def origin_of(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """On what the cells of a comparison ran, for its manifest: every value once, none of records that hold none."""
    told = list(records)
    keys = {"processors": "cpu", "threads": "threads", "commits": "commit"}
    return {name: sorted({r[key] for r in told if r.get(key) is not None}) for name, key in keys.items()}
