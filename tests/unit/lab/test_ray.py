"""A comparison on a real Ray cluster of this machine: a worker is killed, and nothing is lost or repeated."""

import builtins
import os
import signal
import sys
from types import SimpleNamespace

import pytest
from tests.unit.lab.tiny import TINY, by_key

from openwork.cli import main
from openwork.errors import FileError, RecipeError
from openwork.lab.compare import compare
from openwork.lab.ray_cluster import RayCluster, _Hands
from openwork.lab.suite_file import read_suite
from openwork.lab.summary import without_times

SMALL = {**TINY, "methods": {"magnitude": None}, "controls": [], "tune": {}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_actor_loses_nothing(done, tmp_path):
    pytest.importorskip("ray")
    lost, files, victim = [], {}, "digits | magnitude | 0.05 | seed 0"

    def watch(event, what):
        if event == "start" and what["key"] == victim and not lost:
            os.kill(what["pid"], signal.SIGKILL)
        if event == "died":
            lost.append(what["key"])
        for file in (tmp_path / "o" / "cells").glob("*.json"):
            now = (file.stat().st_mtime_ns, file.read_bytes())
            assert files.setdefault(file.name, now) == now, f"{file.name} was written twice"

    cluster = RayCluster(2)
    try:
        assert cluster.size == 2
        with pytest.raises(FileError, match="a machine of the cluster does not see this folder"):
            cluster.start(tmp_path / "elsewhere", ())
        results = compare(read_suite(SMALL), tmp_path / "o", watch=watch, executor=cluster)
    finally:
        cluster.close()
    assert lost == [victim]
    runs, whole = by_key(results), by_key(done[1])
    assert {r["status"] for r in runs.values()} <= {"done", "collapsed"}
    for key, record in runs.items():
        if record["kind"] == "dense":  # the others have learning rates of their own there
            assert without_times(record) == without_times(whole[key])
    assert len(runs) == len(files) == 6


def test_the_actor_runs_what_the_process_would(tmp_path):
    hands = _Hands()
    assert hands.look(str(tmp_path)) is None
    (tmp_path / "suite.json").write_text("{}")
    assert hands.look(str(tmp_path)) == os.getpid()


class Fake(SimpleNamespace):
    """Ray without a cluster: as many processors as it is told."""

    def __init__(self, cpus, problem=None):
        super().__init__(cpus=cpus, problem=problem, ended=0)

    def init(self, **options):
        if self.problem:
            raise self.problem
        self.options = options

    def cluster_resources(self):
        return {"CPU": self.cpus}

    def shutdown(self):
        self.ended += 1


def test_bad_clusters_are_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(RecipeError, match="--jobs must be at least 1, got 0"):
        RayCluster(0)
    before = dict(os.environ)
    monkeypatch.setitem(sys.modules, "ray", fake := Fake(2.0))
    with pytest.raises(RecipeError, match="--jobs: the cluster has 2 processors, got 3"):
        RayCluster(3, "somewhere:1")
    assert fake.ended == 1
    assert fake.options["address"] == "somewhere:1"
    monkeypatch.setitem(sys.modules, "ray", Fake(2.0, ConnectionError("nobody there\nat all")))
    with pytest.raises(RecipeError, match=r"--ray-address: no cluster to work on \(nobody there\)"):
        RayCluster(None, "somewhere:1")
    assert dict(os.environ) == before
    monkeypatch.delitem(sys.modules, "ray")
    real = builtins.__import__

    def without(name, *args, **more):
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match="--executor ray: Ray is not installed; pip install 'openwork"):
        RayCluster()
    monkeypatch.undo()
    (tmp_path / "s.yaml").write_text("settings: {}")
    assert main(["compare", str(tmp_path / "s.yaml"), "--ray-address", "x:1"]) == 2
    assert "--ray-address names a cluster for --executor ray; give both or none" in capsys.readouterr().err
