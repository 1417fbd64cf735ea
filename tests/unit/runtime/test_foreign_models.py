"""Models that do more in their forwards than call layers: packing must compute the same, or say what it cannot."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import openwork as ow
from openwork.errors import FormatError, OpenworkError
from openwork.formats import BlockSparse, detect
from openwork.runtime.weight import PackedWeight

X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


def pruned(model, structure=None, density=0.3):
    torch.manual_seed(0)
    recipe = ow.methods.random(density=density, structure=structure or ow.Element(), scope="layer")
    ow.prune(model, recipe)
    return model.eval()


def apart(model, packed, *inputs):
    return float((packed(*inputs) - model(*inputs)).abs().max().detach())


class Counting(nn.Module):
    """Counts its calls, remembers what it saw, and makes a tensor at the first call."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.seen = []
        self.shift = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        h = self.fc(x)
        self.seen.append(h.detach())
        if self.shift is None:
            self.shift = torch.ones_like(x[:1])
        return torch.relu(h) + self.shift


class Noting(nn.Module):
    """Keeps what it computes in an object of its own, without assigning to an attribute."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.seen = []

    def forward(self, x):
        h = self.fc(x)
        self.seen.append(h)
        return torch.relu(h)


class Scaled(nn.Module):
    """Reads a number of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.scale = 2.0

    def forward(self, x):
        return torch.relu(self.fc(x)) * self.scale


class Looking(nn.Module):
    """Converts its input to the type of a weight, as T5 does, and uses another one by itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        h = self.a(x.to(self.a.weight.dtype)[:, : self.a.weight.shape[1]])
        return nn.functional.linear(h, self.b.weight, self.b.bias) + self.b(h)


@pytest.mark.parametrize("plan", ["measure", "always"])
@pytest.mark.parametrize("layers", [1, 2])
def test_transformer_layers_of_torch(plan, layers):
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    model = pruned(layer if layers == 1 else nn.TransformerEncoder(layer, layers))
    x = torch.randn(2, 10, 64)
    packed = ow.pack(model, plan=plan, example=x)
    assert apart(model, packed, x) < 1e-5


def test_compiled_transformer_layers_of_torch():
    model = pruned(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True))
    x = torch.randn(2, 10, 64)
    assert apart(model, torch.compile(ow.pack(model, plan="always"), backend="eager"), x) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forwards_that_look_at_weights(dtype):
    model = pruned(Looking()).to(dtype)
    packed = ow.pack(model, plan="always", example=X.to(dtype))
    assert (type(packed.a).__name__, packed.a.weight.dtype) == ("PackedLinear", dtype)
    gap = apart(model, packed, X.to(dtype))
    assert gap < (1e-5 if dtype == torch.float32 else 0.1)


def test_the_weight_of_a_packed_layer_stands_for_the_dense_one():
    model = pruned(nn.Sequential(nn.Linear(64, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 8, 3)))
    packed = ow.pack(model, plan="always")
    for i in (0, 2):
        weight, dense = packed[i].weight, model[i].weight.detach()
        assert isinstance(weight, PackedWeight)
        asked = (weight.shape, weight.dtype, weight.device, weight.dim(), weight.numel(), len(weight))
        assert asked == (dense.shape, dense.dtype, dense.device, dense.dim(), dense.numel(), len(dense))
        assert torch.equal(weight + 0, dense)
        assert type(weight * 2) is torch.Tensor
    assert "0.weight" not in packed.state_dict()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_loaded_layer_still_knows_the_type_of_its_dense_weight(tmp_path, dtype):
    model = Looking().to(dtype)
    result = ow.prune(model, ow.methods.magnitude(density=0.3))
    packed = ow.pack(model, plan="always", dtype=torch.float32)
    ow.export(packed, result, tmp_path / "fast")
    again, _ = ow.load(tmp_path / "fast", Looking().to(dtype))
    assert again.a.weight.dtype == packed.a.weight.dtype == dtype
    assert torch.equal(again(X.to(dtype)), packed(X.to(dtype)))


def test_a_forward_of_its_own_stays():
    model = pruned(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 64)))
    model[1].forward = lambda x: x * 2
    model[2].forward = lambda x: x + 1
    packed = ow.pack(model, example=X)
    assert apart(model, packed, X) < 1e-5
    assert packed.openwork_plan["2.weight"].reason == "hooks watch this layer, or its forward is its own"


def test_a_norm_with_a_forward_of_its_own_stays():
    model = pruned(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    model[1].forward = lambda x: x * 3
    x = torch.randn(2, 4, 8, 8)
    assert apart(model, ow.pack(model, plan="always"), x) < 1e-5


@pytest.mark.parametrize("plan", ["measure", "always"])
def test_packing_leaves_nothing_behind_in_the_copy(plan):
    model = pruned(Counting())
    packed = ow.pack(model, plan=plan, example=X)
    for m in (model, packed):
        assert (float(m.calls), m.seen, m.shift) == (0, [], None)
    assert apart(model, packed, X) < 1e-5
    assert [float(m.calls) for m in (model, packed)] == [1, 1]
    assert len(packed.seen) == 1
    assert type(packed.shift) is torch.Tensor


def test_forwards_that_keep_what_they_compute_are_not_fused():
    packed = ow.pack(pruned(Noting()), plan="always")
    for _ in range(3):
        packed(X)
    assert (packed.openwork_inside, len(packed.seen), type(packed.seen[0])) == ({}, 3, torch.Tensor)


def test_constants_of_a_fused_forward_cannot_be_set():
    model = pruned(Scaled())
    packed = ow.pack(model, plan="always")
    assert packed.openwork_inside == {"": {"fc": ["relu"]}}
    with pytest.raises(OpenworkError, match="Scaled: scale is a constant of the fused forward and cannot be set any"):
        packed.scale = 3.0
    assert apart(model, packed, X) < 1e-5
    packed.note = 1  # others can
    loose = ow.pack(model, plan="always", fold=False)
    model.scale = loose.scale = 3.0
    assert apart(model, loose, X) < 1e-5


def test_a_model_that_computes_something_else_is_refused(monkeypatch):
    model = pruned(nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
    pack = importlib.import_module("openwork.runtime.pack")  # the package holds the function under this name
    monkeypatch.setattr(pack, "activations_after", lambda *_: {"0": ("silu", "1")})
    with pytest.raises(
        OpenworkError, match="the packed Sequential does not compute what the dense one does, its output"
    ):
        ow.pack(model, plan="always", example=X)


def test_a_model_that_magnifies_rounding_is_packed_with_a_warning():
    class Far(nn.Sequential):
        def forward(self, x):
            return torch.sin(3e5 * super().forward(x))  # as far off as the linear layer is in units of 3e-6

    model = pruned(Far(nn.Linear(64, 64)))
    with pytest.warns(UserWarning, match="pack: Far magnifies rounding: the packed output is .* and the dense one"):
        packed = ow.pack(model, plan="always", example=X)
    assert 0.01 < apart(model, packed, X) < 1


def test_a_model_that_magnifies_the_rounding_of_bfloat16_is_packed_with_a_warning():
    """Folding a norm rounds the weights once more."""

    class Far(nn.Sequential):
        def forward(self, x):
            return torch.sin(3e3 * super().forward(x))

    torch.manual_seed(0)
    model = pruned(Far(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))).bfloat16()
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    images = torch.randn(2, 16, 8, 8).bfloat16()
    with pytest.warns(UserWarning, match="pack: Far magnifies rounding: the packed output is .* and the dense one"):
        ow.pack(model, plan="always", example=images, dtype=torch.bfloat16)


def test_random_models_are_not_compared():
    class Noise(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * torch.rand(())

    ow.pack(pruned(Noise(nn.Linear(64, 64))), plan="always", example=X)


def test_weights_that_were_exchanged_are_refused():
    model = pruned(nn.Sequential(nn.Linear(64, 64)))
    packed, other = (ow.pack(m, plan="always") for m in (model, pruned(nn.Sequential(nn.Linear(64, 64)))))
    with pytest.raises(FormatError, match="its packed weights were changed in place or exchanged"):
        torch.func.functional_call(packed, other.state_dict(), (X,))
    assert apart(model, packed, X) < 1e-5
    packed[0].weight_values = packed[0].weight_values * 2
    with pytest.raises(FormatError, match="its packed weights were changed in place or exchanged"):
        packed(X)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_derivatives_and_transformations_are_refused():
    packed = ow.pack(pruned(nn.Sequential(nn.Linear(64, 64))), plan="always")
    for run in (
        lambda: torch.func.jvp(packed, (X,), (X,)),
        lambda: torch.func.vmap(packed)(X),
        lambda: torch.func.grad(lambda x: packed(x).sum())(X),
    ):
        with pytest.raises(FormatError, match="packed layers take no part in transformations of torch.func"):
            run()
    with torch.autograd.forward_ad.dual_level():
        packed(X)
        with pytest.raises(FormatError, match="packed layers have no forward derivative"):
            packed(torch.autograd.forward_ad.make_dual(X, X))


@pytest.mark.parametrize("override", [{}, {"0": "onednn", "2": "onednn"}], ids=["packed", "onednn"])
def test_autocast_reads_inputs_as_dense_layers_do(override):
    model = pruned(nn.Sequential(nn.Linear(64, 64), nn.Unflatten(1, (4, 4, 4)), nn.Conv2d(4, 8, 3, padding=1)))
    packed = ow.pack(model, plan="always", override=override)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got, expected = packed(X), model(X)
        assert override or packed(X.double()).dtype == torch.float64
    assert got.dtype == expected.dtype == torch.bfloat16
    assert float((got - expected).abs().max() / expected.abs().max()) < 0.03


def test_tied_layers_are_named():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[2].weight = model[0].weight
    packed = ow.pack(pruned(model), plan="always")
    assert packed.openwork_plan["2.weight"].reason == "tied to 0.weight, stays dense"


SHAPES = {
    (64, 64): ow.Block(64, 64), (32, 32): ow.Block(32, 32), (16, 16): ow.Block(16, 16), (4, 1): ow.GroupOf(4, dim=0),
    (2, 1): ow.GroupOf(2, dim=0),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_structure_is_told_from_the_zeros(shape):
    packed = ow.pack(pruned(nn.Sequential(nn.Linear(256, 256)), SHAPES[shape], 0.2), plan="always")
    assert isinstance(packed[0].format, BlockSparse)
    assert (packed[0].format.height, packed[0].format.width) == shape
    assert packed[0].density <= 0.25


def test_single_weights_and_empty_matrices_are_told_too():
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.2
    assert detect(mask) == ow.Element()
    assert detect(torch.zeros(64, 64, dtype=torch.bool)) == detect(torch.ones(64, 64, dtype=torch.bool)) == ow.Element()
    blocks = torch.zeros(64, 64, dtype=torch.bool)
    blocks[:32, :32] = True
    blocks[::8, 0] = False  # training may leave a zero in a kept block
    assert detect(blocks) == ow.Block(32, 32)


@pytest.mark.parametrize("height", [2, 4])
def test_blocks_must_be_nine_tenths_full(height):
    mask = torch.zeros(40, 100, dtype=torch.bool).view(40 // height, height, 100)
    mask[::2, :, ::2] = mask[1::2, :, 1::2] = True
    kept = int(mask.sum())
    full = mask.view(40, 100).clone()
    assert detect(full) == ow.GroupOf(height, dim=0)
    at = full[::height].nonzero()[: kept // 10]  # the first of each block, so that none gets empty
    full[at[:, 0] * height, at[:, 1]] = False
    assert int(full.sum()) == kept - kept // 10
    assert detect(full) == ow.GroupOf(height, dim=0)
    full[-1, full[-1].nonzero()[-1]] = False
    assert detect(full) != ow.GroupOf(height, dim=0)


def test_a_structure_that_the_zeros_do_not_follow_is_said():
    model = pruned(nn.Sequential(nn.Linear(64, 64)), density=0.1)
    with pytest.warns(UserWarning, match=r"the zeros of 0 do not follow Block\(rows=32, cols=32\)"):
        ow.pack(model, ow.Block(32, 32), plan="always")


def test_what_torch_leaves_in_a_layer_must_be_removed_first():
    model = nn.Sequential(nn.Linear(64, 64))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(OpenworkError, match=r"0 still carries a mask of torch.nn.utils.prune: call"):
        ow.pack(model, plan="always")
    torch_prune.remove(model[0], "weight")
    assert apart(model, ow.pack(model, plan="always"), X) < 1e-5
    with pytest.warns(FutureWarning):
        normed = nn.Sequential(nn.utils.weight_norm(nn.Linear(64, 64)))
    with pytest.raises(OpenworkError, match=r"0 still carries torch.nn.utils.weight_norm: call"):
        ow.pack(normed, plan="always")
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse())
    with pytest.raises(
        OpenworkError, match="weight of 0 must be a dense tensor with zeros in it, got torch.sparse_coo"
    ):
        ow.pack(model, plan="always")
