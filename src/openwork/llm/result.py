"""What a block-wise run leaves behind: the result of every other engine, and rows per block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openwork.engine.result import Result
from openwork.llm.plan import Plan
from openwork.structure.cover import Covered


@dataclass
class BlockwiseResult(Result):
    """``masks`` is filled for models in memory; from a folder only the counts are kept.

    Attributes:
        kept: targeted tensor -> kept entries.
        blocks: one row per block: error of its output, seconds, resident bytes, and what the rule says about tensors.
        plan: what was counted before the work.
    """

    kept: dict[str, int] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    plan: Plan | None = None

    def _row(self, c: Covered) -> dict[str, Any]:
        row = super()._row(c)
        if c.name in self.kept:
            row |= {"kept": self.kept[c.name], "density": self.kept[c.name] / c.numel}
            row["units_kept"] = self.units_kept.get(c.name, row["units_kept"])
            row |= self.details.get(c.name, {})
        return row

    @property
    def details(self) -> dict[str, dict[str, Any]]:
        """Tensor -> what the rule reported (error, damping, tokens, dead inputs, experts without tokens)."""
        return {name: told for block in self.blocks for name, told in block.get("tensors", {}).items()}

    @property
    def units_kept(self) -> dict[str, int]:
        """Tensor -> units alive."""
        return {name: n for block in self.blocks for name, n in block.get("units", {}).items()}

    def to_dict(self) -> dict[str, Any]:
        found = super().to_dict()
        found["blocks"] = [
            {k: v for k, v in row.items() if k not in ("tensors", "units", "kept")} for row in self.blocks
        ]
        found["plan"] = None if self.plan is None else self.plan.to_dict()
        return found

    def summary(self) -> str:
        """One line per block, and the densities."""
        lines = [f"  {'block':<24} {'density':>8} {'error':>9} {'seconds':>8} {'GB':>6}"]
        for row in self.blocks:
            error = f"{row['error']:.5f}" if row["error"] is not None else "-"
            resident = row["resident"] / 1e9
            lines.append(
                f"  {row['name']:<24} {row['density']:>8.4f} {error:>9} {row['seconds']:>8.2f} {resident:>6.2f}"
            )
        c = self.counts
        lines.append(
            f"kept {c.kept:,} of {c.targeted_numel:,} targeted weights ({c.targeted:.4f}); {c.prunable:.4f} of all "
            f"prunable, {c.total:.4f} of all parameters"
        )
        return "\n".join(lines)
