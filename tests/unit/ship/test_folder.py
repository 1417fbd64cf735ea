"""Result folders: round trip in a fresh process, and every kind of damage."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.errors import FileError, OpenworkError, RecipeError, VerificationFailed
from openwork.methods import magnitude
from openwork.ship.folder import read_result


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ow.build_model("resnet8", (1, 12, 12), 10)
    result = ow.prune(model, magnitude(density=0.1, structure=ow.Block(4, 4)))
    ow.save(model, result, tmp_path / "r")
    return model, result, tmp_path / "r"


def edit(folder, change):
    data = json.loads((folder / "openwork.json").read_text())
    change(data)
    (folder / "openwork.json").write_text(json.dumps(data))


def test_load_gives_the_same_model_and_result(saved):
    model, result, folder = saved
    again, read = ow.load(folder)
    for (n, a), (m, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert n == m
        assert torch.equal(a, b)
    assert read.recipe == result.recipe
    assert read.counts == result.counts
    assert all(torch.equal(read.masks[n], m) for n, m in result.masks.items())
    assert all(torch.equal(read.units[n], u) for n, u in result.units.items())
    assert read.to_dict() == result.to_dict()
    assert (folder / "report.html").read_text().startswith("<!")


def test_a_collapsed_network_is_kept_as_it_is(saved, tmp_path, capsys):
    """Its loss is no number, which JSON does not have."""
    model, result, _ = saved
    result.metrics = {"finetuned": {"accuracy": 0.1, "loss": float("nan")}}
    result.log.append({"epoch": 1, "loss": float("inf")})
    ow.save(model, result, tmp_path / "c")
    text = (tmp_path / "c" / "openwork.json").read_text()
    assert json.loads(text, parse_constant=lambda name: 1 / 0)["metrics"]["finetuned"]["loss"] == "NaN"
    again = ow.load(tmp_path / "c")[1]
    assert math.isnan(again.metrics["finetuned"]["loss"])
    assert again.log[-1]["loss"] == math.inf
    assert main(["inspect", str(tmp_path / "c")]) == 0
    assert "10.00 %" in capsys.readouterr().out
    packed = ow.pack(ow.load(tmp_path / "c")[0], plan="always")
    ow.export(packed, again, tmp_path / "p")
    assert math.isnan(ow.load(tmp_path / "p")[1].metrics["finetuned"]["loss"])


def test_load_in_a_fresh_process_gives_equal_outputs(saved):
    model, _, folder = saved
    x = torch.linspace(-1, 1, 288).view(2, 1, 12, 12)
    code = (
        "import sys, torch, openwork as ow; torch.set_num_threads(1); m, r = ow.load(sys.argv[1]);"
        "x = torch.linspace(-1, 1, 288).view(2, 1, 12, 12); print(m.eval()(x).detach().double().flatten().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == model.eval()(x).detach().double().flatten().tolist()


def test_no_pickle_anywhere(saved):
    assert sorted(p.name for p in saved[2].iterdir()) == [
        "masks.safetensors",
        "model.safetensors",
        "openwork.json",
        "report.html",
    ]
    for name in ("masks.safetensors", "model.safetensors"):
        head = (saved[2] / name).read_bytes()[:9]
        assert head[8:9] == b"{"  # a safetensors header, not a pickle or a zip


def test_tied_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.body = nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.body(self.embed(x)))

    model = Tied()
    result = ow.prune(model, magnitude(density=0.5))
    ow.save(model, result, tmp_path / "r")
    assert json.loads((tmp_path / "r" / "openwork.json").read_text())["tied"] == {"head.weight": "embed.weight"}
    fresh = Tied()
    with pytest.raises(OpenworkError, match="does not say how to build its model .*Tied.*pass model="):
        ow.load(tmp_path / "r")
    again, _ = ow.load(tmp_path / "r", model=fresh)
    assert again.head.weight is again.embed.weight
    assert torch.equal(again.head.weight, model.head.weight)


def test_saving_another_model_is_refused(saved, tmp_path):
    _, result, _ = saved
    with pytest.raises(VerificationFailed, match="entries that the mask prunes are not zero"):
        ow.save(ow.build_model("resnet8", (1, 12, 12), 10), result, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_existing_folder_needs_overwrite(saved):
    model, result, folder = saved
    with pytest.raises(FileError, match="exists already"):
        ow.save(model, result, folder)
    ow.save(model, result, folder, overwrite=True)
    ow.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "masks.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_damaged_tensors_are_refused(saved, name, damage):
    path = saved[2] / name
    content = path.read_bytes()
    changed = {
        "truncate": content[:-7],
        "flip": content[:-3] + b"\x55" + content[-2:],
        "empty": b"",
        "foreign": b"PK\x03\x04" + content,
    }
    path.write_bytes(changed[damage])
    with pytest.raises(FileError, match=f"{name}: its checksum differs"):
        ow.load(saved[2])


def test_a_forged_checksum_still_meets_the_parser(saved):
    import hashlib

    junk = b"not a safetensors file"
    (saved[2] / "model.safetensors").write_bytes(junk)
    edit(saved[2], lambda d: d["files"]["model.safetensors"].update(sha256=hashlib.sha256(junk).hexdigest()))
    with pytest.raises(FileError, match="not a safetensors file"):
        ow.load(saved[2])


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileError, match="not a result folder, it holds no openwork.json"):
        ow.load(tmp_path / "nowhere")
    (saved[2] / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"model.safetensors: cannot be read"):
        ow.load(saved[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "format must be 1, got 99"),
        (lambda d: d.pop("tensors"), "tensors must be a list, got NoneType"),
        (lambda d: d.update(source=[1]), "source must be a dict or null, got list"),
        (lambda d: d["recipe"].update(kind="os.system"), "unknown kind 'os.system'"),
        (lambda d: d["recipe"].update(extra=1), "Recipe: unknown key 'extra'"),
        (lambda d: d["density"].update(kept=1), "promises 1 kept weights, the files hold"),
        (lambda d: d["density"].pop("total_numel"), "incomplete or damaged"),
        (lambda d: d.update(units={"conv1.weight": "many"}), "incomplete or damaged .ValueError"),
        (lambda d: d["files"].update({"masks.safetensors": "lost"}), "its checksum differs"),
        (lambda d: d["source"]["options"].update(width=8), "the model wants"),
        (lambda d: d["source"].update(name="resnet9"), "unknown model 'resnet9'; did you mean"),
        (lambda d: d["tied"].update(a="b"), "tensor 'b' is missing"),
        (lambda d: d.update(units={"conv1.weight": 10**9}), "a packed mask of shape"),
    ],
)
def test_a_damaged_index_is_refused(saved, change, message):
    edit(saved[2], change)
    with pytest.raises(OpenworkError, match=message):
        ow.load(saved[2])


def test_a_broken_index_is_refused(saved):
    (saved[2] / "openwork.json").write_text("{")
    with pytest.raises(FileError, match="not readable as JSON"):
        read_result(saved[2])


def test_a_model_that_does_not_fit_is_refused(saved):
    with pytest.raises(FileError, match="does not fit LeNet|does not fit"):
        ow.load(saved[2], model=nn.Linear(3, 3))


def test_a_factory_needs_permission(saved):
    edit(saved[2], lambda d: d.update(source={"kind": "factory", "name": "os:getcwd", "options": {}}))
    with pytest.raises(RecipeError, match="importing code that a file names is your decision"):
        ow.load(saved[2])


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    model = Odd(4, 4)
    result = ow.prune(model, magnitude(density=0.5))
    with pytest.raises(FileError, match="the model's state holds dict, only tensors can be saved"):
        ow.save(model, result, tmp_path / "r")
