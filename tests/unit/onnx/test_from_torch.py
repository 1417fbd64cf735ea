"""Models that torch exported: the same groups as in torch, a smaller file to a budget, and equal outputs."""

import warnings

import numpy as np
import pytest
import torch
from tests.unit.graph.nets import Net, conv, linear, pooled
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.onnx import onnx_graph, read_onnx
from openwork.onnx.file import array_of
from openwork.onnx.prune import KINDS
from openwork.onnx.running import inputs_of, run

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'openwork[onnx]'")
pytest.importorskip("onnxscript", reason="torch exports to ONNX with onnxscript")
pytestmark = pytest.mark.slow  # the exporter takes seconds to start


class Block(nn.Module):
    def __init__(self, width=16, heads=4, inner=40):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o, self.up, self.down = nn.Linear(width, width), nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def depthwise(n, x):
    y = F.relu6(n.b0(n.a(x)))
    y = F.hardswish(n.b1(n.d(y)))
    s = torch.sigmoid(n.e2(F.relu(n.e1(F.adaptive_avg_pool2d(y, 1)))))
    return n.head(pooled(n.c(y * s)))


def separable():
    norms = {"b0": nn.BatchNorm2d(24), "b1": nn.BatchNorm2d(24)}
    squeeze = {"e1": conv(24, 8, 1), "e2": conv(8, 24, 1)}
    return Net(
        depthwise, a=conv(3, 24), d=conv(24, 24, groups=24), c=conv(24, 30, 1), head=linear(30), **norms, **squeeze
    )


MODELS = {
    "ResNet-8": (lambda: ow.build_model("resnet8", input_shape=(3, 32, 32)), (2, 3, 32, 32)),
    "transformer block": (Block, (2, 7, 16)),
    "depthwise": (separable, (2, 3, 12, 12)),
}


def exported(name, folder):
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, x = build().eval(), torch.randn(shape)
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
    return model, x, path


@pytest.mark.parametrize("name", MODELS)
def test_a_model_from_torch(name, tmp_path):
    model, x, path = exported(name, tmp_path)
    source = read_onnx(path)
    graph = onnx_graph(source)
    assert not graph.unknown
    there = [(g.kind, g.n_units) for g in ow.build_graph(model, x).groups if g.kind in KINDS]
    assert sorted((g.kind, g.n_units) for g in graph.groups if g.kind in KINDS) == sorted(there)
    report = ow.prune_onnx(path, tmp_path / "small.onnx", target={"macs": 0.6})
    assert report.error <= 1e-5
    assert report.macs[0] == ow.graph.count_macs(model, x)
    assert abs(report.macs[1] / report.macs[0] - 0.6) <= 0.006
    small = read_onnx(tmp_path / "small.onnx")
    inputs = inputs_of(source, {}, seed=3)
    (found,), (dense,) = run(small, inputs), run(source, inputs)
    assert found.shape == dense.shape
    assert np.abs(found - dense).max() > 1e-4
    floats = [array_of(t) for t in small.graph.initializer if t.dims]
    assert sum(a.size for a in floats if a.dtype.kind == "f") == report.params[1]
