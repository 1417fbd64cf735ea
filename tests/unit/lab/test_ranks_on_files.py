"""Two processes on data in files of the real forms: the command line under torchrun ends with the masks of one process."""

import random

import numpy as np
import pytest
from tests.unit.data.test_cifar import python2
from tests.unit.data.test_criteo import line
from tests.unit.data.test_folders import layout
from tests.unit.lab.test_ranks import launch

from openwork.cli import main
from openwork.data import cifar
from openwork.ship import load

ROWS = 24
SMALL_FILES = f"""
import runpy
from openwork.data import cifar
for side in cifar.ROWS_10:
    cifar.ROWS_10[side] = {ROWS}
runpy.run_module("openwork", run_name="__main__")
"""
SHORT = ["--epochs", "1", "--finetune-epochs", "1", "--batch-size", "12", "--accumulate", "2", "--quiet"]
# criteria before training: the pictures of training change, and every rank draws its own changes
AT_INIT = ["--method", "snip", "--at", "init", "--density", "0.2", "--set", "batches=2", *SHORT]
PHASES = ["--method", "sequential_attention_pp", "--structure", "block:5x5", "--include", "layers.0.weight",
          "--set", "min_blocks=1", "--density", "0.2", *SHORT, "--batch-size", "27", "--accumulate", "3",
          "--epochs", "5", "--optimizer", "sgd", "--lr", "0.1"]  # fmt: skip


def pictures(root):
    layout(root)
    return ["--model", "mlp", "--data", "imagefolder", "--data-option", "size=12", *AT_INIT]


def batches(root):
    rng = np.random.default_rng(0)
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        rows, labels = rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8), [i % 10 for i in range(ROWS)]
        (root / name).write_bytes(python2(rows, labels=labels))
    return ["--model", "mlp", "--data", "cifar10", *AT_INIT]


def clicks(root):
    rng = random.Random(0)
    (root / "train.txt").write_text("\n".join(line(rng) for _ in range(300)) + "\n")
    columns = ["--data-option", "bins=20", "--model-option", "hidden=[20]"]
    return ["--model", "click_mlp", "--data", "criteo", *columns, *PHASES]


@pytest.mark.slow
@pytest.mark.parametrize("make", [pictures, batches, clicks])
def test_two_processes_on_files_end_with_the_masks_of_one(make, tmp_path, monkeypatch):
    for side in cifar.ROWS_10:
        monkeypatch.setitem(cifar.ROWS_10, side, ROWS)
    (tmp_path / "data").mkdir()
    options = [*make(tmp_path / "data"), "--root", str(tmp_path / "data")]
    head = ["-m", "openwork"]
    if make is batches:  # the real files have ten thousand rows each
        (tmp_path / "small.py").write_text(SMALL_FILES)
        head = [str(tmp_path / "small.py")]
    assert main(["prune", *options, "--out", str(tmp_path / "1")]) == 0
    launch([*head, "prune", *options, "--out", str(tmp_path / "2")], 2)
    one, two = (load(tmp_path / name)[1] for name in ("1", "2"))
    assert one.masks.distance(two.masks) == 0
    assert 0 < one.density == two.density < 1
    assert two.manifest["processes"] == 2
    assert one.manifest["data_fingerprint"] == two.manifest["data_fingerprint"]
    if make is clicks:
        assert two.metrics["finetuned"]["loss"] == pytest.approx(one.metrics["finetuned"]["loss"], rel=1e-4)
