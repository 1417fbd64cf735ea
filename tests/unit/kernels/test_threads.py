"""Threads: one and two give the same, many callers at once do not disturb each other, a forked child computes."""

import os
import signal
import threading

import pytest
import torch
from tests.unit.kernels.making import block, conv, layouts, linear
from tests.unit.runtime.models import always, net

import openwork as ow
from openwork.kernels import native, ops
from openwork.kernels.native import team


@pytest.fixture(autouse=True, params=["torch's threads", "own threads"])
def two_threads(request, monkeypatch):
    """Two threads, torch's or the library's own, and no product too small for them."""
    monkeypatch.setattr(ops, "WORTH", 0)
    torch.set_num_threads(2)
    module = native()
    if module is not None:
        module.share_team(*(team() if request.param == "torch's threads" else (0, 0)))
    yield
    torch.set_num_threads(1)
    if module is not None:
        module.share_team(*team())


def products():
    """Calls of every kernel, some of one part, some of many."""
    calls = []
    for fmt, counts in ((block(600, 96, 32, 32), (1, 3, 9, 200)), (block(64, 96, 4, 1), (2, 40, 300))):
        for layout in layouts(fmt):
            inputs = [torch.randn(n, 96) for n in counts]
            calls += [lambda x=x, o=layout: linear(x, o, activation="silu") for x in inputs]
    for layout in layouts(block(200, 96, 32, 32, torch.bfloat16)):
        tokens = [torch.randn(n, 96).bfloat16() for n in (5, 33, 200)]
        calls += [lambda x=x, o=layout: linear(x, o, activation="silu") for x in tokens]
    for layout in layouts(block(80, 9 * 32, 16, 16, torch.bfloat16), 32):
        for last in (torch.channels_last, torch.contiguous_format):
            x = torch.randn(3, 32, 11, 19).bfloat16().contiguous(memory_format=last)
            calls.append(lambda x=x, o=layout: conv(x, o, None, None, "gelu", (3, 3), padding=(1, 1)))
    for size, batch, side in (((16, 8), 5, 9), ((4, 1), 1, 20), ((32, 32), 2, 1), ((1, 1), 3, 6)):
        for layout in layouts(block(80, 72, *size), 8):
            x = torch.randn(batch, 8, side, side)
            calls.append(lambda x=x, o=layout: conv(x, o, None, None, "relu", (3, 3), padding=(1, 1)))
        for layout in layouts(block(80, 8, *size), 8):
            x = torch.randn(batch, 8, side, side).contiguous(memory_format=torch.channels_last)
            calls.append(lambda x=x, o=layout: conv(x, o, None, None, "none", (1, 1)))
    return calls


def test_one_thread_and_two_give_the_same_bits(isa):
    for call in products():
        torch.set_num_threads(1)
        wanted = call()
        for count in (2, 5):
            torch.set_num_threads(count)
            assert torch.equal(call(), wanted) or isa == "python"


def test_many_callers_at_once():
    calls = products()
    wanted = [call() for call in calls]
    wrong, barrier = [], threading.Barrier(4)

    def work(seed):
        order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(seed)).tolist()
        barrier.wait()
        for _ in range(4):
            wrong.extend(i for i in order if not torch.equal(calls[i](), wanted[i]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_one_model_in_many_threads():
    packed = always(net(), ow.Block(4, 1), override={"skip": "onednn"})
    inputs = [torch.randn(n, 3, 8 + n, 9) for n in range(1, 6)]
    wanted = [packed(x) for x in inputs]
    found: dict[int, list[torch.Tensor]] = {}

    def work(which):
        found[which] = [packed(x) for x in inputs * 5]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 4
    for outputs in found.values():
        for y, z in zip(outputs, wanted * 5, strict=True):
            torch.testing.assert_close(y, z)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_computes(isa):
    """The threads of the pool are gone in the child; it makes its own."""
    if isa == "python":
        pytest.skip("torch's own threads do not survive a fork")
    call = products()[3]
    wanted = call().numpy()
    child = os.fork()
    if child == 0:  # comparing with torch would wait for torch's threads, which are gone
        signal.alarm(60)
        fine = all((call().numpy() == wanted).all() for _ in range(3))
        os._exit(0 if fine else 7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (call().numpy() == wanted).all()
