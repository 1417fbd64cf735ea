"""Where cells run: what the pool asks of a worker, and the local kind, a process with one thread."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from openwork.errors import RecipeError
from openwork.lab.worker import Task, send


class Worker(Protocol):
    """Something that runs one cell after another; each leaves its record in the folder before it is reported."""

    @property
    def pid(self) -> int:
        """Of the process, on its own machine."""

    def give(self, task: Task) -> None:
        """Begin a cell; never raises for a worker that is gone, its messages end then."""

    def messages(self) -> Iterator[dict[str, Any]]:
        """``{"done": key}`` and what else it says, as it comes; ends when the worker is gone. Read in a thread."""

    def kill(self) -> None:
        """At once."""

    def wait(self) -> int:
        """Until it is gone; its exit code, or -1 where there is none."""


class Executor(Protocol):
    """A source of workers."""

    @property
    def size(self) -> int:
        """How many at a time."""

    def start(self, folder: Path, keep_open: Sequence[int]) -> Worker:
        """One more worker for the comparison in ``folder``; a local one holds the file descriptors open too."""

    def close(self) -> None:
        """When every worker is gone."""


class Local:
    """Processes of this machine.

    Args:
        jobs: how many at a time; None takes one for each core.

    Raises:
        RecipeError: fewer than one.
    """

    def __init__(self, jobs: int | None = None):
        if jobs is not None and jobs < 1:
            raise RecipeError(f"--jobs must be at least 1, got {jobs}")
        self.size = jobs or os.cpu_count() or 1

    def start(self, folder: Path, keep_open: Sequence[int]) -> Worker:
        """A new process."""
        return Process(folder, keep_open)

    def close(self) -> None:
        """Nothing is left."""


def environment() -> dict[str, str]:
    """What every worker process finds around it: one thread, and the modules that this process can import."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**threads, "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}


class Process:
    """A worker that is a process of this machine; tasks and messages go through its pipes."""

    def __init__(self, folder: Path, keep_open: Sequence[int]):
        with (folder / "workers.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "openwork.lab.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment()},
                pass_fds=tuple(keep_open),
                start_new_session=True,  # an interrupt from the keyboard is for the parent, which ends them
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, task: Task) -> None:
        with contextlib.suppress(OSError):  # it died just now; its end of the pipe will say so
            send(self._process.stdin, task)

    def messages(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                yield json.loads(line)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        code = self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
        return code
