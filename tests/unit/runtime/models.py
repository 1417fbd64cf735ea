"""Small pruned models, and packing that does not depend on the clock."""

import sys
import warnings

import torch
from torch import nn

from openwork.runtime import pack


def thin(model, density=0.2, block=(1, 1)):
    """Zero random blocks of every linear and convolutional weight, in place."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                matrix = module.weight.flatten(1)
                shape = [-(-n // b) for n, b in zip(matrix.shape, block, strict=True)]
                kept = torch.rand(shape) < density
                for dim, size in enumerate(block):
                    kept = kept.repeat_interleave(size, dim)
                matrix *= kept[: matrix.shape[0], : matrix.shape[1]]
    return model.eval()


class Net(nn.Module):
    """Convolutions with norms and activations, a residual, and a linear end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.conv2, self.bn2, self.act2 = nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU()
        self.skip = nn.Conv2d(16, 16, 1, 2)
        self.fc, self.gelu, self.head = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)) + self.skip(x))
        return self.head(self.gelu(self.fc(x.mean((2, 3)))))


def net(**options):
    """A thinned ``Net`` whose norms do something."""
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return thin(model, **options)


def mlp(**options):
    return thin(nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 24)), **options)


def always(model, *args, **options):
    with warnings.catch_warnings():  # single weights stored in blocks are what kernels are tried with
        warnings.filterwarnings("ignore", "pack: the zeros of .* do not follow")
        return pack(model, *args, plan="always", **options)


def timed(monkeypatch, milliseconds, whole=None, onednn=1.0):
    """Packing finds these times: candidate -> milliseconds, and for whole models a function of the packed copy."""

    def layer_times(calls, **_):
        for call in calls.values():
            call()
        return {n: [milliseconds[n] / 1e3] * 7 for n in calls}

    def model_times(calls, **_):
        assert list(calls) in (["dense", "new", "onednn"], ["dense", "new"])
        seconds = {"dense": 1.0, "onednn": onednn, "new": 1.0 if whole is None else whole(calls["new"].args[0])}
        return {n: [seconds[n]] for n in calls}

    monkeypatch.setattr(sys.modules["openwork.runtime.plan"], "interleaved", layer_times)
    monkeypatch.setattr(sys.modules["openwork.runtime.promise"], "interleaved", model_times)
    monkeypatch.setattr(sys.modules["openwork.runtime.plan"], "_MEMORY", {})
