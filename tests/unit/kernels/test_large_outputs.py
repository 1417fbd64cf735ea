"""Outputs and inputs that the caches do not hold: the same numbers as of a few tokens at a time."""

from itertools import cycle

import pytest
import torch
from tests.unit.kernels.making import block, close, layouts, linear

from openwork.formats import Csr
from openwork.kernels.native import native
from openwork.runtime import PackedLinear

TOKENS, INPUTS = 1027, 288  # 4,112 outputs of them are 17 MB, and the inputs more than a second cache


def few_at_a_time(call, x, residual):
    pieces = zip(x.split(400), [None] * 9 if residual is None else residual.split(400), strict=False)
    return torch.cat([call(part, more) for part, more in pieces])


@pytest.mark.parametrize(("outputs", "threads"), [(4112, 1), (4112, 2), (4100, 1)])  # whole lines of the cache, and not
def test_large_outputs_are_those_of_small_ones(isa, outputs, threads):
    mask = torch.rand(outputs, INPUTS) < 0.1
    made = [block(outputs, INPUTS, 32, 32), block(outputs, INPUTS, 16, 16), block(outputs, INPUTS, 4, 1)]
    made.append(Csr.pack(torch.randn(outputs, INPUTS) * mask, mask))
    wide = torch.randn(TOKENS, INPUTS + 16)
    residual, bias = torch.randn(TOKENS, outputs), torch.randn(outputs)
    ends = cycle(
        [("none", wide[:, :INPUTS], None), ("relu", wide[:, 16:], residual), ("gelu", wide[:, 8:-8], residual)]
    )
    torch.set_num_threads(threads)
    for fmt in made:
        for layout in layouts(fmt):
            activation, x, more = next(ends)

            def call(x, more, layout=layout, activation=activation):
                return linear(x, layout, bias, more, activation)

            close(call(x, more), few_at_a_time(call, x, more).double())


@pytest.mark.skipif(native() is None or not native().dots(), reason="no dot products of int8 here")
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_large_outputs_of_rounded_tokens(activation):
    layer = PackedLinear(block(4112, INPUTS, 32, 32, torch.int8, by_row=True), torch.randn(4112), "int8", activation)
    x, residual = torch.randn(TOKENS, INPUTS), torch.randn(TOKENS, 4112)
    for more in (None, residual):
        torch.testing.assert_close(layer(x, more), few_at_a_time(layer, x, more), rtol=0, atol=0)


@pytest.mark.parametrize("inputs", [288, 1024, 2048, 4096])
def test_many_inputs_are_read_in_any_order(isa, inputs):
    fmt = block(70, inputs, 32, 32, density=0.2)
    x = torch.randn(600, inputs)
    for layout in layouts(fmt):
        found = linear(x, layout)
        close(found, x.double() @ fmt.unpack().double().T)
