"""Where packed weights lie: side by side, on large pages where there are some, for as long as anybody reads them."""

import gc
import mmap
import threading

import pytest
import torch

from openwork.kernels import ground
from openwork.kernels.ground import CHUNK, LINE, PAGE, placed


@pytest.fixture(params=["large pages", "another system", "no large pages"])
def system(request, monkeypatch):
    if request.param == "another system":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    if request.param == "no large pages":

        class Small(mmap.mmap):
            def madvise(self, *args):
                raise OSError(22, "Invalid argument")

        monkeypatch.setattr(ground.mmap, "mmap", Small)
    monkeypatch.setattr(ground, "_shared", [])
    return request.param


def tensors(values=1000):
    torch.manual_seed(0)
    return [
        torch.randn(values, 3), torch.randint(100, (7,), dtype=torch.int32), torch.zeros(0, 4),
        torch.randint(9, (values,)).to(torch.uint16), torch.randn(5, 2).bfloat16(), torch.ones(3, dtype=torch.int8),
    ]  # fmt: skip


def test_copies_are_equal_and_lie_side_by_side(system):
    given = tensors()
    copies, room = placed(given)
    first = torch.frombuffer(room, dtype=torch.uint8).data_ptr()
    for one, other in zip(given, copies, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        assert other.dtype == one.dtype
        assert other._base is None
        assert other.is_contiguous()
        if other.numel():
            assert first <= other.data_ptr() < first + len(room)
            assert other.data_ptr() % LINE == 0
            assert other.untyped_storage().data_ptr() == other.data_ptr()
    copies[0].zero_()
    assert given[0].any()


def test_small_layers_share_a_chunk_and_large_ones_have_their_own(system):
    def at(room):
        return torch.frombuffer(room, dtype=torch.uint8).data_ptr()

    (_, one), (_, two) = placed(tensors()), placed(tensors())
    assert at(two) == at(one) + len(one)
    large = placed([torch.ones(CHUNK // 4)])[1]
    assert len(large) == CHUNK
    (_, three) = placed(tensors())
    assert at(three) == at(two) + len(two)
    if system == "large pages" and hasattr(mmap, "MADV_HUGEPAGE"):
        assert at(one) % PAGE == 0
        assert at(large) % PAGE == 0
    rooms = [placed([torch.ones(CHUNK // 9)])[1] for _ in range(5)]  # more than a chunk
    places = sorted((at(r), at(r) + len(r)) for r in [one, two, three, *rooms])
    assert all(end <= begin for (_, end), (begin, _) in zip(places[:-1], places[1:], strict=True))


def test_memory_goes_with_its_last_reader(system):
    copies, room = placed([torch.ones(CHUNK // 4)])
    owner = room.obj
    del room
    gc.collect()
    assert copies[0].sum() == CHUNK // 4
    del copies
    gc.collect()
    assert not any(isinstance(o, memoryview) for o in gc.get_referrers(owner))


def test_many_threads_take_different_places(system):
    found = []

    def take(value):
        found.extend((value, placed([torch.full((1000,), value)])[0][0]) for _ in range(50))

    threads = [threading.Thread(target=take, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert all((tensor == value).all() for value, tensor in found)
