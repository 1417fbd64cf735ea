"""Folders of packed models: they run in a fresh process, are small, and refuse what does not fit."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from tests.unit.runtime.models import always
from tests.unit.ship.packing import forge, parts_of, sign
from torch import nn

import openwork as ow
from openwork.errors import FileError, OpenworkError
from openwork.methods import magnitude
from openwork.runtime import Packed
from openwork.ship import export, read_packed
from openwork.ship.export import PACKED
from openwork.ship.folder import read_result

FRESH = (
    "import sys, torch, openwork as ow; torch.set_num_threads(1); m, r = ow.load(sys.argv[1]);"
    "x = torch.linspace(-1, 1, 288).view(2, 1, 12, 12); print(m(x).double().flatten().tolist())"
)


def pruned(structure=None, density=0.2):
    model = ow.build_model("resnet8", (1, 12, 12), 10)
    result = ow.prune(model, magnitude(density=density, structure=structure or ow.Block(4, 1)))
    return model.eval(), result


@pytest.fixture
def shipped(tmp_path):
    model, result = pruned()
    packed = always(model, ow.Block(4, 1))
    return packed, result, export(packed, result, tmp_path / "p")


def edit(folder, change, old=False):
    """Change the index and sign it again; ``old``: as folders were written before they were signed."""
    data = json.loads((folder / "openwork.json").read_text())
    change(data)
    if old:
        del data["weights"], data["sha256"]
    (folder / "openwork.json").write_text(json.dumps(data if old else sign(data)))


def rewrite(folder, change):
    """Change the weights and write a file whose checksums are right, here and in the index."""
    stored, _ = read_packed(folder / PACKED)
    tensors, entries = parts_of(stored)
    change(tensors, entries)
    forge(folder / PACKED, tensors, entries)
    with safe_open(folder / PACKED, framework="pt") as file:
        edit(folder, lambda d: d.update(weights=json.loads(file.metadata()["openwork"])["sha256"]))


@pytest.mark.parametrize("isa", ["", "portable", "python"])
@pytest.mark.filterwarnings("ignore")
def test_a_fresh_process_computes_the_same(shipped, isa):
    packed, _, folder = shipped
    x = torch.linspace(-1, 1, 288).view(2, 1, 12, 12)
    if isa and not hasattr(ow.kernels.native(), "use"):
        pytest.skip("needs the native kernels")
    env = {"OPENWORK_ISA": isa, "PYTHONPATH": ":".join(sys.path), "OPENWORK_CACHE": "", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH, str(folder)], capture_output=True, text=True, env=env, check=True
    )
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), packed(x).flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ["", "python"])
def test_without_a_compiler_there_is_one_warning(shipped, isa):
    code = "import sys; sys.modules['openwork._native'] = None; " + FRESH + "; ow.load(sys.argv[1])"
    env = {"OPENWORK_ISA": isa, "PYTHONPATH": ":".join(sys.path), "OPENWORK_CACHE": "", "PATH": "/usr/bin"}
    command = [sys.executable, "-W", "always", "-c", code, str(shipped[2])]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    said = done.stderr.count(
        "the native kernels are not installed, packed layers run their slower Python path; install"
    )
    assert said == (0 if isa else 1)  # asked for, or not


def test_kernels_that_are_not_there_are_no_damage_of_the_file(shipped):
    env = {"OPENWORK_ISA": "none", "PYTHONPATH": ":".join(sys.path), "OPENWORK_CACHE": "", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", FRESH, str(shipped[2])], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "OpenworkError: OPENWORK_ISA: " in done.stderr
    assert "damaged" not in done.stderr


@pytest.mark.parametrize("choice", ["dense", "onednn", "column"])
def test_every_choice_comes_back(tmp_path, choice):
    model, result = pruned()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    packed = always(model, ow.Block(4, 1), override=dict.fromkeys(names, choice))
    folder = export(packed, result, tmp_path / "p")
    again, read = ow.load(folder)
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(again(x), packed(x))
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-4)
    assert again.openwork_plan == packed.openwork_plan
    assert not again.training
    assert not [p for p in again.parameters() if p.requires_grad]
    assert [type(m) for m in again.modules()] == [type(m) for m in packed.modules()]
    assert read.recipe == result.recipe
    assert read.counts == result.counts
    assert all(torch.equal(m, result.masks[n]) for n, m in read.masks.items())
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in packed.state_dict().items()}
    second = export(again, read, tmp_path / "again")
    assert (second / PACKED).read_bytes() == (folder / PACKED).read_bytes()


def test_dense_choices_are_stored_small_too(tmp_path):
    model, result = pruned(density=0.1)
    ow.save(model, result, tmp_path / "r")
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    dense = (tmp_path / "r" / "model.safetensors").stat().st_size
    for choice in ("dense", "column"):
        packed = always(model, ow.Block(4, 1), override=dict.fromkeys(names, choice))
        size = (export(packed, result, tmp_path / choice) / PACKED).stat().st_size
        assert size < 0.35 * dense


def test_a_single_layer_and_low_precision(tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        layer = nn.Linear(64, 32)
        result = ow.prune(layer, magnitude(density=0.25, structure=ow.Block(8, 8)))
        packed = always(layer, ow.Block(8, 8), dtype=dtype)
        folder = export(packed, result, tmp_path / str(dtype))
        again, _ = ow.load(folder, nn.Linear(64, 32))
        x = torch.randn(9, 64)
        assert isinstance(again, Packed)
        assert torch.equal(again(x), packed(x))


class Tied(nn.Module):
    """One weight under two names, one module under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.b.weight = self.a.weight
        self.again = self.c

    def forward(self, x):
        return self.again(self.c(self.b(self.a(x))))


@pytest.mark.parametrize("choice", ["dense", "onednn", "column"])
def test_tied_weights_and_shared_modules(tmp_path, choice):
    model = Tied()
    result = ow.prune(model, magnitude(density=0.2, structure=ow.Element()))
    packed = always(model, override={"a": choice, "c": choice})
    folder = export(packed, result, tmp_path / "p")
    x = torch.randn(5, 24)
    frozen = Tied().requires_grad_(False)
    state = {n: t.clone() for n, t in frozen.state_dict().items()}
    again, _ = ow.load(folder, frozen)
    assert torch.equal(again(x), packed(x))
    assert again.c is again.again
    assert all(torch.equal(t, state[n]) for n, t in frozen.state_dict().items())
    assert not any(p.requires_grad for p in frozen.parameters())
    names = list(read_packed(folder / PACKED)[0])
    assert not [n for n in names if n.startswith("again.weight_")]


def test_what_cannot_be_exported_or_loaded(shipped, tmp_path):
    packed, result, folder = shipped
    with pytest.raises(OpenworkError, match=r"export: needs a model that pack\(\) returned, got Linear"):
        export(nn.Linear(3, 3), result, tmp_path / "x")
    with pytest.raises(FileError, match="exists already"):
        export(packed, result, folder)
    assert export(packed, result, folder, overwrite=True) == folder
    with pytest.raises(FileError, match="is a packed model, whose masks lie in its weights; use load"):
        read_result(folder)
    x, other = torch.randn(1, 1, 12, 12), ow.build_model("resnet8", (1, 12, 12), 7)
    state = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(FileError, match=r"linear.weight is 10 x \d+, the model wants 7 x"):
        ow.load(folder, other)
    assert all(torch.equal(t, state[n]) for n, t in other.state_dict().items())
    assert not [m for m in other.modules() if isinstance(m, Packed)]
    with pytest.raises(FileError, match=r"does not fit Sequential: it has no module .* that was packed \(a .*Res"):
        ow.load(folder, nn.Sequential(nn.Linear(3, 3)))
    edit(folder, lambda d: d.update(source=None))
    with pytest.raises(OpenworkError, match="does not say how to build its model"):
        ow.load(folder)
    again, _ = ow.load(folder, ow.build_model("resnet8", (1, 12, 12), 10))
    assert torch.equal(again(x), packed(x))


def first(data):
    return next(iter(data["layers"].values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("plan"), "plan must be a dict, got NoneType"),
        (lambda d: d["plan"].pop("choices"), "incomplete or damaged"),
        (lambda d: d["plan"].update(threads="many"), "incomplete or damaged"),
        (lambda d: d["layers"].update(nowhere=first(d)), "nowhere.weight is not packed, but the index says so"),
        (lambda d: first(d).pop("kind"), "incomplete or damaged"),
        (lambda d: first(d).update(activation="tanh"), "incomplete or damaged"),
        (lambda d: first(d)["window"].update(kernel_size=[0, 0]), "the window of a convolution is"),
        (lambda d: first(d)["window"].update(kernel_size=[9, 9]), "the window of a convolution is"),
        (lambda d: first(d)["window"].update(dilation=[2**40, 1]), "the window of a convolution is"),
        (lambda d: first(d).pop("window"), "must be a Linear, got Conv2d"),
        (lambda d: d["gone"].append("no.such.module"), "it has no module no.such.module"),
        (lambda d: d["onednn"].append("no.such.module"), "it has no module no.such.module"),
        (lambda d: d["tied"].update({"a": "b"}), "incomplete or damaged"),
        (lambda d: d["result"].pop("recipe"), "incomplete or damaged"),
    ],
)
def test_damaged_indices_are_refused(shipped, change, message):
    _, _, folder = shipped
    edit(folder, change)
    with pytest.raises(FileError, match=message):
        ow.load(folder)


def test_a_bias_too_many_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(16, 8))
    result = ow.prune(model, magnitude(density=0.2, structure=ow.Element()))
    folder = export(always(model), result, tmp_path / "p")
    with pytest.raises(FileError, match=r"0.bias is unknown to the model"):
        ow.load(folder, nn.Sequential(nn.Linear(16, 8, bias=False)))


def test_a_kind_that_is_none_runs_another_kernel(shipped):
    """Which kernel runs is a hint: the weights say what is computed."""
    packed, _, folder = shipped
    edit(folder, lambda d: [layer.update(kind="fastest") for layer in d["layers"].values()])
    x = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(ow.load(folder)[0](x), packed(x))


def test_forged_weights_are_refused(shipped):
    _, _, folder = shipped
    whole = (folder / PACKED).read_bytes()

    def try_(change, message):
        (folder / PACKED).unlink()
        (folder / PACKED).write_bytes(whole)
        rewrite(folder, change)
        with pytest.raises(FileError, match=message):
            ow.load(folder)

    def bias(tensors, entries):
        tensors["linear.bias"] = torch.zeros(3)
        entries["linear.bias"]["shape"] = [3]

    def dense(tensors, entries):
        for name in [n for n in tensors if n.startswith("linear.weight/")]:
            del tensors[name]
        tensors["linear.weight"] = torch.zeros(10, 3)
        entries["linear.weight"] = {"format": "dense", "dtype": "float32", "shape": [10, 3]}

    def stranger(tensors, entries):
        tensors["nowhere.weight"] = torch.zeros(3)
        entries["nowhere.weight"] = {"format": "dense", "dtype": "float32", "shape": [3]}

    try_(bias, "the bias must hold 10 floating point numbers")
    try_(dense, "linear.weight is not packed")
    try_(stranger, "nowhere.weight is unknown to")
    try_(lambda t, e: (t.pop("linear.bias"), e.pop("linear.bias")), "linear.bias is missing in the file")
    try_(lambda t, e: t["linear.weight/columns"].fill_(999), "columns must lie in")


def test_shapes_of_dense_tensors_are_compared(tmp_path):
    model = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8))
    result = ow.prune(model, magnitude(density=0.2, structure=ow.Element()))
    folder = export(always(model), result, tmp_path / "p")
    with pytest.raises(FileError, match=r"1.weight is \(8,\), the model wants \(4, 8\)"):
        ow.load(folder, nn.Sequential(nn.Linear(16, 8), nn.LayerNorm((4, 8))))
    with pytest.raises(FileError, match=r"1.bias is unknown to the model \(1 names differ\)"):
        ow.load(folder, nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8, bias=False)))
    with pytest.raises(FileError, match=r"2.bias is missing in the file \(2 names differ\)"):
        ow.load(folder, nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.LayerNorm(8)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(fused={"layer1.0": {"conv1": ["silu"]}}),
        lambda d: d.update(fused={"nowhere": {"conv1": ["relu"]}}),
        lambda d: d.update(fused={"": 3}),
    ],
)
def test_what_was_fused_must_fit_the_model(shipped, change):
    packed, _, folder = shipped
    assert packed.openwork_inside["layer1.0"] == {"conv1": ["relu"], "conv2": ["residual", "relu"]}
    edit(folder, change)
    with pytest.raises(FileError, match="what was fused does not fit"):
        ow.load(folder)
