"""The checked call and its operators without a GPU: the reference, autograd, compile, export, refusals."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from openwork.errors import KernelError
from openwork.gpu import BlockIndex, block_linear, launch, ops

_spec = importlib.util.spec_from_file_location("layers", Path(__file__).parent / "layers.py")
layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layers)
matrix, close = layers.matrix, layers.close
NAMES = ("none", "relu", "gelu", "gelu_tanh", "silu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 128), (64, 16)])
def test_reference(dtype, height, width):
    index, values, weight = matrix(70, 150, height, width, dtype)
    x, b, r = torch.randn(9, 150).to(dtype), torch.randn(70).to(dtype), torch.randn(9, 70).to(dtype)
    found = block_linear(x, values, index, b, residual=r, activation="gelu")
    z = x.double() @ weight.T + b.double()
    close(
        found, F.gelu(z) + r.double(), 1.2 * x.double().abs() @ weight.abs().T + 2 * b.double().abs() + r.double().abs()
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_any_order(name):
    index, values, _ = matrix(20, 24, 16, 16, torch.float64)
    x, b, r = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 24), (20,), (3, 20)))
    inside = (values * (index.values_of(torch.ones(20, 24)) > 0)).requires_grad_()

    def call(x, v, b, r):
        return block_linear(x, v, index, b, residual=r, activation=name)

    assert torch.autograd.gradcheck(call, (x, inside, b, r), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, inside, b, r), fast_mode=True)


def test_gradients_of_a_dense_masked_product():
    index, values, _ = matrix(40, 60, 16, 32, torch.float64)
    x, v = torch.randn(7, 60, dtype=torch.float64, requires_grad=True), values.requires_grad_()
    ours = torch.autograd.grad(block_linear(x, v, index, activation="silu").square().sum(), (x, v))
    dense = torch.autograd.grad(F.silu(x @ index.dense(v).T).square().sum(), (x, v))
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_operators_obey_torch(turned):
    """Schema, fake kernel, autograd registration and traced gradients, by torch's own checker."""
    index, values, _ = matrix(20, 24, 16, 16, torch.float64)
    x = torch.randn(3, 20 if turned else 24, dtype=torch.float64, requires_grad=True)
    v, tables = values.requires_grad_(), list(index.tables)
    b = torch.randn(24 if turned else 20, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(ops.product, (x, v, tables, 20, 24, turned, b, None, "silu", True, "ieee"))
    if not turned:
        grad = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(ops.outer, (grad, x, tables, 20, 24, 16, 16, "ieee"))


def test_shapes_and_sizes():
    index, values, weight = matrix(40, 60, 16, 32)
    assert block_linear(torch.zeros(60), values, index).shape == (40,)
    assert block_linear(torch.zeros(2, 0, 3, 60), values, index).shape == (2, 0, 3, 40)
    x = torch.randn(60, 2, 5).permute(1, 2, 0)
    torch.testing.assert_close(block_linear(x, values, index), x @ weight.float().T, rtol=1e-4, atol=1e-5)
    none = BlockIndex.of_blocks(torch.zeros(3, 2, dtype=torch.bool), 40, 60, 16, 32)
    y = block_linear(x, torch.zeros(0, 16, 32), none, torch.ones(40), activation="relu")
    assert torch.equal(y, torch.ones(2, 5, 40))


def test_autocast():
    index, values, weight = matrix(40, 60, 16, 32)
    x, v = torch.randn(5, 60, requires_grad=True), values.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = block_linear(x, v, index, torch.zeros(40), residual=torch.zeros(5, 40), activation="gelu")
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == v.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), F.gelu(x @ weight.float().T), rtol=0.05, atol=0.1)


def call(x=None, values=None, index=None, **more):
    good, v, _ = matrix(40, 60, 16, 32, kept=torch.ones(3, 2, dtype=torch.bool))
    x = torch.zeros(5, 60) if x is None else x
    return block_linear(x, v if values is None else values, good if index is None else index, **more)


REFUSED = {
    r"x must be bf16, fp16, fp32 or float64, got torch.int64; cast": lambda: call(
        torch.zeros(5, 60, dtype=torch.int64)
    ),
    r"x must be bf16, fp16, fp32 or float64, got torch.complex64": lambda: call(torch.zeros(5, 60) + 0j),
    r"x must be \[..., 60\], got \(5, 59\)": lambda: call(torch.zeros(5, 59)),
    r"x must be \[..., 60\], got \(\)": lambda: call(torch.tensor(1.0)),
    r"values must be \(6, 16, 32\) \(blocks, height, width\), got \(5, 16, 32\)": lambda: call(
        values=torch.zeros(5, 16, 32)
    ),
    r"values must be \(6, 16, 32\) .*, got \(6, 32, 16\)": lambda: call(values=torch.zeros(6, 32, 16)),
    r"bias must be \(40,\), got \(60,\)": lambda: call(bias=torch.zeros(60)),
    r"residual must have the shape of the result, \(5, 40\), got \(40,\)": lambda: call(residual=torch.zeros(40)),
    r"values must have the dtype and device of x, torch.float64 on cpu, got torch.float32 on cpu": lambda: call(
        torch.zeros(5, 60, dtype=torch.float64)
    ),
    r"bias must have the dtype and device of x, .* got torch.float16 on cpu": lambda: call(bias=torch.zeros(40).half()),
    r"residual must have the dtype and device of x, .* on meta": lambda: call(
        residual=torch.zeros(5, 40, device="meta")
    ),
    r"values must have the dtype and device of x, torch.float32 on meta, got": lambda: call(
        torch.zeros(5, 60, device="meta")
    ),
    r"the index must be on meta like x, got cpu; use index.to": lambda: call(
        torch.zeros(5, 60, device="meta"), torch.zeros(6, 16, 32, device="meta")
    ),
    r"activation must be one of none, relu, gelu, gelu_tanh, silu, got 'tanh'": lambda: call(activation="tanh"),
    r"precision must be one of ieee, tf32, tf32x3, got 'bf16'": lambda: call(precision="bf16"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(KernelError, match=message):
        REFUSED[message]()


def test_without_triton(monkeypatch):
    """A GPU tensor without Triton names the extra; ``launch.kernels`` is what every launch goes through."""
    monkeypatch.setitem(sys.modules, "triton", None)
    launch.kernels.cache_clear()
    try:
        with pytest.raises(KernelError, match=r"on a GPU need Triton .*; install it: pip install 'openwork\[gpu\]'"):
            launch.kernels()
    finally:
        launch.kernels.cache_clear()


def test_triton_is_loaded_late():
    """Neither the import nor a product on the CPU loads it."""
    code = (
        "import sys, torch; from openwork.gpu import BlockIndex, block_linear;"
        "i = BlockIndex.of_blocks(torch.ones(1, 1) > 0, 16, 16, 16, 16);"
        "block_linear(torch.ones(1, 16), torch.ones(1, 16, 16), i);"
        "assert 'openwork.gpu.device' not in sys.modules, 'kernels were imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
