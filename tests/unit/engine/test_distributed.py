"""DDP: two and four processes that see parts of every batch choose the masks of one process that sees all of it."""

import pytest
import torch
from tests.contract.cases import CASES
from tests.unit.processes import on_ranks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import openwork as ow
from openwork import methods
from openwork.errors import RecipeError

pytestmark = pytest.mark.slow

STEPS = 32
OPTIONS = {
    "gradual_magnitude": {"begin": 2, "end": 14, "every": 4},
    "spode": {"steps": 3},
    "spode_iterative": {"steps": 2, "rounds": 2},
    "random_search": {"draws": 3},
    "woodfisher": {"samples": 16, "block": 100},
    "sequential_attention_pp": {"min_blocks": 2, "structure": ow.Block(2, 2)},
    "synflow": {"rounds": 3},
}
NAMES = [m.name for m in methods.METHODS if "DDP" in m.ranks]


def options(case):
    found = {**case.options, **OPTIONS.get(case.name, {})}
    return {k: STEPS if k == "steps" and methods.find(case.name).drive == "attach" else v for k, v in found.items()}


def net():
    """With a norm; in evaluation mode, since training sees the statistics of a rank. SpODE scores in train mode."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten()
    return nn.Sequential(*first, nn.Linear(54, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()


def batches(rank=0, world=1):
    rng = torch.Generator().manual_seed(1)
    data = [(torch.randn(16, 1, 5, 5, generator=rng).double(), torch.arange(16) % 4) for _ in range(4)]
    return [(x[rank::world], y[rank::world]) for x, y in data]


def train(model, run, data, steps, world):
    optimizer = run.optimizer if isinstance(run, ow.Attached) else torch.optim.SGD(model.parameters(), lr=0.05)
    forward = DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
    for step in range(steps):
        x, y = data[step % 4]
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), y)
        if isinstance(run, ow.Attached):
            loss = loss + run.penalty()
        loss.backward()
        optimizer.step()


def perform(case, data, world):
    given = options(case)
    structure = ow.channels(example=torch.zeros(2, 1, 5, 5).double()) if case.coupled else case.structure
    if structure is not None:
        given["structure"] = structure
    recipe, model = methods.get(case.name)(density=0.3, **given), net()
    if recipe.drive == "prune":
        return dict(ow.prune(model, recipe, data=data, loss=F.cross_entropy).masks)
    if recipe.drive == "attach":
        run = ow.attach(model, recipe, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        train(model, run, data, STEPS, world)
        return dict(run.finish().masks)
    point = {k: v.clone() for k, v in model.state_dict().items()}
    rounds = ow.cycle(
        model, recipe, lambda m, now: train(m, None, data, 4, world), rewind_to=point, data=data, loss=F.cross_entropy
    )
    return dict(rounds.masks)


def work(rank, world):
    if world > 1:
        with pytest.raises(RecipeError, match=r"wrapped in DistributedDataParallel; give openwork the module inside"):
            ow.prune(DistributedDataParallel(net()), methods.magnitude(0.5))
    found = {}
    for case in CASES:
        if case.name in NAMES:
            try:
                found[case.name] = perform(case, batches(rank, world), world)
            except ow.OpenworkError as problem:
                found[case.name] = problem
    return found


@pytest.fixture(scope="module")
def alone():
    return work(0, 1)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    return on_ranks(request.param, tmp_path_factory.mktemp("ranks"), work)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree_with_each_other_and_with_one_process(ranks, alone, name):
    assert not isinstance(alone[name], Exception), alone[name]
    assert alone[name]
    for rank in ranks:
        assert not isinstance(rank[name], Exception), rank[name]
        for tensor, mask in alone[name].items():
            assert torch.equal(rank[name][tensor], mask), f"{tensor}: {int((rank[name][tensor] != mask).sum())} differ"
