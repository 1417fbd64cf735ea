"""BatchNorm over several processes: values and gradients of one process that sees the whole batch."""

import pytest
import torch
from tests.unit.processes import on_ranks
from torch import nn

from openwork.core.distributed import averaged
from openwork.core.whole_batch import whole_batch


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3, affine=False),
        nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5, eps=0.1, track_running_stats=False), nn.Linear(5, 1),
    ).double()  # fmt: skip


def gradients(rank, world, training):
    model = net().train(training)
    before = {n: b.clone() for n, b in model.named_buffers()}
    x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()[rank::world]
    with whole_batch(model):
        out = model(x)
        grads = torch.autograd.grad(out.square().mean(), list(model.parameters()))
    averaged(grads)
    assert not any("forward" in vars(m) for m in model.modules())
    if world > 1:
        assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    return {"out": out.detach(), "grads": list(grads)}


def work(rank, world):
    return [gradients(rank, world, training) for training in (True, False)]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_the_parts_of_a_batch_are_normalised_together(world, tmp_path):
    whole = work(0, 1)
    for rank, found in enumerate(on_ranks(world, tmp_path, work)):
        for mine, alone in zip(found, whole, strict=True):
            torch.testing.assert_close(mine["out"], alone["out"][rank::world])
            torch.testing.assert_close(mine["grads"], alone["grads"])


def test_one_process_keeps_its_own_norms():
    model = net()
    with whole_batch(model):
        assert not any("forward" in vars(m) for m in model.modules())
