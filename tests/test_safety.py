"""No file that somebody hands over can run code or reach out of its folder."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import openwork as ow
from openwork.errors import FileError
from openwork.llm.checkpoint import Checkpoint
from openwork.ship.atomic import write_file

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "src" / "openwork").rglob("*.py"))
KNOWN = {
    "data/unpickle.py": "pickle",  # the archives of CIFAR, by an unpickler that knows arrays and plain data only
    "lab/worker.py": "pickle",  # between a pool and the processes that it started, through their pipes
    "lab/suite_file.py": "yaml.load",  # with a loader that is yaml.SafeLoader and refuses keys given twice
    "runtime/fuse.py": "exec",  # the forward that torch.fx writes for a module of this process
}
CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def calls(tree):
    """Every call as (dotted name, keywords)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def unsafe(text):
    """What in a source reads files in ways that can run what they hold."""
    tree = ast.parse(text)
    names = [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    found = [name for name in names if name.split(".")[0] in CODE]
    for name, options in calls(tree):
        wrong = (
            (name.endswith("torch.load") and options.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False")
            or name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "torch.save", "os.system")
            or options.get("shell") == "True"
            or options.get("trust_remote_code") == "True"
        )
        found += [name] if wrong else []
    return found


@pytest.mark.parametrize("file", SOURCE, ids=lambda f: str(f.relative_to(ROOT / "src" / "openwork")))
def test_no_file_of_a_user_can_run_code(file):
    name = file.relative_to(ROOT / "src" / "openwork").as_posix()
    found = unsafe(file.read_text(encoding="utf-8"))
    assert set(found) == ({KNOWN[name]} if name in KNOWN else set()), found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib import load", ["joblib"]),
        ("torch.load(f)", ["torch.load"]),
        ("torch.load(f, weights_only=True)", []),
        ("np.load(f)", ["np.load"]),
        ("yaml.load(t, Loader=L)", ["yaml.load"]),
        ("subprocess.run(c, shell=True)", ["subprocess.run"]),
    ],
)
def test_what_is_unsafe_is_seen(text, found):
    assert unsafe(text) == found


def test_the_loader_of_suites_is_a_safe_one():
    import yaml

    from openwork.lab import suite_file

    assert issubclass(suite_file._Strict, yaml.SafeLoader)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors"])
def test_a_language_model_reads_its_own_folder_only(place, tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": place}}))
    with pytest.raises(FileError, match="shards must lie in this folder, got "):
        Checkpoint(tmp_path / "model")


def test_a_result_folder_reads_its_own_files_only(tmp_path):
    """Names that its index lists are never opened; what is read has fixed names."""
    model = ow.build_model("mlp")
    folder = ow.save(model, ow.prune(model, ow.methods.magnitude(0.5)), tmp_path / "r")
    index = json.loads((folder / "openwork.json").read_text())
    index["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
    write_file(folder / "openwork.json", json.dumps(index).encode())
    assert ow.load(folder)[1].density == 0.5
