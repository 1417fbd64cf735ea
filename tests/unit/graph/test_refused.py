"""What cannot be done is said, with the model untouched; and the small contracts of plans, partitions and bounds."""

import copy
import json

import pytest
import torch
from tests.unit.graph.nets import build
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.graph import Example, GraphRefused
from openwork.graph.axes import same
from openwork.graph.example import Tensorlike
from openwork.graph.plan import Plan
from openwork.graph.values import RULES, rule
from openwork.methods import magnitude, random, sequential_attention_pp, spode, taylor
from openwork.structure import Coupled, Coupling, partition

X = torch.zeros(2, 1, 8, 8)


def pruned(density=0.5, **bounds):
    model = ow.build_model("mlp").eval()
    return model, ow.prune(model, magnitude(density=density, structure=ow.channels(example=X, **bounds)))


def test_examples():
    for bad, message in (
        (None, "they need example="),
        ((), "must hold what the model is called with"),
        ([object()], "tensors and plain values"),
    ):
        with pytest.raises(ow.StructureError, match=message):
            ow.channels(example=bad)
    with pytest.raises(ow.StructureError, match="names need as many values"):
        Example((1,), ("a",), ())
    with pytest.raises(ow.StructureError, match="dtype must be a name of torch"):
        Tensorlike((2,), "float33")
    args, kwargs = Example.of({"x": torch.zeros(2, 3), "n": 4}).tensors(torch.device("cpu"), seed=1)
    assert args == ()
    assert kwargs["n"] == 4
    assert kwargs["x"].abs().sum() > 0


def test_structures():
    with pytest.raises(ow.StructureError, match="unknown kind of coupled units 'chanels'; did you mean 'channels'"):
        Coupling(Example.of(X), ("chanels",))
    with pytest.raises(ow.StructureError, match="at least one kind"):
        ow.channels(example=X, multiple=0)
    with pytest.raises(ow.StructureError, match="names no group of channels"):
        partition(ow.build_model("mlp"), ow.channels(example=X), ow.Select(include=("5.*",)))
    with pytest.raises(ow.StructureError, match="finds nothing to prune in"):
        partition(ow.build_model("mlp"), ow.heads(example=X), ow.Select())
    recipe = magnitude(structure=ow.channels(example=X, multiple=8))
    assert ow.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_data_dependent_control_flow():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    model = Branch().train()
    with pytest.raises(GraphRefused, match="torch.export cannot follow the forward pass"):
        ow.build_graph(model, torch.zeros(2, 4))
    assert model.training


def test_select():
    model = ow.build_model("mlp")
    names = list(partition(model, ow.channels(example=X), ow.Select())[0])
    assert len(names) == 2
    parts, coverage = partition(model, ow.channels(example=X), ow.Select(include=(names[0],)))
    assert list(parts) == names[:1]
    assert all(row.skipped for row in coverage if not row.units)
    with pytest.raises(ow.StructureError, match="finds nothing to prune"):
        partition(model, ow.channels(example=X), ow.Select(exclude=(names[1],)))  # it also reads the units of the first
    dict(model.named_parameters())[names[1]].requires_grad_(False)
    with pytest.raises(ow.StructureError, match="requires_grad is False"):
        partition(model, ow.channels(example=X), ow.Select())


def test_partition_laws():
    net, args, _ = build("depthwise and squeeze-excite")
    parts, _ = partition(net, ow.channels(example=args), ow.Select())
    params = dict(net.named_parameters())
    for part in parts.values():
        assert isinstance(part, Coupled)
        ones = {m: torch.ones_like(params[m]) for m in part.members}
        assert torch.equal(part.pool(ones).long(), part.cost)
        units = torch.rand(part.n_units)
        spread = part.spread(units)
        assert all(spread[m].shape == params[m].shape for m in part.members)
        side = part.side(True)
        assert set(side.members) == set(part.gated)
        values = {m: params[m].detach() for m in part.members}
        norm = sum(part.only([m]).pool(values, "norm").square() for m in part.members).sqrt()
        torch.testing.assert_close(part.pool(values, "norm"), norm)
        assert torch.equal(
            part.pool(values, "max"), torch.stack([part.only([m]).pool(values, "max") for m in part.members]).amax(0)
        )
        torch.testing.assert_close(part.pool(values, "mean") * part.cost, part.pool(values))
        with pytest.raises(ow.StructureError, match="units expected, got"):
            part.spread(units[:-1])
        with pytest.raises(ow.StructureError, match="no tensor of the group"):
            part.only(()).pool(values)


def test_compaction_needs_coupled_units():
    model = ow.build_model("mlp")
    result = ow.prune(model, magnitude(density=0.5))
    with pytest.raises(ow.StructureError, match="compaction removes whole coupled units"):
        ow.compact(model, result)


def test_compaction_of_another_model():
    model, result = pruned()
    with pytest.raises(ow.StructureError, match="compact the model that was pruned"):
        ow.compact(ow.build_model("mlp", hidden=(10,)), result)
    with pytest.raises(ow.VerificationFailed, match="does not compute what the pruned one does"):
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        ow.compact(model, result)


def test_an_empty_layer():
    model, result = pruned()
    name = next(iter(result.units))
    result.units[name][:] = False
    with pytest.raises(ow.StructureError, match="no layer can be empty"):
        ow.compact(model, result)


def test_a_size_in_the_code():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.b(torch.sigmoid(self.a(x)).view(-1, 12))

    model = Literal()
    before = copy.deepcopy(model.state_dict())
    result = ow.prune(model, random(density=0.5, structure=ow.channels(example=torch.zeros(2, 4))))
    shapes = {n: p.shape for n, p in model.named_parameters()}
    with pytest.raises(ow.StructureError, match="the small model does not run"):
        ow.compact(model, result)
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    assert before.keys() == model.state_dict().keys()


def test_verification():
    model, result = pruned()
    small = ow.compact(model, result)
    with pytest.raises(ow.StructureError, match="has no compaction plan"):
        ow.verify(model, model, X)
    with torch.no_grad():
        next(small.parameters()).add_(1.0)
    with pytest.raises(ow.VerificationFailed, match="the small model differs from the pruned one"):
        ow.verify(small, model, torch.randn(4, 1, 8, 8))


def test_plans():
    model, result = pruned()
    plan = ow.plan_compaction(model, result)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert "units stay" in plan.explain()
    assert "out_features" in plan.explain()
    good = plan.to_dict()
    with pytest.raises(ow.FileError, match="a compaction plan must have format"):
        Plan.from_dict({**good, "format": 2})
    with pytest.raises(ow.FileError, match="not a compaction plan"):
        Plan.from_dict({"format": 1})
    with pytest.raises(ow.FileError, match="must keep rising ranges inside"):
        Plan.from_dict({**good, "cuts": [["0.weight", 0, 4, [[2, 1]]]]})
    with pytest.raises(ow.StructureError, match="the plan cuts dimension"):
        plan.apply(ow.build_model("lenet"))
    other = plan.apply(model)
    with pytest.raises(ow.StructureError, match="before compaction"):
        plan.rewrite(other)


def test_saved_and_loaded_in_a_new_process(tmp_path):
    model, result = pruned()
    small = ow.compact(model, result)
    ow.save(small, result, tmp_path / "small")
    again, found = ow.load(tmp_path / "small")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.eval()(x), small(x))
    assert found.density == result.density
    assert ow.verify(again, model, x).max_error < 1e-6
    assert not list((tmp_path / "small").glob("*.p*t*"))


def test_multiples_and_floors():
    _, result = pruned(density=0.4, multiple=8)
    assert all(int(u.sum()) % 8 == 0 for u in result.units.values())
    model = ow.build_model("mlp")
    recipe = magnitude(density=0.05, structure=ow.channels(example=X, multiple=4, at_least=6), scope="global")
    result = ow.prune(model, recipe)
    assert all(int(u.sum()) >= 6 and int(u.sum()) % 4 == 0 for u in result.units.values())


def test_criteria_and_gates_work_unchanged():
    net, args, _ = build("residual")
    batch = [(args[0], torch.tensor([0, 1]))]
    structure = ow.channels(example=args)
    for recipe in (taylor(density=0.5, structure=structure), spode(density=0.5, structure=structure, steps=3)):
        model = copy.deepcopy(net)
        small = ow.compact(model, ow.prune(model, recipe, data=batch, loss=F.cross_entropy))
        assert ow.verify(small, model, args).max_error < 1e-5
    recipe = sequential_attention_pp(density=0.5, structure=structure, steps=60, where=ow.Select(min_units=2))
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.05)
    run = ow.attach(net, recipe, optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        (F.cross_entropy(net(args[0]), batch[0][1]) + run.penalty()).backward()
        optimizer.step()
    small = ow.compact(net.eval(), run.finish())
    assert ow.verify(small, net, args).max_error < 1e-5
    with pytest.raises(ow.RecipeError, match="lie in . coupled ones"):
        from openwork.methods import powerpropagation

        fresh = build("residual")[0]
        ow.attach(
            fresh, powerpropagation(density=0.5, structure=structure), torch.optim.SGD(fresh.parameters(), lr=0.1)
        )


def test_a_rule_of_the_user():
    @torch.library.custom_op("graphtest::scaled", mutates_args=())
    def scaled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * w

    @scaled.register_fake
    def _(x, w):
        return torch.empty_like(x)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w, self.b = nn.Linear(4, 6), nn.Parameter(torch.rand(6)), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(torch.ops.graphtest.scaled(self.a(x), self.w))

    graph = ow.build_graph(Scaled(), torch.zeros(2, 4))
    assert not graph.groups
    assert any("operation without a rule: graphtest.scaled" in row.reason for row in graph.frozen)

    @rule("graphtest.scaled")
    def same_last_axis(op, x, w):
        same(x.at(-1), w.at(0))
        return x

    try:
        assert [g.n_units for g in ow.build_graph(Scaled(), torch.zeros(2, 4)).groups] == [6]
    finally:
        RULES.pop("graphtest.scaled")


def test_the_attention_module_of_torch_stays_and_its_feed_forward_goes():
    layer = nn.TransformerEncoderLayer(12, 3, dim_feedforward=20, batch_first=True).eval()
    x = torch.randn(2, 5, 12)
    graph = ow.build_graph(layer, x)
    assert [g.n_units for g in graph.groups] == [20]
    assert any("computes its head width from embed_dim" in row.reason for row in graph.frozen)
    result = ow.prune(layer, magnitude(density=0.5, structure=ow.channels(example=x)))
    assert ow.verify(ow.compact(layer, result), layer, x).max_error < 1e-5
