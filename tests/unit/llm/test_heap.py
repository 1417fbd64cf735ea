"""Memory given back to the system, and the peak of this program alone."""

import ctypes
import subprocess
import sys

import pytest
import torch

from openwork.llm.heap import resident

MIB = 2**20
NOW = "int(open('/proc/self/statm').read().split()[1]) * 4096"
HOLES = f"""
import ctypes, torch
from openwork.llm.heap import give_back
ctypes.CDLL(None).mallopt(-3, 4 * {MIB})  # below that size nothing is mapped by itself
pieces = [torch.ones({MIB} // 8, dtype=torch.float64) for _ in range(200)]
kept, full = pieces[::20], {NOW}
del pieces
give_back()
assert all(float(p.sum()) == {MIB} // 8 for p in kept)
print(full - {NOW})
"""
WITHOUT_HOLES = f"""
import torch
from contextlib import nullcontext
from openwork.llm.heap import at_once
torch.ones(5 * {MIB})  # 20 MiB freed: from here on glibc keeps what is smaller
with {{}}:
    pieces = [torch.ones({MIB} // 4, dtype=torch.float64) for _ in range(100)]
    kept, full = pieces[-1], {NOW}
    del pieces
    print(full - {NOW})
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is looked at through /proc")


def told(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_holes_in_the_heap_are_given_back():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library than glibc")
    assert told(HOLES) > 150 * MIB


def test_large_memory_goes_back_when_it_is_freed():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library than glibc")
    assert told(WITHOUT_HOLES.format("nullcontext()")) < 20 * MIB
    assert told(WITHOUT_HOLES.format("at_once()")) > 180 * MIB


def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    held = torch.ones(400 * MIB // 4)
    mine = resident()
    assert mine > 400 * MIB
    assert told("from openwork.llm.heap import resident; print(resident())") < mine - 200 * MIB
    del held
    assert resident() > mine - 10 * MIB
