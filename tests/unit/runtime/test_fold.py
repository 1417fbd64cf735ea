"""Folding: norms into convolutions, activations into layers, and everything that must not be folded."""

import pytest
import torch
from tests.unit.runtime.models import always, net, thin
from torch import nn

from openwork.runtime.fold import activations_after, fold_norms


def pair(**changes):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
            self.bn.running_mean.normal_()
            self.bn.running_var.uniform_(0.5, 2)
            nn.init.uniform_(self.bn.weight, 0.5, 2)

        def forward(self, x):
            return self.relu(self.bn(self.conv(x)))

    for name, value in changes.items():
        setattr(Pair, name, value)
    return thin(Pair())


def test_norms_and_activations_fold_and_zeros_stay():
    model, x = net(), torch.randn(2, 3, 10, 10)
    wanted, zeros = model(x), model.conv1.weight == 0
    assert activations_after(model) == {"bn1": ("relu", "relu1"), "fc": ("gelu", "gelu")}
    assert fold_norms(model) == [("conv1", "bn1"), ("conv2", "bn2")]
    torch.testing.assert_close(model(x), wanted)
    assert torch.equal(model.conv1.weight == 0, zeros)
    assert model.conv1.bias is not None
    assert activations_after(model)["conv1"] == ("relu", "relu1")
    packed = always(net())
    assert packed.conv1.activation == "relu"
    assert packed.fc.activation == "gelu"
    assert packed.conv2.activation == "silu"  # behind the sum, which the kernel computes too
    assert packed.skip.activation == packed.head.activation == "none"
    kept = always(net(), fold=False)
    assert isinstance(kept.bn1, nn.BatchNorm2d)
    assert isinstance(kept.relu1, nn.ReLU)
    assert kept.conv1.activation == "none"


def read_twice(self, x):
    y = self.conv(x)
    return self.relu(self.bn(y)) + y


def called_twice(self, x):
    return self.relu(self.bn(self.conv(x))) + self.bn(self.conv(-x))


def norm_twice(self, x):
    return self.relu(self.bn(self.conv(x))) + self.bn(torch.ones(1, 8, 1, 1))


def by_value(self, x):
    return self.relu(self.bn(self.conv(x))) if x.sum() > -1e9 else x


@pytest.mark.parametrize("forward", [read_twice, called_twice, norm_twice, by_value], ids=lambda f: f.__name__)
def test_nothing_is_folded_that_something_else_reads(forward):
    model, x = pair(forward=forward), torch.randn(2, 4, 6, 6)
    wanted = model(x)
    torch.testing.assert_close(always(model)(x), wanted)
    assert fold_norms(model) == []
    assert torch.equal(model(x), wanted)


def test_norms_of_other_kinds_stay():
    x = torch.randn(2, 4, 6, 6)
    training = pair().train()
    assert fold_norms(training) == []
    without = pair()
    without.bn = nn.BatchNorm2d(8, track_running_stats=False)
    assert fold_norms(without) == []
    plain = pair()
    plain.bn = nn.BatchNorm2d(8, affine=False).eval()
    wanted = plain(x)
    assert fold_norms(plain) == [("conv", "bn")]
    torch.testing.assert_close(plain(x), wanted)

    class Louder(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    louder = pair()
    louder.bn = Louder(8).eval()
    wanted = louder(x)
    assert fold_norms(louder) == []
    torch.testing.assert_close(always(louder)(x), wanted)


def test_hooks_keep_their_modules():
    x, seen = torch.randn(2, 4, 6, 6), []
    for name in ("conv", "bn", "relu"):
        model = pair()
        model.get_submodule(name).register_forward_hook(lambda m, a, y: seen.append(m) or y)
        model.other = nn.Linear(4, 4)  # something that can always be packed
        packed = always(model)
        torch.testing.assert_close(packed(x), model(x))
        assert len(seen) == 2
        seen.clear()
    weighted = pair()
    weighted.other = nn.Linear(4, 4)
    nn.utils.parametrizations.weight_norm(weighted.conv)
    torch.testing.assert_close(always(weighted)(x), weighted(x))


def test_every_activation_is_computed_by_the_kernel():
    x = torch.randn(9, 16)
    for act in (nn.ReLU(), nn.SiLU(), nn.ReLU6(), nn.GELU(), nn.GELU(approximate="tanh"), nn.Tanh()):
        model = thin(nn.Sequential(nn.Linear(16, 24), nn.Identity(), act))
        packed = always(model)
        assert isinstance(packed[2], nn.Identity) == (not isinstance(act, nn.Tanh))
        torch.testing.assert_close(packed(x), model(x))
