"""Checkpoints of FSDP2 runs: saved by two ranks, gone on by four, by two again and by one, with equal ends."""

import json

import pytest
import torch
from tests.unit.engine.test_sharded import adamw, built, shares, train, whole
from tests.unit.processes import on_ranks
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.adapters import gathered, load_sharded, save_sharded
from openwork.errors import FileError, OpenworkError, RecipeError
from openwork.methods import gradual_magnitude, rigl

RECIPES = {"rigl": rigl(0.3, steps=12, every=2), "gradual": gradual_magnitude(0.3, end=10, every=2)}


def part(rank, world, name, folder, begin, end):
    """Train from one step to another, out of the checkpoint of the earlier ranks and into one of its own."""
    model, data = built(world), shares(rank, world)
    optimizer = adamw(model)
    run = ow.attach(model, RECIPES[name], optimizer)
    if begin:
        load_sharded(folder / str(begin), model, optimizer, run)
        assert run.step == begin
    train(model, optimizer, data, end, begin)
    save_sharded(folder / str(end), model, optimizer, run)
    save_sharded(folder / str(end), model, optimizer, run)  # over its own
    found = {"weights": {n: whole(p.detach()) for n, p in model.named_parameters()}}
    if end == 12:
        result = gathered(run.finish())
        found["masks"] = dict(result.masks)
        plain = built(1)
        plain.load_state_dict(found["weights"])
        if rank == 0:
            ow.save(plain, result, folder / f"done {world}")
    return found


def parts(rank, world, folder, begin, end):
    return {name: part(rank, world, name, folder / name, begin, end) for name in RECIPES}


@pytest.mark.slow
def test_two_ranks_then_four_then_two_end_like_one(tmp_path):
    for name in RECIPES:
        (tmp_path / name).mkdir()
        (tmp_path / "alone" / name).mkdir(parents=True)
    want = parts(0, 1, tmp_path / "alone", 0, 12)
    for world, begin, end in ((2, 0, 3), (4, 3, 7), (2, 7, 12)):
        found = on_ranks(world, tmp_path, parts, tmp_path, begin, end)
    again = parts(0, 1, tmp_path, 7, 12)  # four ranks wrote it, one goes on without sharding
    for name in RECIPES:
        _, result = ow.load(tmp_path / name / "done 2", built(1))
        for tensor, mask in want[name]["masks"].items():
            for one in (found[0][name], found[1][name], again[name]):
                assert torch.equal(one["masks"][tensor], mask), (name, tensor)
            assert torch.equal(result.masks[tensor], mask)
        for tensor, weight in want[name]["weights"].items():
            torch.testing.assert_close(found[0][name]["weights"][tensor], weight, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(again[name]["weights"][tensor], weight, rtol=1e-6, atol=1e-9)


def small(recipe=None, width=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.Linear(width, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, ow.attach(model, recipe or rigl(0.5, steps=10), optimizer)


def step(model, optimizer, run):
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(16, 8)), torch.arange(16) % 4).backward()
    optimizer.step()


def test_damaged_and_foreign_checkpoints_change_nothing(tmp_path):
    made = small()
    step(*made)
    folder = save_sharded(tmp_path / "one", *made)
    assert not [f for f in folder.rglob("*") if f.suffix not in (".json", ".safetensors")]
    index, shard = folder / "openwork.json", next(folder.glob("*.safetensors"))
    text, content = index.read_text(), shard.read_bytes()
    fresh = small()
    before = {n: t.clone() for n, t in fresh[0].state_dict().items()}
    data = json.loads(text)
    cases = {
        "no checkpoint of save_sharded, openwork.json cannot be read": ("{", content),
        r"is no checkpoint of save_sharded \(openwork.json has another format\)": ("{}", content),
        r"bytes instead of \d+; the checkpoint is damaged": (text, content[:-1]),
        r"could not be read \(SafetensorError": (text, b"x" * len(content)),
        r"openwork.json: damaged \(KeyError": (json.dumps({**data, "state": {"dict": []}}), content),
    }
    for words, (said, held) in cases.items():
        index.write_text(said)
        shard.write_bytes(held)
        with pytest.raises(FileError, match=words):
            load_sharded(folder, *fresh)
    index.write_text(text)
    shard.write_bytes(content)
    with pytest.raises(FileError, match="is of another model, model/0.bias is missing in one of them or has another"):
        load_sharded(folder, *small(width=7))
    with pytest.raises(RecipeError, match="gradual_magnitude: the saved state belongs to another recipe"):
        load_sharded(folder, *small(gradual_magnitude(0.5, end=10)))
    other = small()
    other[1].add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(
        FileError, match=r"its optimiser has groups of \[6\] parameters, this one of \[6, 1\]; build it"
    ):
        load_sharded(folder, *other)
    assert all(torch.equal(t, before[n]) for n, t in fresh[0].state_dict().items())
    load_sharded(folder, *fresh)
    assert all(torch.equal(t, made[0].state_dict()[n]) for n, t in fresh[0].state_dict().items())


def test_what_cannot_be_written(tmp_path, monkeypatch):
    made = small()
    step(*made)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileError, match="is not empty and holds no openwork.json, so it will not be overwritten"):
        save_sharded(tmp_path / "mine", *made)
    folder = save_sharded(tmp_path / "one", *made)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    from torch.distributed.checkpoint import filesystem

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem.os, "fsync", full)
        step(*made)
        with pytest.raises(
            FileError, match=r"one: could not be written .*No space left on device.*; nothing was changed"
        ):
            save_sharded(folder, *made)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["mine", "one"]
    from torch.distributed import checkpoint

    monkeypatch.delattr(checkpoint, "HuggingFaceStorageWriter")
    with pytest.raises(OpenworkError, match="sharded checkpoints need torch 2.8 or later, got"):
        save_sharded(folder, *made)
