"""The format follows from the structure; the smallest is the smallest; weights open as the structures see them."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.core.targets import find_targets
from openwork.errors import FormatError, StructureError
from openwork.formats import Bitmap, Blocks, BlockSparse, Csr, NMSparse, Runs, Unstructured, choose, smallest
from openwork.formats import matrices as open_weight
from openwork.formats import weight as close_weight
from openwork.methods import magnitude

LAYERS = {
    "linear": nn.Linear(24, 16),
    "conv": nn.Conv2d(8, 16, 3),
    "grouped": nn.Conv2d(16, 8, 3, groups=4),
    "transposed": nn.ConvTranspose2d(8, 16, 3),
    "grouped transposed": nn.ConvTranspose2d(8, 16, 3, groups=2),
}


@pytest.mark.parametrize(
    ("structure", "layout"),
    [
        (ow.Element(), Unstructured()),
        (ow.Block(16, 8), Blocks(16, 8)),
        (ow.GroupOf(8), Blocks(1, 8)),
        (ow.GroupOf(4, dim=0), Blocks(4, 1)),
        (ow.Row(), Blocks(1, None)),
        (ow.Filter(), Blocks(1, None)),
        (ow.Column(), Blocks(None, 1)),
        (ow.InputChannel(), Blocks(None, 1)),
        (ow.Kernel(), Unstructured()),
        (ow.NM(keep=2, of=4), Runs(2, 4)),
        (ow.NM(keep=2, of=4, dim=0), Unstructured()),
    ],
)
def test_the_layout_of_every_structure(structure, layout):
    assert choose(structure) == layout


@pytest.mark.parametrize("layer", sorted(LAYERS))
@pytest.mark.parametrize(
    "structure",
    [ow.Element(), ow.Block(4, 4), ow.Row(), ow.Column(), ow.InputChannel(), ow.Kernel(), ow.GroupOf(2, dim=0), ow.NM(keep=1, of=2)],
    ids=repr,
)  # fmt: skip
def test_pruned_layers_go_through_their_format(layer, structure):
    if layer == "linear" and isinstance(structure, ow.Kernel):
        pytest.skip("kernels are of convolutions")
    model = nn.Sequential(type(LAYERS[layer])(**options(LAYERS[layer])))
    if layer.startswith("grouped") and isinstance(structure, ow.Block):
        with pytest.raises(StructureError, match="groups, where the outputs of a block read different inputs"):
            ow.prune(model, magnitude(density=0.5, structure=structure))
        return
    result = ow.prune(model, magnitude(density=0.5, structure=structure))
    (target,), _ = find_targets(model, ow.Select())
    weight = model[0].weight.detach()
    stack, masks = open_weight(weight, target), open_weight(result.masks["0.weight"], target)
    assert stack.shape[0] == target.groups
    packed = [choose(structure).pack(w, m) for w, m in zip(stack, masks, strict=True)]
    unpacked = torch.stack([p.unpack() for p in packed])
    assert torch.equal(close_weight(unpacked, target), weight)
    if not isinstance(structure, ow.Kernel):
        kept = sum(p.stored for p in packed)
        assert kept == int(result.masks["0.weight"].sum()) or isinstance(structure, ow.Block)


def options(layer):
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    return {n: getattr(layer, n) for n in ("in_channels", "out_channels", "kernel_size", "groups")}


def test_a_grouped_convolution_is_a_stack_of_small_products():
    conv = nn.Conv2d(6, 9, 1, groups=3, bias=False)
    (target,), _ = find_targets(conv, ow.Select())
    stack = open_weight(conv.weight.detach(), target)
    x = torch.randn(2, 6, 5, 5)
    parts = [torch.einsum("oi,bihw->bohw", w, part) for w, part in zip(stack, x.chunk(3, 1), strict=True)]
    torch.testing.assert_close(torch.cat(parts, 1), conv(x))


def test_a_grouped_transposed_convolution_is_a_stack_of_small_products():
    conv = nn.ConvTranspose2d(6, 9, 1, groups=3, bias=False)
    (target,), _ = find_targets(conv, ow.Select())
    stack = open_weight(conv.weight.detach(), target)
    x = torch.randn(2, 6, 5, 5)
    parts = [torch.einsum("oi,bihw->bohw", w, part) for w, part in zip(stack, x.chunk(3, 1), strict=True)]
    torch.testing.assert_close(torch.cat(parts, 1), conv(x))


def test_tensors_of_another_shape_are_refused():
    (target,), _ = find_targets(nn.Conv2d(4, 8, 3, groups=2), ow.Select())
    with pytest.raises(FormatError, match=r"a tensor of shape \(8, 2, 3, 3\) is expected here, got \(8, 2\)"):
        open_weight(torch.zeros(8, 2), target)
    with pytest.raises(FormatError, match=r"a tensor of shape \(2, 4, 18\) is expected here, got \(1, 8, 18\)"):
        close_weight(torch.zeros(1, 8, 18), target)


@pytest.mark.parametrize(("density", "kind"), [(0.3, Bitmap), (0.07, Bitmap), (0.05, Csr), (0.0, Csr), (1.0, Bitmap)])
def test_unstructured_takes_the_smaller(density, kind):
    mask = torch.rand(256, 512) < density
    packed = Unstructured().pack(mask.float(), mask)
    other = (Csr if kind is Bitmap else Bitmap).pack(mask.float(), mask)
    assert type(packed) is kind
    assert packed.nbytes < other.nbytes


def test_shared_patterns_are_found():
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[:4, [0, 1, 4, 5]] = True
    mask[4:, [2, 3, 6, 7]] = True
    assert Runs(2, 4).pack(mask.float(), mask).share == 4
    mask[1, 0], mask[1, 2] = False, True
    assert Runs(2, 4).pack(mask.float(), mask).share == 1
    assert Runs(2, 4).pack(mask[:2].float(), mask[:2]).share == 1


def masks():
    rng = torch.Generator().manual_seed(0)

    def some(*shape, density):
        return torch.rand(*shape, generator=rng) < density

    yield "dense", torch.ones(64, 64, dtype=torch.bool), BlockSparse
    yield "random", some(64, 64, density=0.3), Bitmap
    yield "rare", some(64, 640, density=0.02), Csr
    yield "1:4", (torch.rand(64, 16, 4, generator=rng).argsort(2) < 1).view(64, 64), NMSparse
    yield "blocks", some(8, 8, density=0.3).repeat_interleave(16, 0).repeat_interleave(16, 1), BlockSparse
    yield "columns", some(16, 64, density=0.1).repeat_interleave(4, 0), BlockSparse
    yield "nothing", torch.zeros(0, 7, dtype=torch.bool), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("name", "mask", "kind"), list(masks()), ids=lambda v: v if isinstance(v, str) else "")
def test_the_smallest_beats_every_other(name, mask, kind, dtype):
    weight = torch.randn(mask.shape) * mask
    best = smallest(weight, mask, dtype=dtype)
    others = [Csr.pack(weight, mask, dtype=dtype), Bitmap.pack(weight, mask, dtype=dtype)]
    others += [
        BlockSparse.pack(weight, mask, height=h, width=w, dtype=dtype)
        for h, w in ((4, 1), (8, 8), (16, 16), (1, max(mask.shape[1], 1)))
    ]
    if name == "1:4":
        others += [NMSparse.pack(weight, mask, n=n, m=4, dtype=dtype) for n in (1, 2)]
    assert best.nbytes == min(best.nbytes, *(o.nbytes for o in others))
    if kind and dtype == torch.float32:
        assert isinstance(best, kind)
    if dtype == torch.float32:
        assert torch.equal(best.unpack(), weight)
