"""What the papers claim and what was measured here, from ``claims.yaml`` beside this file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def claims() -> dict[str, tuple[tuple[str, str], ...]]:
    """Method name -> ``((claim, state), ...)``; a state starts with ``held``, ``not held`` or ``open``."""
    import yaml

    data = yaml.safe_load((files("openwork.methods") / "claims.yaml").read_text(encoding="utf-8"))
    return {name: tuple((row["claim"], row["state"]) for row in rows) for name, rows in data.items()}
