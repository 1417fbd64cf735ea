"""Workers on a Ray cluster: of this machine, or of many that share the folder of the comparison."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openwork.errors import FileError, RecipeError
from openwork.lab.executors import Worker, environment
from openwork.lab.merge import SUITE
from openwork.lab.worker import Sets, Task, execute

READY = 300.0  # seconds for an actor to start and to import everything


class RayCluster:
    """Workers that are Ray actors of one processor each.

    Records, dense weights and checkpoints go through the folder of the comparison, so every machine must see it under
    the same path. An actor that dies, or whose machine does, loses nothing but its time. If this process is killed, Ray
    ends its actors; the comparison goes on with ``--resume``.

    Args:
        jobs: actors at a time; None takes one for each processor of the cluster.
        address: of a running cluster (``HOST:PORT`` or ``auto``); None starts one on this machine and ends it after.

    Raises:
        RecipeError: Ray is not installed, no cluster at the address, or more actors than processors.
    """

    def __init__(self, jobs: int | None = None, address: str | None = None):
        if jobs is not None and jobs < 1:
            raise RecipeError(f"--jobs must be at least 1, got {jobs}")
        try:
            import ray
        except ImportError:
            raise RecipeError("--executor ray: Ray is not installed; pip install 'openwork[ray]'") from None
        self._ray = ray
        more: dict[str, Any] = {"address": address} if address else {"num_cpus": jobs or os.cpu_count() or 1}
        if not address:
            more |= {"include_dashboard": False, "object_store_memory": 80_000_000}
        was = dict(os.environ)
        os.environ.update({**environment(), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})
        try:
            ray.init(log_to_driver=False, configure_logging=False, **more)
        except (ConnectionError, ValueError, RuntimeError) as problem:
            raise RecipeError(f"--ray-address: no cluster to work on ({str(problem).splitlines()[0]})") from None
        finally:
            os.environ.clear()
            os.environ.update(was)
        found = int(ray.cluster_resources().get("CPU", 0))
        self.size = jobs or found
        if self.size > found or found < 1:
            self.close()
            raise RecipeError(f"--jobs: the cluster has {found} processors, got {self.size}")
        self._make = ray.remote(num_cpus=1, max_restarts=0)(_Hands)

    def start(self, folder: Path, keep_open: Sequence[int]) -> Worker:
        """A new actor, once it has seen the folder.

        Raises:
            FileError: its machine does not see the folder.
        """
        actor = self._make.remote()
        pid = self._ray.get(actor.look.remote(str(folder)), timeout=READY)
        if pid is None:
            raise FileError(f"{folder}: a machine of the cluster does not see this folder; take one on a shared disk")
        return _Actor(self._ray, actor, pid)

    def close(self) -> None:
        """Leave the cluster, or end it when it was started here."""
        self._ray.shutdown()


class _Hands:
    """The actor."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._sets = Sets()

    def look(self, folder: str) -> int | None:
        """The process, when the comparison is there."""
        return os.getpid() if (Path(folder) / SUITE).is_file() else None

    def run(self, task: Task) -> str:
        """Run one cell; its status."""
        return str(execute(task, self._sets.of(task.cell.job))["status"])


class _Actor:
    """The worker as the pool sees it."""

    def __init__(self, ray: Any, actor: Any, pid: int):
        self._ray, self._actor, self.pid = ray, actor, pid
        self._given: queue.Queue[tuple[str, Any] | None] = queue.Queue()

    def give(self, task: Task) -> None:
        self._given.put((task.cell.key, self._actor.run.remote(task)))

    def messages(self) -> Iterator[dict[str, Any]]:
        while (given := self._given.get()) is not None:
            key, reference = given
            try:
                yield {"done": key, "status": self._ray.get(reference)}
            except (self._ray.exceptions.RayError, RuntimeError):
                return

    def kill(self) -> None:
        self._given.put(None)
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor)

    def wait(self) -> int:
        return -1
