"""A recipe: structure + rule + schedule + relaxation + selection, as data that goes to JSON or YAML and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openwork.core.files import write_file
from openwork.core.protocols import Relaxation, Rule, Schedule, Structure
from openwork.core.serial import from_plain, to_plain
from openwork.core.targets import Select
from openwork.errors import FileError, RecipeError

FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """Everything that a method is, in frozen parts.

    Args:
        name: the method's name in the index, for reports.
        structure: what lives and dies together.
        rule: who decides.
        schedule: when, and how much is kept at each step.
        relaxation: how masks meet weights; None writes zeros into the weights.
        where: which parameters.
    """

    name: str
    structure: Structure
    rule: Rule
    schedule: Schedule
    relaxation: Relaxation | None = None
    where: Select = field(default_factory=Select)

    def __post_init__(self) -> None:
        fits = {
            "name": isinstance(self.name, str),
            "structure": hasattr(self.structure, "fit") and not isinstance(self.structure, type),
            "rule": isinstance(self.rule, Rule),
            "schedule": hasattr(self.schedule, "drive") and not isinstance(self.schedule, type),
            "relaxation": self.relaxation is None or hasattr(self.relaxation, "gate"),
            "where": isinstance(self.where, Select),
        }
        for part, good in fits.items():
            if not good:
                raise RecipeError(f"{self.name}: the {part} of a recipe must be one, got {getattr(self, part)!r}")
        fixed = self.structure.density
        if fixed is not None and abs(fixed - self.schedule.density) > 1e-9 and self.schedule.density != 1:
            raise RecipeError(
                f"{self.name}: {self.structure} keeps {fixed:g} by definition, but density "
                f"{self.schedule.density:g} was asked; "
                f"use density={fixed:g} or another structure"
            )

    @property
    def density(self) -> float:
        """The kept share promised at the end."""
        return self.schedule.density

    @property
    def drive(self) -> str:
        """The engine this recipe is made for: ``prune``, ``attach`` or ``cycle``."""
        return self.schedule.drive

    def to_dict(self) -> dict[str, Any]:
        """Plain data: only dicts, lists, strings, numbers, booleans and None."""
        return {"format": FORMAT, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """Inverse of ``to_dict``; unknown kinds and keys are errors that list the known ones."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise RecipeError(f"a recipe must be a mapping with format: {FORMAT}, got {found!r}")
        made = from_plain({k: v for k, v in data.items() if k != "format"})
        if not isinstance(made, Recipe):
            raise RecipeError(f"a recipe must have kind: Recipe, got {type(made).__name__}")
        return made

    def save(self, path: str | Path) -> None:
        """Write ``.json``, ``.yaml`` or ``.yml``.

        Raises:
            FileError: another ending, or the disk refuses; an earlier file is then untouched.
        """
        path = Path(path)
        if path.suffix == ".json":
            write_file(path, (json.dumps(self.to_dict(), indent=2) + "\n").encode())
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            write_file(path, yaml.safe_dump(self.to_dict(), sort_keys=False).encode())
        else:
            raise FileError(f"{path}: a recipe file must end in .json, .yaml or .yml")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            FileError: missing or unreadable file.
            RecipeError: not a recipe.
        """
        path = Path(path)
        if not path.is_file():
            raise FileError(f"{path}: no such recipe file")
        try:
            if path.suffix == ".json":
                data = json.loads(path.read_text())
            else:
                import yaml

                data = yaml.safe_load(path.read_text())
        except Exception as problem:  # the YAML reader lets KeyError, IndexError and RecursionError out as well
            raise FileError(f"{path}: not valid JSON or YAML ({type(problem).__name__}: {problem})") from None
        return cls.from_dict(data)
