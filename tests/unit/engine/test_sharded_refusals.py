"""What does not work on sharded weights says so before anything is touched; one rank is enough to see it."""

import json

import pytest
import torch
from tests.contract.cases import CASES
from tests.unit.engine.test_sharded import CASES as SHARDED
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn import functional as F

import openwork as ow
from openwork import methods
from openwork.adapters import save_sharded
from openwork.errors import DivergedError, OpenworkError, RecipeError, StructureError
from openwork.methods import gradual_magnitude, magnitude, powerpropagation, rigl, snip, spode, wanda


@pytest.fixture(autouse=True)
def group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def sharded(model=None, **options):
    return fully_shard(net() if model is None else model, **options)


DATA = [(torch.ones(4, 8), torch.arange(4))]
RECIPES = {
    "spode: MaskLoss measures whole weights, but the model's are sharded": spode(0.5, steps=2),
    "sparsegpt: InputGram measures whole weights, but": methods.sparsegpt(0.5),
    "sap: AdaptivePruning works on whole weights, but": methods.sap(0.5, rounds=1),
    r"powerpropagation: Power puts gates on whole weights, but they are sharded; prune before": powerpropagation(0.5),
    r"gradual_magnitude: Masking puts gates on whole weights, but": gradual_magnitude(0.5, masked="freeze"),
}


@pytest.mark.parametrize("words", RECIPES)
def test_methods_that_need_whole_weights(words):
    model, recipe = sharded(), RECIPES[words]
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RecipeError, match=words):
        if recipe.drive == "attach":
            ow.attach(model, recipe, optimizer)
        elif recipe.drive == "cycle":
            ow.cycle(model, recipe, lambda *_: None)
        else:
            ow.prune(model, recipe, DATA, F.cross_entropy)
    assert all(torch.equal(p.full_tensor(), before[n]) for n, p in model.named_parameters())
    assert not optimizer._optimizer_step_post_hooks


def test_swaps_in_groups_that_lie_anywhere():
    model = sharded(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 4)))
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    message = (
        "0.weight: MeanSwap cannot tell which of its 2 groups lie on this rank; prune before fully_shard, or leave"
    )
    with pytest.raises(RecipeError, match=message):
        ow.prune(model, methods.dsnot(0.5), [torch.randn(4, 4, 3, 3)])
    assert all(torch.equal(p.full_tensor(), before[n]) for n, p in model.named_parameters())
    rest = ow.Select(exclude=("0.weight",))
    assert ow.prune(model, methods.dsnot(0.5, where=rest), [torch.randn(4, 4, 3, 3)]).density == 0.5


def test_the_index_says_what_is_held():
    claimed = {m.name for m in methods.METHODS if "FSDP2" in m.ranks}
    assert claimed == {method for method, _ in SHARDED.values()}


@pytest.mark.parametrize("case", [c for c in CASES if "FSDP2" not in methods.find(c.name).ranks], ids=str)
def test_every_other_method_is_refused(case):
    model = sharded()
    before = {n: p.full_tensor().clone() for n, p in model.named_parameters()}
    structure = ow.channels(example=torch.ones(1, 8)) if case.coupled else case.structure
    given = {"structure": structure} if structure is not None else {}
    recipe = methods.get(case.name)(density=0.5, **{**case.options, **given})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((RecipeError, StructureError), match="whole.* sharded"):
        if recipe.drive == "attach":
            ow.attach(model, recipe, optimizer)
        elif recipe.drive == "cycle":
            ow.cycle(model, recipe, lambda *_: None, data=DATA, loss=F.cross_entropy)
        else:
            ow.prune(model, recipe, DATA, F.cross_entropy)
    assert all(torch.equal(p.full_tensor(), before[n]) for n, p in model.named_parameters())
    assert not optimizer._optimizer_step_post_hooks


def test_targets_and_coupled_structures():
    with pytest.raises(RecipeError, match=r"magnitude: a target \{'macs': 0.5\} needs whole weights, but they are sh"):
        ow.prune(sharded(), magnitude(structure=ow.channels(example=torch.ones(1, 8))), target={"macs": 0.5})
    with pytest.raises(
        StructureError, match=r"couples slices of several tensors and needs them whole, but 0.weight is"
    ):
        ow.prune(sharded(), magnitude(0.5, structure=ow.channels(example=torch.ones(1, 8))))


def test_units_that_would_be_cut():
    with pytest.raises(
        StructureError, match="0.weight: its 8 rows lie on 1 ranks, 8 on each, which would cut units of"
    ):
        ow.prune(sharded(), magnitude(structure=ow.NM(2, 4, dim=0)))


def test_tensors_cut_in_other_ways():
    mesh = init_device_mesh("cpu", (1,))
    model = net()
    for name, placement in (("0", Shard(1)), ("2", Shard(0))):
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [placement]))
    words = (
        r"0.weight: a sharded parameter must be cut by rows \(Shard\(0\)\) along one mesh dimension, got \(Shard\(dim=1"
    )
    with pytest.raises(StructureError, match=words):
        ow.prune(model, magnitude(0.5))
    assert ow.prune(model, magnitude(0.5, where=ow.Select(exclude=("0.weight",)))).density == 0.5


def test_repeated_over_one_mesh_dimension():
    model = sharded(mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("again", "rows")))
    assert any(isinstance(p, Replicate) for p in model[0].weight.placements)
    assert ow.prune(model, magnitude(0.25, scope="global")).masks.kept() == 24


def test_some_sharded_and_some_not():
    model = net()
    fully_shard(model[0])
    with pytest.raises(StructureError, match="2.weight: is whole on every rank while other targets are sharded; call"):
        ow.prune(model, magnitude(0.5))
    with pytest.raises(StructureError, match="2.weight: lies on another device mesh than 0.weight; prune each with"):
        model = net()
        fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
        fully_shard(model, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("again", "rows")))
        ow.prune(model, magnitude(0.5))


def test_fsdp1():
    # the real one wants an accelerator; it is told by its name, since its module is slow to import
    wrapped = type("FullyShardedDataParallel", (nn.Sequential,), {})(net())
    with pytest.raises(RecipeError, match=r"wrapped in FullyShardedDataParallel \(FSDP1\), which flattens its weights"):
        ow.prune(wrapped, magnitude(0.5))


def test_bad_numbers_are_named():
    model = sharded()
    model[0].weight.to_local().data[3, 3] = float("nan")
    with pytest.raises(DivergedError, match="0.weight: weights must be finite, got NaN or infinity"):
        ow.prune(model, magnitude(0.5))
    with pytest.raises(DivergedError, match="0.weight: no gradient reaches it, so its connections cannot be scored"):
        ow.prune(sharded(), snip(0.5), DATA, lambda out, y: (out * 0).sum())
    with pytest.raises(OpenworkError, match="the loss does not depend on the weights: it is detached"):
        ow.prune(sharded(), snip(0.5), DATA, lambda out, y: out.detach().sum())


def test_scoring_leaves_everything_as_it_was():
    model = sharded(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)))
    F.cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    grads = [p.grad for p in model.parameters()]
    ow.prune(model, snip(0.5, mode="train"), DATA, F.cross_entropy, dry_run=True)
    for name, value in model.state_dict().items():
        same = value == before[name]
        assert bool(same.full_tensor().all() if hasattr(same, "full_tensor") else same.all()), name
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


def test_after_an_evaluation_the_pieces_are_written_not_the_gathered_copies(tmp_path):
    def evaluated(model):
        with torch.no_grad():  # without a backward pass the root keeps what it gathered
            return model(DATA[0][0])

    model, plain = sharded(), net()
    for one in (model, plain):
        ow.prune(one, wanda(0.5), DATA)
    assert torch.equal(evaluated(model), evaluated(plain))
    model, plain = sharded(), net()
    evaluated(model)
    assert not any(hasattr(p, "full_tensor") for p in model.parameters())
    result, want = ow.prune(model, magnitude(0.5)), ow.prune(plain, magnitude(0.5))
    assert all(torch.equal(m.full_tensor(), want.masks[n]) for n, m in result.masks.items())
    assert torch.equal(evaluated(model), evaluated(plain))
    other = sharded()
    evaluated(other)
    with ow.hold(other, result.masks):
        pass
    other.reshard()
    assert torch.equal(evaluated(other), evaluated(plain))
    trained = sharded()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    evaluated(trained)
    run = ow.attach(trained, rigl(0.5, steps=2), optimizer)
    evaluated(trained)
    names = json.loads((save_sharded(tmp_path / "one", trained, optimizer, run) / "openwork.json").read_text())
    assert "0.weight" in str(names["state"]["dict"][2])


def test_a_state_of_one_process_goes_on_in_shards():
    def trained(model, run, optimizer, begin, end):
        for step in range(begin, end):
            torch.manual_seed(step)
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(16, 8)), torch.arange(16) % 4).backward()
            optimizer.step()

    recipe = rigl(0.5, steps=10, every=2)
    plain = net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    run = ow.attach(plain, recipe, optimizer)
    trained(plain, run, optimizer, 0, 5)
    state, weights = run.state_dict(), {n: p.detach().clone() for n, p in plain.named_parameters()}
    trained(plain, run, optimizer, 5, 10)
    other = net()
    other.load_state_dict(weights)
    sharded(other)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    again = ow.attach(other, recipe, optimizer)
    again.load_state_dict(state)
    with torch.no_grad():  # attaching has drawn masks of its own
        for name, p in other.named_parameters():
            p.to_local().copy_(weights[name])
    trained(other, again, optimizer, 5, 10)
    assert all(torch.equal(m, again.masks[n].full_tensor()) for n, m in run.masks.items())
