"""One job on two processes: the command line under torchrun ends with the masks of one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from openwork.data import Batches, load_data
from openwork.errors import DataError, RecipeError
from openwork.lab.ranks import device_of_rank, ranks, share_buffers, speaks, together, wait
from openwork.ship import load


def command(out, method, *more):
    options = ["--data", "digits", "--epochs", "2", "--finetune-epochs", "1", "--batch-size", "50", "--density", "0.2"]
    return ["-m", "openwork", "prune", "--method", method, *options, "--out", str(out), "--quiet", *more]


def launch(arguments, processes):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    run = subprocess.run([*head, *arguments], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run


@pytest.mark.parametrize("method", ["spode", "rigl"])
def test_two_processes_end_with_the_masks_of_one(method, tmp_path):
    launch(command(tmp_path / "one", method), 1)
    run = launch(command(tmp_path / "two", method, "--json", str(tmp_path / "two.json")), 2)
    assert run.stdout.count("saved in") == 1
    one, two = load(tmp_path / "one")[1], load(tmp_path / "two")[1]
    total = sum(m.numel() for m in one.masks.values())
    # float32 sums of two halves round differently than the whole; a few ties may fall the other way
    assert one.masks.distance(two.masks) <= 0.004 * total
    assert one.density == two.density
    manifest = json.loads((tmp_path / "two.json").read_text())["manifest"]
    assert manifest["processes"] == 2
    accuracy = [r.metrics["finetuned"]["accuracy"] for r in (one, two)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.03)


def test_no_thread_of_the_group_outlives_it(tmp_path):
    """Those that wait for Python while it ends now and then end the process with an error."""
    job = tmp_path / "job.py"
    job.write_text("""
import os, torch
from openwork.lab.ranks import ranks, together

def threads():
    return [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]

def step():
    together(torch.nn.Linear(2, 1), gates=False)(torch.ones(1, 2)).backward()
    assert any("gloo" in name for name in threads())

with ranks(torch.device("cpu")):
    step()
assert not any("gloo" in name for name in threads()), threads()
""")
    launch([str(job)], 2)


def test_two_processes_learn_the_same_blocks_as_one(tmp_path):
    """Attention decides by logits that differ by far more than the rounding of two halves of a gradient."""
    launch(command(tmp_path / "one", "sequential_attention_pp"), 1)
    launch(command(tmp_path / "two", "sequential_attention_pp"), 2)
    one, two = load(tmp_path / "one")[1], load(tmp_path / "two")[1]
    assert one.masks.distance(two.masks) == 0
    assert 0 < one.density == two.density < 1


def test_parts_of_a_batch_are_the_batch():
    source = load_data("digits").train
    whole = Batches.over(source, 50, seed=3)
    parts = [Batches.over(source, 50, seed=3, part=(i, 3)) for i in range(3)]
    for step in (0, 7, 28):
        x, y = whole.batch(step)
        shares = [p.batch(step) for p in parts]
        assert sum(len(s[1]) for s in shares) == len(y) == whole.size(step)
        for i, (a, b) in enumerate(shares):
            assert torch.equal(a, x[i::3])
            assert torch.equal(b, y[i::3])
    with pytest.raises(DataError, match="batch_size 2 is smaller than 3 processes; raise it"):
        Batches.over(source, 2, part=(0, 3))


def test_alone_nothing_happens():
    model = nn.BatchNorm1d(3)
    with ranks(torch.device("cpu")):
        assert together(model, gates=True) is model
        share_buffers(model)
        wait()
        assert speaks()


def test_devices():
    assert device_of_rank("cpu") == torch.device("cpu")
    assert device_of_rank().type in ("cpu", "cuda")
    with pytest.raises(RecipeError, match=r"device must be 'auto', 'cpu' or 'cuda\[:N\]', got 'gpu'"):
        device_of_rank("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="device 'cuda': torch sees no GPU here; use device 'cpu'"):
            device_of_rank("cuda")
