"""Forward, both gradients and decoding against float64, for every pair of sides and dtype."""

import importlib.util
from itertools import product
from pathlib import Path

import pytest
import torch

from openwork.gpu import ops

_spec = importlib.util.spec_from_file_location("layers", Path(__file__).parents[1] / "layers.py")
layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layers)
matrix, close = layers.matrix, layers.close

SIDES = (16, 32, 64, 128)
PAIRS = list(product(SIDES, SIDES))


def three(index, values, weight, x, grad, precision="ieee"):
    """The three products and their float64 answers with magnitudes."""
    tables, sizes = list(index.tables), (index.rows, index.cols)
    y, _ = ops.product(x, values, tables, *sizes, False, None, None, "none", False, precision)
    to_x, _ = ops.product(grad, values, tables, *sizes, True, None, None, "none", False, precision)
    to_values = ops.outer(grad, x, tables, *sizes, index.height, index.width, precision)
    a, g, w = x.double(), grad.double(), weight
    yield "forward", y, a @ w.T, a.abs() @ w.abs().T
    yield "grad_x", to_x, g @ w, g.abs() @ w.abs()
    yield "grad_values", to_values, index.values_of(g.T @ a), index.values_of(g.abs().T @ a.abs())


def check(index, values, weight, tokens):
    dtype, device = values.dtype, values.device
    x = torch.randn(tokens, index.cols, device=device).to(dtype)
    grad = torch.randn(tokens, index.rows, device=device).to(dtype)
    for _, found, expected, magnitude in three(index, values, weight, x, grad):
        close(found, expected, magnitude)


@pytest.mark.parametrize(("height", "width"), PAIRS)
@pytest.mark.parametrize("tokens", [37])
def test_every_pair_of_sides(height, width, tokens, device):
    check(*matrix(2 * height + 5, 2 * width + 9, height, width, device=device), tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 32), (32, 128)])
@pytest.mark.parametrize("tokens", [2, 33])
def test_every_dtype(dtype, height, width, tokens, device):
    check(*matrix(2 * height, 2 * width - 3, height, width, dtype, device), tokens)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 31, 32, 64, 65])
def test_every_number_of_tokens(tokens, device):
    check(*matrix(50, 90, 16, 32, device=device), tokens)


@pytest.mark.parametrize("tokens", [1, 20, 70])
def test_uneven_lines(tokens, device):
    """One full row, one full column, empty ones: lines are cut, and cut lines are added up."""
    kept = torch.zeros(9, 70, dtype=torch.bool)
    kept[3], kept[8, ::9] = True, True
    index, values, weight = matrix(9 * 16 - 1, 70 * 16 - 1, 16, 16, device=device, kept=kept)
    assert index.tables[5 if tokens <= 64 else 7].numel(), "a row must be cut for this test to mean something"
    check(index, values, weight, tokens)


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("tokens", [4, 40])
def test_all_blocks_and_none(fill, tokens, device):
    kept = torch.full((3, 4), fill)
    check(*matrix(40, 64, 16, 16, torch.bfloat16, device, kept=kept), tokens)


def test_long_products_are_cut_over_tokens(device):
    """Many tokens and few blocks: parts of the weight gradient are added up."""
    index, _, _ = matrix(32, 32, 16, 16, device=device, kept=torch.tensor([[True, False], [False, True]]))
    x, grad = (torch.randn(2050, 32, device=device) for _ in range(2))
    found = ops.outer(grad, x, list(index.tables), 32, 32, 16, 16, "ieee")
    expected = index.values_of(grad.double().T @ x.double())
    close(found, expected, index.values_of(grad.double().abs().T @ x.double().abs()))


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_precisions(precision, device):
    index, values, weight = matrix(64, 64, 32, 32, device=device)
    x, grad = (torch.randn(40, 64, device=device) for _ in range(2))
    allowed = 2.0**-9 if precision == "tf32" else 4e-6
    for _, found, expected, magnitude in three(index, values, weight, x, grad, precision):
        assert ((found.double() - expected).abs() <= allowed * magnitude + 1e-30).all()
