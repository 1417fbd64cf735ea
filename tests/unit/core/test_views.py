"""Matrix views against indices written out by hand."""

import pytest
import torch

from openwork.core import views

VIEWS = [
    (views.linear_view, (3, 4), lambda o, i, k: (o, i)),
    (views.transposed_view, (4, 3), lambda o, i, k: (i, o)),
    (views.conv_view, (3, 4, 2), lambda o, i, k: (o, i, k)),
    (views.transposed_conv_view, (4, 3, 2), lambda o, i, k: (i, o, k)),
]


@pytest.mark.parametrize(("make", "shape", "index"), VIEWS)
def test_open_reads_out_by_positions_by_in(make, shape, index):
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    view = make(shape)
    opened = view.open(tensor)
    positions = shape[2] if len(shape) > 2 else 1
    assert opened.shape == (1, 3, 4 * positions)
    for o in range(3):
        for k in range(positions):
            for i in range(4):
                assert opened[0, o, k * 4 + i] == tensor[index(o, i, k)]
    assert view.inner == 4


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (views.conv_view, (3, 2, 5)),
        (views.conv_view, (3, 2, 3, 5)),
        (views.conv_view, (3, 2, 2, 3, 5)),
        (views.transposed_conv_view, (3, 2, 3, 5)),
        (views.stacked_view, (3, 2, 5)),
        (views.linear_view, (3, 2)),
        (views.transposed_view, (3, 2)),
    ],
)
def test_close_undoes_open(make, shape):
    tensor = torch.randn(shape)
    view = make(shape)
    assert torch.equal(view.close(view.open(tensor)), tensor)
    assert view.close(view.open(tensor)).shape == shape


def test_kernel_view_puts_positions_innermost():
    shape = (3, 4, 2, 2)
    tensor = torch.randn(shape)
    view = views.kernel_view(views.conv_view(shape))
    assert torch.equal(view.open(tensor)[0], tensor.reshape(3, 16))
    assert torch.equal(view.close(view.open(tensor)), tensor)
    assert view.inner == 4
    up = views.kernel_view(views.transposed_conv_view(shape))
    assert torch.equal(up.open(tensor)[0], tensor.transpose(0, 1).reshape(4, 12))
