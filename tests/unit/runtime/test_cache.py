"""Measurements of plans are kept in the user's cache folder, for the next process."""

import json
import subprocess
import sys

import pytest
import torch
from tests.unit.runtime.models import mlp, thin

import openwork as ow
from openwork.runtime import plan

SCRIPT = """
import sys, torch
from tests.unit.runtime.models import mlp, thin
import openwork as ow
from openwork.runtime import plan
torch.manual_seed(0)
torch.set_num_threads(1)
if sys.argv[1] == "recalled":
    def measured(*args, **options): raise AssertionError("measured again")
    plan.interleaved = measured
packed = ow.pack(thin(mlp(), 0.1), example=torch.randn(64, 48), plan="measure")
print(*(sorted(c.times.items()) for c in packed.openwork_plan.choices))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder, and a process that remembers nothing."""
    monkeypatch.setenv("OPENWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "_MEMORY", {})
    return tmp_path / "cache"


def packed():
    torch.manual_seed(0)
    return ow.pack(thin(mlp(), 0.1), example=torch.randn(64, 48), plan="measure")


def test_another_process_measures_nothing_again(folder):
    def run(word):
        done = subprocess.run([sys.executable, "-c", SCRIPT, word], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("measured")
    entries = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    assert len(entries) >= 2
    assert all("dense" in times for times in entries.values())
    assert run("recalled") == first


def test_measurements_of_others_are_kept(folder):
    folder.mkdir()
    (folder / "plans.json").write_text('{"another": {"dense": 1.5}}', encoding="utf-8")
    packed()
    entries = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    assert entries["another"] == {"dense": 1.5}
    assert len(entries) > 1
    assert [p.name for p in folder.iterdir()] == ["plans.json"]  # nothing half written is left


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', '{"a": {"dense": "x"}}', "\0\1"])
def test_a_damaged_file_is_none(folder, damage):
    folder.mkdir()
    (folder / "plans.json").write_text(damage, encoding="utf-8")
    assert packed().openwork_plan.choices[0].times
    assert json.loads((folder / "plans.json").read_text(encoding="utf-8"))


def test_a_folder_that_cannot_be_made(folder):
    folder.write_text("a file", encoding="utf-8")
    assert packed().openwork_plan.choices[0].times
    assert folder.read_text(encoding="utf-8") == "a file"
