"""Every verb of the command line, small enough to be broken many times, and ways to break it."""

import contextlib
import importlib.util
import json
import os
import resource
import signal
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

import openwork as ow
from openwork.cli import main
from openwork.cli.main import VERBS
from openwork.lab import demo, pool, worker
from openwork.lab.store import write_record
from openwork.methods import magnitude

SUITE = {
    "settings": {"digits": {"model": "mlp", "data": "digits", "budget": {"epochs": 0.1, "finetune_epochs": 0.1}}},
    "methods": {"magnitude": None},
    "densities": [0.5],
    "seeds": [0],
    "controls": [],
}
SHORT = ["--data", "digits", "--epochs", "0.2", "--finetune-epochs", "0.2", "--threads", "1", "--density", "0.5"]


def inputs(place):
    """What the verbs read."""
    place.mkdir(parents=True)
    model = ow.build_model("mlp")
    ow.save(model, ow.prune(model, magnitude(0.1, structure=ow.Block(4, 1))), place / "result")
    magnitude(0.5).save(place / "recipe.yaml")
    (place / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    np.save(place / "ids.npy", torch.randint(0, 64, (4, 16)).numpy())
    with contextlib.suppress(ImportError):
        import onnx
        from tests.unit.onnx import made

        maker = made.Maker(x=made.IMAGE)
        onnx.save(maker.model(made.residual(maker)), str(place / "net.onnx"))
    with contextlib.suppress(ImportError):
        from tests.unit.llm import tiny

        tiny.build("llama").save_pretrained(place / "llama")
    if importlib.util.find_spec("lm_eval") is not None:
        from tests.unit.llm import asking

        asking.speller(place / "speller")
        asking.questions(place)
    return place


def command(verb, given, out):
    """The arguments of one verb; everything that it writes lies in ``out``."""
    told = ["--json", str(out / "told.json")]
    return [verb] + {
        "demo": ["--out", str(out / "made"), "--seeds", "1", "--steps", "50"],
        "prune": [*SHORT, "--out", str(out / "made"), "--overwrite", *told],
        "prune-llm": [str(given / "llama"), "--method", "magnitude", "--density", "0.5", "--out", str(out / "made"),
                      "--overwrite", "--threads", "1", *told],
        "prune-onnx": [str(given / "net.onnx"), "--macs", "0.4584", "--out", str(out / "made.onnx"), "--overwrite", *told],
        "perplexity": [str(given / "llama"), "--text", str(given / "ids.npy"), *told],
        "eval-llm": [str(given / "speller"), "--tasks", "local_pairs", "--include", str(given / "tasks"), "--limit", "2",
                     *told],
        "sweep": [str(given / "llama"), "--text", str(given / "ids.npy"), "--levels", "0.2,0.5,0.8", "--out",
                  str(out / "made"), "--overwrite", "--threads", "1", *told],
        "compare": [str(given / "suite.yaml"), "--out", str(out / "made"), "--overwrite", *told],
        "inspect": [str(given / "result"), *told],
        "bench": [str(given / "result"), "--rounds", "1", "--plan", "always", *told],
        "export": [str(given / "result"), "--out", str(out / "made"), "--plan", "always", "--overwrite", *told],
        "methods": told,
    }[verb]  # fmt: skip


READ = {
    "prune-llm": ["llama/model.safetensors", "llama/config.json"],
    "prune-onnx": ["net.onnx"],
    "perplexity": ["llama/model.safetensors", "llama/config.json", "ids.npy"],
    "sweep": ["llama/model.safetensors", "llama/config.json", "ids.npy"],
    "compare": ["suite.yaml"],
    "inspect": ["result/openwork.json", "result/model.safetensors", "result/masks.safetensors"],
    "bench": ["result/openwork.json", "result/model.safetensors"],
    "export": ["result/openwork.json", "result/masks.safetensors"],
}
"""The files that a verb reads; ``demo``, ``prune`` and ``methods`` read none."""
NEEDS = {"prune-llm": "llama", "perplexity": "llama", "prune-onnx": "net.onnx", "eval-llm": "tasks", "sweep": "llama"}
NAMES = tuple(VERBS)


def here(self):
    """``Pool.run`` with its tasks in this process, one after another."""
    self._tell("cells", total=len(self.cells), done=len(self.records))
    data = {}
    for cell in [c for c in self.cells if c.key not in self.records]:
        task = self._task(cell)
        if isinstance(task, str):
            record = {**worker.blank(cell, None), "status": "failed", "error": task, "seconds": 0.0}
            write_record(self.folder, cell, record)
        else:
            if cell.setting not in data:
                data[cell.setting] = worker.load_data(cell.job.data)
            record = worker.execute(task, data[cell.setting])
        self._finished(cell, record)


def one_process(monkeypatch):
    """No verb starts processes of its own."""
    monkeypatch.setattr(pool.Pool, "run", here)
    monkeypatch.setattr("openwork.lab.demo.check_reload", lambda *_: None)
    monkeypatch.setattr("openwork.lab.demo.METHODS", ("magnitude",))  # nine trainings are too many for a fault
    real, known = demo._run, {}

    def once(data, *job):
        key = tuple(map(str, job))
        if key not in known:
            known[key] = real(data, *job)
        return known[key]

    monkeypatch.setattr(demo, "_run", once)


def files(place):
    """Every file by its content, without hidden ones and stopped runs; what a killed process leaves is hidden."""
    found = (f for f in sorted(place.rglob("*")) if f.is_file())
    parts = {f: f.relative_to(place).parts for f in found}
    return {
        "/".join(p): f.read_bytes()
        for f, p in parts.items()
        if not any(n.startswith(".") or n.endswith(".partial") for n in p)
    }


def whole(content):
    """Whether everything that was written can be read."""
    for name, data in content.items():
        if name.endswith(".json"):
            json.loads(data)
        if name.endswith(".safetensors"):
            from safetensors.torch import load

            load(data)
    return True


@contextlib.contextmanager
def full_disk(room):
    """No file may grow above ``room`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only():
    """A folder in which nobody may write; the superuser becomes nobody for a while, since rights do not bind him."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o555)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            yield place
        finally:
            os.seteuid(was)
            place.chmod(0o755)


def killed(argv, moment):
    """Run a verb in a copy of this process, which is killed before its ``moment``-th touch of a disk.

    Returns whether it was; else it ended well before.
    """
    child = os.fork()
    if child == 0:
        try:
            _deadly(moment)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            os._exit(main(argv))
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _deadly(moment):
    left = [moment]

    def deadly(owner, name):
        real = getattr(owner, name)

        def touch(*args, **kwargs):
            if left[0] == 0:
                if name == "write_bytes":  # half of a file
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **kwargs)

        setattr(owner, name, touch)

    from openwork.ship import atomic

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (Path, "write_bytes"), (atomic, "_exchanged")):
        deadly(owner, name)
