"""What every verb prints with: a console for people, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openwork.ship.atomic import write_file


def console(json_to: str | None) -> Console:
    """People's output; goes to standard error when JSON goes to standard output."""
    return Console(stderr=json_to == "-", highlight=False, width=None if sys.stdout.isatty() else 110)


def say(out: Console, text: str) -> None:
    """Print plain text as it is: no markup, no wrapping."""
    out.print(text, markup=False, soft_wrap=True)


def write_json(json_to: str | None, data: Any) -> None:
    """Write the outcome where ``--json`` says, if it does."""
    if json_to is None:
        return
    text = json.dumps(data, indent=1) + "\n"
    if json_to == "-":
        sys.stdout.write(text)
    else:
        write_file(Path(json_to), text.encode())


class Bars:
    """Progress bars by stage; silent when the output is no terminal or ``quiet``."""

    def __init__(self, out: Console, quiet: bool = False):
        hidden = quiet or not out.is_terminal or "CI" in os.environ
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=out, disable=hidden, transient=True)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, stage: str, step: int, steps: int, loss: float, word: str = "loss") -> None:
        """One step of one stage; ``word`` says what ``loss`` is."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=steps, note="")
        self._progress.update(self._tasks[stage], completed=step, note=f"{word} {loss:.4f}")
