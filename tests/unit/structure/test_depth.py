"""Whole residual blocks: found by trying, removed for good, equal to the masked model."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.graph import count_macs
from openwork.graph.blocks import residual_blocks
from openwork.graph.plan import Plan
from openwork.graph.skip import Skip, skip
from openwork.methods import magnitude, random, sequential_attention_pp, taylor

X = torch.zeros(1, 1, 8, 8)


class PreNorm(nn.Module):
    """A block as in transformers; ``wrap`` returns a tuple, ``post`` normalises after the sum."""

    def __init__(self, width, wrap=False, post=False):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.wrap, self.post = wrap, post

    def forward(self, x):
        out = (
            self.norm(x + self.down(F.gelu(self.up(x)))) if self.post else x + self.down(F.gelu(self.up(self.norm(x))))
        )
        return (out,) if self.wrap else out


class Stack(nn.Module):
    def __init__(self, *blocks, width=8):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(5, width), nn.ModuleList(blocks), nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x)


def test_blocks_are_found_by_trying():
    model = ow.build_model("resnet20", (1, 8, 8), 10).eval()
    blocks, reasons = residual_blocks(model, X)
    assert [b.path for b in blocks] == [
        "layer1.0",
        "layer1.1",
        "layer1.2",
        "layer2.1",
        "layer2.2",
        "layer3.1",
        "layer3.2",
    ]
    assert "does not pass its input on" in reasons["layer1.0.conv1"]
    shared = PreNorm(8)
    mixed = Stack(PreNorm(8), shared, shared, PreNorm(8, post=True), PreNorm(8, wrap=True))
    blocks, reasons = residual_blocks(mixed, torch.zeros(2, 5))
    assert [(b.path, b.wrap) for b in blocks] == [("blocks.0", False), ("blocks.4", True)]
    assert reasons["blocks.1"] == "runs more than once in a forward pass"
    assert reasons["blocks.3"] == "does not pass its input on when its parameters are zero"
    tied = Stack(PreNorm(8), PreNorm(8))
    tied.blocks[1].up.weight = tied.blocks[0].up.weight
    assert residual_blocks(tied, torch.zeros(2, 5))[1]["blocks.0"] == "shares parameters with another module"


@pytest.mark.parametrize("wrap", [False, True])
def test_removed_blocks_are_gone_and_nothing_else_changes(wrap, tmp_path):
    torch.manual_seed(0)
    model, x = Stack(*(PreNorm(8, wrap) for _ in range(4))).eval(), torch.randn(6, 5)
    result = ow.prune(model, magnitude(density=0.5, structure=ow.layers(example=x)))
    small = ow.compact(model, result)
    assert torch.equal(small(x), model(x))
    assert sum(isinstance(m, Skip) for m in small.modules()) == 2
    assert sum(p.numel() for p in small.parameters()) == result.counts.total_numel - 2 * (8 * 16 * 2 + 16 + 8 + 16)
    assert count_macs(small, x) == 6 * (5 * 8 + 2 * 2 * 8 * 16 + 8 * 3)
    assert ow.verify(small, model, x).max_error == 0
    ow.save(small, result, tmp_path / "s")
    again, _ = ow.load(tmp_path / "s", Stack(*(PreNorm(8, wrap) for _ in range(4))).eval())
    assert torch.equal(again(x), small(x))
    gone = int((~result.units["layers"]).nonzero()[0])
    assert small.blocks[gone].post is False  # what a model reads from its blocks stays readable
    assert (
        Plan.from_dict(json.loads(json.dumps(small.openwork_compaction))).removed
        == Plan.from_dict(small.openwork_compaction).removed
    )
    assert f"skip blocks.{gone}" in ow.plan_compaction(model, result).explain()


def test_every_criterion_and_gates():
    torch.manual_seed(0)
    x, y = torch.randn(12, 5), torch.arange(12) % 3
    for recipe in (taylor(density=0.5, structure=ow.layers(example=x), batches=1), random(0.5, ow.layers(example=x))):
        model = Stack(*(PreNorm(8) for _ in range(4))).eval()
        result = ow.prune(model, recipe, data=[(x, y)], loss=F.cross_entropy)
        assert int(result.units["layers"].sum()) == 2
        assert torch.equal(ow.compact(model, result)(x), model(x))
    model = Stack(*(PreNorm(8) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recipe = sequential_attention_pp(density=0.5, structure=ow.layers(example=x), steps=60, min_blocks=1)
    run = ow.attach(model, recipe, optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    result = run.finish()
    assert int(result.units["layers"].sum()) == 2
    assert torch.allclose(ow.compact(model.eval(), result)(x), model(x), atol=1e-6)


def test_selection_and_budget():
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    model = Stack(*(PreNorm(8) for _ in range(4))).eval()
    where = ow.Select(exclude=("blocks.0.*",))
    result = ow.prune(model, magnitude(structure=ow.layers(example=x), where=where), target={"macs": 0.53})
    assert len(result.units["layers"]) == 3
    small = ow.compact(model, result)
    assert isinstance(small.blocks[0], PreNorm)
    assert torch.equal(small(x), model(x))
    assert result.manifest["budget"]["reached"] == count_macs(small, x)
    rows = {t["name"]: t["skipped"] for t in result.tensors}
    assert rows["blocks.0.up.weight"] == "excluded"
    assert rows["head.weight"] == "in no residual block"


def test_what_is_refused():
    x = torch.zeros(2, 5)
    with pytest.raises(ow.StructureError, match="needs at_least and multiple of at least 1"):
        ow.layers(example=x, at_least=0)
    with pytest.raises(ow.StructureError, match="finds nothing to prune in"):
        ow.prune(Stack(), magnitude(structure=ow.layers(example=x)))
    with pytest.raises(ow.StructureError, match="meta tensors have no values"):
        residual_blocks(Stack(PreNorm(8)).to("meta"), x)
    with pytest.raises(ow.StructureError, match="the plan removes this module, but the model has none"):
        skip(Stack(), "blocks.0", False)
    model = Stack(PreNorm(8), PreNorm(8)).eval()
    result = ow.prune(model, magnitude(density=0.5, structure=ow.layers(example=x)))
    with pytest.raises(ow.StructureError, match="the result has 2 blocks, the model 1"):
        ow.compact(Stack(PreNorm(8)).eval(), result)
    with torch.no_grad():
        for block in model.blocks:
            block.down.bias.fill_(1.0)
    with pytest.raises(ow.VerificationFailed, match="without its blocks does not compute what the pruned one does"):
        ow.compact(model, result)
    assert ow.Recipe.from_dict(result.recipe.to_dict()) == result.recipe
