"""Scores in pieces on several processes: the choice of one process, little sent, errors on every rank."""

import socket

import pytest
import torch
from torch import distributed, multiprocessing

from openwork.core.select import keep_top
from openwork.core.select_sharded import Traffic, keep_top_sharded
from openwork.errors import OpenworkError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)


def tensors(dtype, seed=0):
    """Many ties, both zeros, infinities; one tensor shorter than the number of ranks."""
    rng = torch.Generator().manual_seed(seed)
    one = torch.randn(501, generator=rng).mul(3).round()
    one[:4] = torch.tensor([0.0, -0.0, float("inf"), float("-inf")])
    many = [one, torch.randn(1000, generator=rng), torch.tensor([0.5, -0.0]), torch.randn(77, generator=rng)]
    return [t.nan_to_num(posinf=9, neginf=-9).to(dtype) if dtype == torch.int64 else t.to(dtype) for t in many]


def cut(tensor, rank, world):
    """Uneven pieces, as a sharded tensor has them: full ones first."""
    size = -(-len(tensor) // world)
    return tensor[rank * size : (rank + 1) * size]


def whole(dtype, keep):
    parts = tensors(dtype)
    return keep_top(torch.cat(parts), keep).split([len(p) for p in parts])


def every(world, rank):
    """What this rank finds for every dtype and count."""
    found = {}
    for dtype in DTYPES:
        for keep in (0, 1, 7, 300, 790, 1579, 1580):
            pieces = [cut(t, rank, world) for t in tensors(dtype)]
            traffic = Traffic()
            found[dtype, keep] = (keep_top_sharded(pieces, keep, traffic=traffic), traffic)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [0, 1, 7, 300, 790, 1579, 1580])
def test_one_process(dtype, keep):
    for mine, want in zip(keep_top_sharded(tensors(dtype), keep), whole(dtype, keep), strict=True):
        assert torch.equal(mine, want)


def worker(rank, world, port, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = every(world, rank)
    pieces = [cut(t, rank, world) for t in tensors(torch.float32)]
    told = []
    for change, keep in ((lambda p: p.fill_(float("nan")), 5), (lambda p: p, 10_000)):
        if rank == world - 1:
            change(pieces[0])
        try:
            keep_top_sharded(pieces, keep)
        except OpenworkError as problem:
            told.append(str(problem))
        pieces = [cut(t, rank, world) for t in tensors(torch.float32)]
    torch.save((found, told), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_choose_what_one_does(world, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, args=(world, port, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=False) for r in range(world)]
    for dtype, keep in ranks[0][0]:
        for i, want in enumerate(whole(dtype, keep)):
            assert torch.equal(torch.cat([r[0][dtype, keep][0][i] for r in ranks]), want), (dtype, keep, i)
        assert all(r[0][dtype, keep][1].bytes < 200_000 for r in ranks)
    for _, told in ranks:
        assert told[0] == f"keep_top_sharded: scores must not be NaN, got some on 1 of {world} ranks"
        assert told[1] == "keep_top_sharded: keep must be between 0 and the 1580 units, got 10000"


def test_refusals():
    with pytest.raises(
        OpenworkError, match="keep_top_sharded: pieces must be one-dimensional and of one dtype on every"
    ):
        keep_top_sharded([torch.ones(2), torch.ones(2).double()], 1)
    with pytest.raises(OpenworkError, match="keep_top_sharded: scores must not be NaN, got some on 1 of 1 ranks"):
        keep_top_sharded([torch.tensor([1.0, float("nan")])], 1)
    with pytest.raises(OpenworkError, match="keep_top_sharded: keep must be between 0 and the 2 units, got 3"):
        keep_top_sharded([torch.ones(2)], 3)
    assert keep_top_sharded([], 0) == []
