"""Strides, sizes and values that break careless kernels."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from openwork.errors import KernelError
from openwork.gpu import block_linear, launch

_spec = importlib.util.spec_from_file_location("layers", Path(__file__).parents[1] / "layers.py")
layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layers)
matrix, close = layers.matrix, layers.close


def agrees(index, values, weight, x, **more):
    found = block_linear(x, values, index, **more)
    expected = x.double() @ weight.T
    close(found, expected, x.double().abs() @ weight.abs().T)
    assert found.is_contiguous()


@pytest.mark.parametrize("tokens", [3, 20])
def test_strides(tokens, device):
    index, values, weight = matrix(40, 60, 16, 32, device=device)
    agrees(index, values, weight, torch.randn(tokens, 100, device=device)[:, 7:67])
    agrees(index, values, weight, torch.randn(2 * tokens, 60, device=device)[::2])
    agrees(index, values, weight, torch.randn(60, tokens, device=device).T)
    agrees(index, values, weight, torch.randn(1, 60, device=device).expand(tokens, 60))
    agrees(index, values, weight, torch.randn(60, 1, device=device)[:, 0].expand(2, tokens, 60))
    agrees(index, values.transpose(1, 2).contiguous().transpose(1, 2), weight, torch.randn(tokens, 60, device=device))


def test_strided_gradient_and_residual(device):
    index, values, weight = matrix(40, 60, 16, 32, device=device)
    x = torch.randn(20, 60, device=device, requires_grad=True)
    residual = torch.randn(40, 20, device=device).T
    y = block_linear(x, values, index, residual=residual)
    close(
        y.detach(), x.detach().double() @ weight.T + residual.double(), 1 + x.detach().double().abs() @ weight.abs().T
    )
    y.sum().backward()  # the gradient is one number, expanded
    torch.testing.assert_close(x.grad, weight.sum(0).float().expand(20, 60), rtol=1e-4, atol=1e-5)


def test_no_tokens(device):
    index, values, _ = matrix(40, 60, 16, 32, device=device)
    x, v = torch.zeros(2, 0, 60, device=device, requires_grad=True), values.requires_grad_()
    y = block_linear(x, v, index, activation="relu")
    assert y.shape == (2, 0, 40)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not v.grad.any()


def test_more_than_two_to_the_31_numbers_apart(device):
    """Rows of x lie 2**30 numbers apart; the pages between them are never touched."""
    index, values, weight = matrix(32, 32, 16, 16, torch.float16, device, kept=torch.ones(2, 2, dtype=torch.bool))
    storage = torch.empty(2**31 + 2**30 + 64, dtype=torch.float16, device=device)
    for tokens in (4, 6):
        x = storage.as_strided((tokens, 32), (2**31 // 3 if tokens == 4 else 2**31 // 5 + 8, 1))
        x.copy_(torch.randn(tokens, 32))
        agrees(index, values, weight, x)


def test_values_beyond_two_to_the_31(device):
    """A table that points at the last of 2**31 / 128**2 + 2 blocks."""
    count = 2**31 // 128**2 + 2
    values = torch.empty(count, 128, 128, dtype=torch.float16, device=device)
    index, own, weight = matrix(128, 128, 128, 128, torch.float16, device, kept=torch.ones(1, 1, dtype=torch.bool))
    values[-1] = own[0]
    tables = list(index.tables)
    tables[3] = torch.full_like(tables[3], count - 1)
    for tokens in (2, 6):
        grad = torch.randn(tokens, 128, device=device).half()
        found, _ = launch.product(grad, values, tables, 128, 128, True, None, None, "none", False, "ieee")
        close(found, grad.double() @ weight, grad.double().abs() @ weight.abs())


def test_too_many_tokens(device):
    index, values, _ = matrix(16, 16, 16, 16, device=device)
    with pytest.raises(KernelError, match=r"x must have at most 2147482624 tokens, got 2147483648; pass it in parts"):
        launch.product(torch.zeros(1, 16, device=device).expand(2**31, 16), values, index.tables, 16, 16, False, None,
                       None, "none", False, "ieee")  # fmt: skip


@pytest.mark.parametrize("tokens", [2, 20])
def test_not_a_number_stays_where_it_is_read(tokens, device):
    kept = torch.tensor([[True, False], [False, True]])
    index, values, _ = matrix(32, 32, 16, 16, device=device, kept=kept)
    x = torch.randn(tokens, 32, device=device)
    x[1, 20] = math.nan
    y = block_linear(x, values, index, activation="relu")
    assert torch.isfinite(y[:, :16]).all()
    assert y[1, 16:].isnan().all()
    assert torch.isfinite(y[0]).all()


@pytest.mark.parametrize("tokens", [2, 20])
def test_what_lies_beyond_the_edge_of_the_matrix_is_not_used(tokens, device):
    index, values, weight = matrix(20, 20, 16, 16, device=device, kept=torch.ones(2, 2, dtype=torch.bool))
    x = torch.randn(tokens, 20, device=device)
    values[:, :, :] = torch.where(index.values_of(torch.ones(20, 20, device=device)) > 0, values, math.nan)
    agrees(index, values, weight, x)
    x.requires_grad_()
    block_linear(x, values, index).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).float().expand(tokens, 20), rtol=1e-4, atol=1e-5)


def test_results_do_not_depend_on_the_run(device):
    index, values, _ = matrix(32, 1120, 16, 16, device=device, kept=torch.ones(2, 70, dtype=torch.bool))
    assert index.tables[5].numel()
    x = torch.randn(3, 1120, device=device)
    assert torch.equal(block_linear(x, values, index), block_linear(x, values, index))
