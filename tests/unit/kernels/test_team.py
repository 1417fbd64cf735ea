"""Whose threads the kernels run on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openwork.kernels import native
from openwork.kernels.native import team


def test_the_team_is_torchs_own(monkeypatch):
    """Kernels run on the threads of the OpenMP runtime that torch was linked with, and on their own without one."""
    uses = "backend: OpenMP" in torch.__config__.parallel_info()
    assert all(team()) == (uses and hasattr(os, "RTLD_NOLOAD"))
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    assert team() == (0, 0)
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "ATen parallel backend: native thread pool")
    assert team() == (0, 0)


SCRIPT = """
import sys
from pathlib import Path
import torch
from openwork.formats import choose
from openwork.kernels import native, ops
from openwork.runtime.layers import PackedLinear
from openwork.structure import Block

ops.WORTH = 0
torch.set_num_threads(2)
torch.randn(300, 300) @ torch.randn(300, 300)
weight = torch.randn(256, 128)
layer = PackedLinear(choose(Block(32, 32)).pack(weight, weight != 0), None, "block")
if sys.argv[1] == "own":
    native().share_team(0, 0)
before = len(list(Path("/proc/self/task").iterdir()))
layer(torch.randn(200, 128))
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_is_started_where_torchs_are_there():
    if native() is None or team() == (0, 0):
        pytest.skip("needs the kernels and OpenMP")
    for whose, more in (("torch's", 0), ("own", 1)):
        run = subprocess.run([sys.executable, "-c", SCRIPT, whose], capture_output=True, text=True, check=True)
        assert int(run.stdout) == more
