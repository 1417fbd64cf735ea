"""Whole jobs on data that stays in its files: pictures and click logs, stopped, resumed and measured."""

import random
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from openwork.core.targets import Select
from openwork.data import StreamedSet, criteo, load_data
from openwork.data.registry import LOADERS
from openwork.data.sources import TensorSource
from openwork.errors import DataError
from openwork.lab import Budget, Job, Runner
from openwork.lab.budget import DEFAULTS, default_budget
from openwork.lab.chance import chance_of
from openwork.lab.evaluate import evaluate, evaluate_source

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


class Stop(Exception):
    pass


@pytest.fixture
def pictures(tmp_path):
    """Two classes of red and of green pictures."""
    rng = np.random.default_rng(0)
    for side, count in (("train", 12), ("val", 5)):
        for name, channel in (("green", 1), ("red", 0)):
            (tmp_path / "data" / side / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 100, (18, 20 + index, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(tmp_path / "data" / side / name / f"{index}.jpg")
    return tmp_path / "data"


@pytest.fixture
def clicks(tmp_path, monkeypatch):
    """A click whenever the first category is odd."""
    monkeypatch.setattr(criteo, "BLOCK", 5000)
    rng = random.Random(0)
    lines = []
    for _ in range(600):
        keys = [f"{rng.randrange(2**32):08x}" for _ in range(26)]
        keys[0] = f"{rng.randrange(1, 9):08x}"
        counts = [str(rng.randrange(50)) for _ in range(13)]
        lines.append("\t".join([str(int(keys[0], 16) % 2), *counts, *keys]))
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def finish(job, work=None, resume=False, stop_after=None):
    count = [0]

    def watch(*_):
        count[0] += 1
        if stop_after is not None and count[0] > stop_after:
            raise Stop

    return Runner(job, work, watch=watch, save_every=0.0).run(resume=resume), count[0]


def check_resume(job, folder):
    (model, result), total = finish(job)
    for stop in (total // 3, total - 2):
        work = folder / str(stop)
        work.mkdir()
        with pytest.raises(Stop):
            finish(job, work, stop_after=stop)
        (again, other), _ = finish(job, work, resume=True)
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        )
        assert other.metrics == result.metrics
        assert other.manifest["data_fingerprint"] == result.manifest["data_fingerprint"]
    return result


def test_pictures_in_folders_from_end_to_end(pictures, tmp_path):
    budget = Budget(epochs=8, finetune_epochs=4, batch_size=6, lr=0.05)
    options = {"size": 16, "workers": 1}
    job = Job("resnet8", "imagefolder", density=0.3, budget=budget, root=str(pictures), data_options=options,
              model_options={"width": 4})  # fmt: skip
    result = check_resume(job, tmp_path)
    assert result.metrics["finetuned"]["accuracy"] == 1.0


def test_click_logs_from_end_to_end(clicks, tmp_path):
    budget = Budget(epochs=6, finetune_epochs=2, batch_size=64, lr=3e-3, finetune_lr=1e-3, optimizer="adamw")
    job = Job("click_mlp", "criteo", density=0.5, budget=budget, root=str(clicks), data_options={"bins": 50},
              model_options={"hidden": [32, 32]}, where=Select(include=("layers.0.weight",)))  # fmt: skip
    result = check_resume(job, tmp_path)
    assert list(result.masks) == ["layers.0.weight"]
    assert result.masks["layers.0.weight"].shape == (32, 13 + 26 * 10)
    assert result.metrics["finetuned"]["accuracy"] > 0.9


def test_chunks_do_not_change_the_measurement(clicks):
    data = load_data("criteo", root=clicks, bins=50)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(39, 2), torch.nn.Dropout(0.5))
    x, y = data.test.read(slice(0, len(data.test)))
    logits = model.eval()(x).detach()
    model.train()
    for size in (None, 7, 60):
        found = evaluate_source(model, data.test, size)
        assert found["accuracy"] == float((logits.argmax(1) == y).double().mean())
        assert found["loss"] == pytest.approx(float(F.cross_entropy(logits.double(), y)), rel=1e-6)  # float32 logits
        assert found["loss"] == pytest.approx(evaluate(model, x, y)["loss"], rel=1e-6)
    assert model.training


def test_what_is_left_out_is_not_measured(pictures):
    for index in (1, 3):
        (pictures / "val" / "red" / f"{index}.jpg").write_bytes(b"")
    data = load_data("imagefolder", root=pictures, size=8, broken=0.3, workers=1)

    class Red(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([-100.0, 0.0]).expand(len(x), 2)

    with pytest.warns(UserWarning, match="does not decode and is left out"):
        found = evaluate_source(Red(), data.test)
    assert found["accuracy"] == 3 / 8
    assert found["loss"] == pytest.approx(100 * 5 / 8)


def test_guessing_is_right_as_often_as_the_most_frequent_class(clicks, pictures):
    data = load_data("criteo", root=clicks, bins=50)
    labels = data.test.read(slice(0, len(data.test)))[1]
    assert chance_of(data) == max(float((labels == c).double().mean()) for c in (0, 1)) > 0.5
    shutil.rmtree(pictures / "val" / "red")
    (pictures / "val" / "red").mkdir()
    shutil.copy(pictures / "val" / "green" / "0.jpg", pictures / "val" / "red")
    assert chance_of(load_data("imagefolder", root=pictures, size=8)) == 5 / 6
    source = TensorSource(torch.rand(3, 2), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match=r"few: labels of the test side must lie in 0..1, got 0..2; correct them"):
        chance_of(StreamedSet("few", source, source, 2))


def test_every_known_data_set_but_the_general_folder_has_a_budget():
    assert set(DEFAULTS) == set(LOADERS) - {"imagefolder"}
    imagenet = default_budget("imagenet")
    assert (imagenet.epochs, imagenet.batch_size, imagenet.lr) == (90, 2048, 0.8)
    assert default_budget("criteo").optimizer == default_budget("movielens-100k").optimizer == "adamw"
    assert default_budget("imagefolder") == Budget()
