"""Effective sparsity against paths counted one by one, and on networks that are no chains of layers."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.errors import MissingStatistic, VerificationFailed
from openwork.methods import magnitude, random
from openwork.metrics import effective_masks


def by_enumeration(masks):
    """The entries that some path uses, every path of a chain of linear layers tried."""
    used = [torch.zeros_like(m) for m in masks]
    sizes = [masks[0].shape[1], *(m.shape[0] for m in masks)]
    for path in itertools.product(*map(range, sizes)):
        steps = [(b, a) for a, b in itertools.pairwise(path)]
        if all(bool(m[s]) for m, s in zip(masks, steps, strict=True)):
            for u, s in zip(used, steps, strict=True):
                u[s] = True
    return used


@pytest.mark.parametrize("density", [0.1, 0.2, 0.35, 0.6, 1.0])
def test_every_path_of_small_networks(density):
    rng = torch.Generator().manual_seed(int(100 * density))
    lost = 0
    for _ in range(12):
        sizes = torch.randint(2, 7, (4,), generator=rng).tolist()
        net = nn.Sequential(*itertools.chain(*((nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes))))
        masks = {
            n: torch.rand(p.shape, generator=rng) < density for n, p in net.named_parameters() if n.endswith("weight")
        }
        found = effective_masks(net, masks, torch.randn(2, sizes[0]))
        for mask, want in zip(found.values(), by_enumeration(list(masks.values())), strict=True):
            assert torch.equal(mask, want)
        lost += sum(int(m.sum()) for m in masks.values()) - sum(int(m.sum()) for m in found.values())
    assert lost == 0 if density == 1 else lost > 0


@pytest.mark.parametrize(
    ("name", "shape"),
    [("lenet", (1, 28, 28)), ("resnet8", (3, 32, 32)), ("vgg16_bn", (3, 32, 32)), ("vit", (3, 32, 32))],
)
def test_dense_networks_have_no_dead_ends(name, shape):
    model = ow.build_model(name, shape, 10).train()
    whole = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.ndim > 1}
    before = {n: b.clone() for n, b in model.state_dict().items()}
    assert all(bool(m.all()) for m in effective_masks(model, whole, torch.zeros(1, *shape)).values())
    assert all(torch.equal(before[n], b) for n, b in model.state_dict().items())
    assert model.training


class Branches(nn.Module):
    """A path of two convolutions beside a shortcut, pooled, with a gate over channels."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
        self.norm, self.gate, self.head = nn.BatchNorm2d(3), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = x + self.two(F.relu(self.norm(self.one(x))))
        y = F.max_pool2d(y, 2) * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return self.head(y.amax((2, 3)))


def branches(**cut):
    model = Branches()
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    for name, where in cut.items():
        masks[f"{name}.weight"][where] = False  # a row, or what a slice takes
    found = effective_masks(model, masks, torch.randn(1, 2, 8, 8))
    return {n.removesuffix(".weight"): int(m.sum()) for n, m in found.items() if n.endswith("weight")}


def test_what_a_cut_takes_with_it():
    assert branches() == {"one": 54, "norm": 3, "two": 54, "gate": 4, "head": 4}
    assert branches(two=slice(None)) == {"one": 0, "norm": 3, "two": 0, "gate": 4, "head": 4}
    assert branches(one=1) == {"one": 36, "norm": 3, "two": 36, "gate": 4, "head": 4}
    assert branches(norm=1) == {"one": 36, "norm": 2, "two": 36, "gate": 4, "head": 4}
    first = (slice(None), 0)
    assert branches(head=first) == {"one": 54, "norm": 3, "two": 54, "gate": 2, "head": 2}  # the gate reads it still
    assert branches(head=first, gate=first) == {"one": 54, "norm": 3, "two": 27, "gate": 1, "head": 2}
    assert branches(gate=slice(None)) == {"one": 54, "norm": 3, "two": 54, "gate": 0, "head": 4}


def test_nothing_is_lost_in_depth():
    """200 layers with one weight missing in each: the number of paths, about 64^200, is beyond float32."""
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(200)))
    masks = {n: torch.ones(64, 64, dtype=torch.bool) for n, _ in net.named_parameters()}
    for mask in masks.values():
        mask[0, 0] = False
    assert all(torch.equal(m, masks[n]) for n, m in effective_masks(net, masks, torch.zeros(1, 64)).items())


def test_few_random_weights_of_a_wide_layer_are_cut_off():
    """Most of what a random mask keeps at 1 % leads nowhere; what magnitude keeps at 50 % does not."""
    kept, found = {}, {}
    for density, method in ((0.01, random(0.01, scope="layer")), (0.5, magnitude(0.5))):
        model = ow.build_model("mlp")
        masks = ow.prune(model, method).masks
        kept[density] = sum(int(m.sum()) for m in masks.values())
        found[density] = sum(int(m.sum()) for m in effective_masks(model, masks, torch.zeros(1, 1, 8, 8)).values())
    assert found[0.01] < 0.2 * kept[0.01]
    assert found[0.5] == kept[0.5]


class Blind(nn.Module):
    """Looks at its input through something that has no gradient."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(self.one(x).argsort(-1).float())


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.table(ids))


LINEAR = nn.Sequential(nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "masks", "example", "error", "message"),
    [
        (LINEAR, {"x": torch.ones(2, 4) > 0}, torch.ones(1, 4), VerificationFailed,
         r"effective_masks: x has no bool mask of its shape, but torch.bool \(2, 4\); give"),
        (LINEAR, {"0.weight": torch.ones(2, 4)}, torch.ones(1, 4), VerificationFailed,
         "0.weight has no bool mask of its shape, but torch.float32"),
        (LINEAR, {"0.weight": torch.ones(2, 4) > 0}, torch.ones(1, 5), MissingStatistic,
         r"effective_masks: Sequential cannot be followed \(mat1 and mat2 shapes cannot be multiplied"),
        (Blind(), {"one.weight": torch.ones(4, 4) > 0, "two.weight": torch.ones(2, 4) > 0}, torch.ones(1, 4), MissingStatistic,
         "effective_masks: one.weight lies on no path even without a mask; the operations of Blind are not followed"),
        (Words(), {"head.weight": torch.ones(2, 4) > 0}, torch.ones(1, 3, dtype=torch.long), MissingStatistic,
         "effective_masks: the paths of token ids are not followed; give real-valued inputs"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, dilation=2), nn.Flatten()),
         {"0.weight": torch.ones(2, 1, 3, 3) > 0}, torch.ones(1, 1, 8, 8), MissingStatistic,
         "effective_masks: max_pool2d with dilation or indices is not followed"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_refused(model, masks, example, error, message):
    with pytest.raises(error, match=message):
        effective_masks(model, masks, example)
