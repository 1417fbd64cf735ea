"""``pack(activations="int8")``: which layers multiply whole numbers, what it promises, what it refuses, files."""

import subprocess
import sys

import pytest
import torch
from tests.unit.runtime.models import timed
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.errors import OpenworkError
from openwork.kernels import native
from openwork.runtime import PackedConv2d, PackedLinear, pack
from openwork.runtime.inputs import relative_error

ROUNDED = {"dtype": torch.int8, "activations": "int8"}


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 10))
    where = ow.Select(include=["0.weight", "2.weight"])
    ow.prune(made, ow.methods.magnitude(structure=ow.Block(16, 16), density=0.5, where=where))
    return made.eval()


def test_linear_layers_in_blocks_multiply_whole_numbers():
    dense, x = model(), torch.randn(20, 64)
    packed = pack(dense, plan="always", example=x, **ROUNDED)
    kinds = {n: m.kind for n, m in packed.named_modules() if isinstance(m, PackedLinear)}
    assert kinds == {"0": "int8", "2": "int8", "4": "column"}  # the last is full: single weights
    assert packed[0].format.scales.shape == (6, 16)
    assert packed.openwork_plan["0"].packed
    with torch.no_grad():
        assert 1e-4 < relative_error(dense(x), packed(x)) < 0.05
        weights_only = pack(dense, plan="always", dtype=torch.int8)
        assert relative_error(weights_only(x), packed(x)) > 1e-4  # inputs are rounded too


def test_it_is_one_more_candidate_that_must_be_fast_and_right(monkeypatch):
    timed(monkeypatch, {"dense": 9.0, "onednn": 9.0, "column": 9.0, "int8": 1.0})
    dense, x = model(), torch.randn(20, 64)
    assert [pack(dense, example=x, **ROUNDED).openwork_plan[n].chosen for n in "02"] == ["int8", "int8"]
    spoilt = x.clone()
    spoilt[:, 0] = 1e6  # one input so large that all others round to nothing
    with torch.no_grad():
        dense[0].weight[:, 0] = 0
    choice = pack(dense, example=spoilt, **ROUNDED).openwork_plan["0"]
    assert choice.chosen != "int8"
    assert "not exact enough: int8" in choice.reason
    forced = pack(dense, example=x, override={"0": "column", "2": "int8"}, **ROUNDED)
    assert (forced[0].kind, forced[2].kind) == ("column", "int8")


def test_what_it_refuses():
    dense, x = model(), torch.randn(2, 64)
    with pytest.raises(OpenworkError, match="pack: activations must be 'float' or 'int8', got 'int4'"):
        pack(dense, example=x, activations="int4")
    for dtype in (None, torch.bfloat16):
        with pytest.raises(OpenworkError, match="activations='int8' multiplies weights in int8, got dtype="):
            pack(dense, example=x, dtype=dtype, activations="int8")
    plain = nn.Sequential(nn.Linear(64, 64))
    ow.prune(plain, ow.methods.magnitude(density=0.2))
    with pytest.raises(OpenworkError, match="or a 1 x 1 convolution, that is pruned in blocks .* Sequential has none"):
        pack(plain, example=x, **ROUNDED)
    image = nn.Sequential(nn.Conv2d(16, 32, 3))
    ow.prune(image, ow.methods.magnitude(structure=ow.Block(16, 16), density=0.5))
    with pytest.raises(OpenworkError, match="activations='int8' needs a linear layer, or a 1"):
        pack(image, example=torch.randn(1, 16, 4, 4), **ROUNDED)


class Pixels(nn.Module):
    """Convolutions of 1 x 1 and 3 x 3, norms, a sum and two activations."""

    def __init__(self):
        super().__init__()
        self.wide, self.norm = nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.inner, self.back = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 1)
        self.down = nn.Conv2d(64, 32, 1, stride=2)

    def forward(self, x):
        x = nn.functional.relu6(self.norm(self.wide(x)))
        x = nn.functional.relu(self.back(nn.functional.relu(self.inner(x))) + x)
        return self.down(x).mean((2, 3))


@pytest.mark.parametrize("last", [False, True])
def test_one_by_one_convolutions_multiply_whole_numbers(last):
    torch.manual_seed(0)
    dense = Pixels().eval()
    ow.prune(dense, ow.methods.magnitude(structure=ow.Block(16, 16), density=0.5))
    x = torch.randn(2, 16, 10, 10)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    packed = pack(dense, plan="always", example=x, **ROUNDED)
    kinds = {n: m.kind for n, m in packed.named_modules() if isinstance(m, PackedConv2d)}
    assert {n for n, kind in kinds.items() if kind == "int8"} == {"wide", "back", "down"}
    assert kinds["inner"] in ("block", "column")
    with torch.no_grad():
        assert 1e-4 < relative_error(dense(x), packed(x)) < 0.05
        assert torch.equal(packed(x), packed(x.clone()))
        assert torch.equal(packed(x[:1]), packed(x)[:1])


def test_models_in_bfloat16():
    dense, x = model().bfloat16(), torch.randn(20, 64, dtype=torch.bfloat16)
    packed = pack(dense, plan="always", example=x, **ROUNDED)
    assert packed(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert relative_error(dense(x).float(), packed(x).float()) < 0.05


SCRIPT = """
import sys, torch
import openwork as ow
model = ow.load(sys.argv[1])[0]
print([m.kind for m in model.modules() if hasattr(m, "kind")])
torch.save(model(torch.load(sys.argv[2])).detach(), sys.argv[3])
"""


@pytest.mark.parametrize("isa", ["", "portable"])
def test_files_keep_the_arithmetic_on_every_processor(tmp_path, isa):
    """Exported by the command line, loaded in a fresh process, also in one without products of int8."""
    if native() is None:
        pytest.skip("no native kernels")
    mlp = ow.build_model("mlp", (64,), 10)
    method = ow.methods.magnitude(structure=ow.Block(16, 16), density=0.5, where=ow.Select(min_units=20))
    ow.save(mlp, ow.prune(mlp, method), tmp_path / "run")
    end = ["--dtype", "int8", "--activations", "int8", "--plan", "always", "--out", str(tmp_path / "packed")]
    assert main(["export", str(tmp_path / "run"), *end]) == 0
    model = ow.load(tmp_path / "packed")[0]
    x = torch.randn(16, 64)
    torch.save(x, tmp_path / "x")
    environment = {"OPENWORK_ISA": isa, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    names = [str(tmp_path / n) for n in ("packed", "x", "y")]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "int8" in run.stdout
    assert relative_error(model(x).detach(), torch.load(tmp_path / "y")) < 1e-3
