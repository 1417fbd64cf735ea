"""Bias, activation, residual and their gradients through the layer, on the kernels."""

import importlib.util
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from openwork.gpu import BlockSparseLinear, block_linear

_spec = importlib.util.spec_from_file_location("layers", Path(__file__).parents[1] / "layers.py")
layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layers)
matrix, close = layers.matrix, layers.close

DENSE = {
    "none": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(("tokens", "dtype"), list(product((2, 20), (torch.float32, torch.bfloat16))))
@pytest.mark.parametrize(("bias", "residual"), [(True, True), (False, False)])
def test_epilogue(name, tokens, dtype, bias, residual, device):
    index, values, weight = matrix(40, 60, 16, 32, dtype, device)
    x = torch.randn(tokens, 60, device=device).to(dtype)
    b = torch.randn(40, device=device).to(dtype) if bias else None
    r = torch.randn(tokens, 40, device=device).to(dtype) if residual else None
    found = block_linear(x, values, index, b, residual=r, activation=name)
    z = x.double() @ weight.T + (b.double() if bias else 0)
    size = x.double().abs() @ weight.abs().T + (b.double().abs() if bias else 0)
    expected = DENSE[name](z) + (r.double() if residual else 0)
    close(found, expected, 1.2 * size + (r.double().abs() if residual else 0))


def test_epilogue_after_cut_lines(device):
    kept = torch.zeros(9, 70, dtype=torch.bool)
    kept[3], kept[5, :3] = True, True
    index, values, weight = matrix(144, 1120, 16, 16, device=device, kept=kept)
    for tokens in (2, 20, 70):
        x, b = torch.randn(tokens, 1120, device=device), torch.randn(144, device=device)
        r = torch.randn(tokens, 144, device=device)
        found = block_linear(x, values, index, b, residual=r, activation="silu")
        z = x.double() @ weight.T + b.double()
        close(
            found, F.silu(z) + r.double(), 1.2 * x.double().abs() @ weight.abs().T + b.double().abs() + r.double().abs()
        )


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("tokens", [3, 20])
def test_gradients_of_a_masked_product(name, tokens, device):
    """float64: every gradient equals autograd's through the dense matrix, to rounding."""
    index, values, _ = matrix(40, 60, 16, 32, torch.float64, device)
    x, b, r = (torch.randn(s, dtype=torch.float64, device=device) for s in ((tokens, 60), (40,), (tokens, 40)))
    leaves = [t.clone().requires_grad_() for t in (x, values, b, r)]
    twins = [t.clone().requires_grad_() for t in (x, values, b, r)]
    weights = torch.randn(tokens, 40, dtype=torch.float64, device=device)
    y = block_linear(leaves[0], leaves[1], index, leaves[2], residual=leaves[3], activation=name)
    dense = DENSE[name](twins[0] @ index.dense(twins[1]).T + twins[2]) + twins[3]
    torch.testing.assert_close(y, dense, rtol=1e-12, atol=1e-12)
    for found, expected in zip(
        torch.autograd.grad((y * weights).sum(), leaves),
        torch.autograd.grad((dense * weights).sum(), twins),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_gradcheck_twice(device):
    """Numerical derivatives of the kernels themselves, first and second order; a fast projection of each."""
    index, values, _ = matrix(20, 24, 16, 16, torch.float64, device)
    x, b = (torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in ((2, 24), (20,)))
    inside = torch.where(index.values_of(torch.ones(20, 24, device=device)) > 0, values, 0).requires_grad_()

    def call(x, v, b):
        return block_linear(x, v, index, b, activation="silu")

    assert torch.autograd.gradcheck(call, (x, inside, b), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, inside, b), fast_mode=True)


def test_a_layer_learns(device):
    """Gradient steps through the kernels find a block-sparse matrix from its answers."""
    index, _, target = matrix(32, 32, 16, 16, device=device, kept=torch.eye(2, dtype=torch.bool))
    layer = BlockSparseLinear(index, bias=False)
    x = torch.randn(48, 32, device=device)
    wanted = x @ target.float().T
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    losses = []
    for _ in range(12):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert not layer.to_dense()[:16, 16:].any()
