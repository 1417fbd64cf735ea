"""Functions on several gloo processes, forked from one server that has imported torch and openwork already."""

import os
import socket
import sys
from multiprocessing import forkserver
from unittest import mock

import torch
from torch import distributed
from torch import multiprocessing as torch_processes

IMPORTED = ["torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint", "openwork"]


def begin(rank, world, port, work, folder, args):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        torch.save(work(rank, world, *args), f"{folder}/{rank}.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def on_ranks(world, folder, work, *args):
    """What ``work(rank, world, *args)`` returned on every rank; files go to ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # the server knows no other path
        forkserver.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    torch_processes.start_processes(
        begin, (world, port, work, str(folder), args), nprocs=world, start_method="forkserver"
    )
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world)]
