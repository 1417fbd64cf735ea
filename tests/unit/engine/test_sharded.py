"""FSDP2: two and four processes that hold a part of every weight choose the masks of one process that holds all."""

import pytest
import torch
from tests.unit.processes import on_ranks
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork import methods

pytestmark = pytest.mark.slow

STEPS = 24
MANY = {"end": 8, "every": 2}
CASES = {
    "magnitude": ("magnitude", {}),
    "global": ("magnitude", {"scope": "global"}),
    "erk": ("magnitude", {"scope": "erk"}),
    "rows": ("magnitude", {"structure": ow.Row(), "density": 0.5}),
    "per row": ("magnitude", {"structure": ow.Element(per="row")}),
    "pattern": ("magnitude", {"structure": ow.NM(1, 2), "density": 0.5, "where": ow.Select(exclude=("0",))}),
    "global_mp": ("global_mp", {"minimum": 0.01}),
    "random": ("random", {}),
    "random, shares of snip": ("random", {"scope": "snip", "batches": 2}),
    "snip": ("snip", {"batches": 2}),
    "snip in rounds": ("snip", {"rounds": 3, "absolute": True}),
    "taylor": ("taylor", {"batches": 2}),
    "taylor rows": ("taylor", {"structure": ow.Row(), "density": 0.5}),
    "wanda": ("wanda", {}),
    "wanda pattern": ("wanda", {"structure": ow.NM(1, 2), "density": 0.5, "where": ow.Select(exclude=("0",))}),
    "wanda over the tensor": ("wanda", {"structure": ow.Element(), "batches": 3}),
    "dsnot": ("dsnot", {"threshold": 0.01}),
    "dsnot pattern": (
        "dsnot",
        {"structure": ow.NM(1, 2), "density": 0.5, "where": ow.Select(exclude=("0",)), "threshold": 0.01},
    ),
    "random_search": ("random_search", {"draws": 4, "batches": 2}),
    "random_search of all": (
        "random_search",
        {"draws": 10, "structure": ow.Row(), "where": ow.Select(include=("5.weight",))},
    ),
    "gradual": ("gradual_magnitude", MANY),
    "gradual global": ("gradual_magnitude", {**MANY, "scope": "global"}),
    "rigl": ("rigl", {"steps": STEPS, "every": 3}),
    "set": ("set", {"steps": STEPS, "every": 3}),
    "acdc": ("acdc", {"steps": STEPS}),
    "imp": ("imp", {"rounds": 2}),
}


def recipe(name):
    method, options = CASES[name]
    return methods.get(method)(**{"density": 0.3, **options})


def net():
    """Rows that no number of ranks divides; five rows on four ranks leave the last one without any."""
    torch.manual_seed(0)
    head = nn.Linear(14, 5)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 14), nn.Tanh(), head).double()


def shares(rank, world):
    rng = torch.Generator().manual_seed(1)
    batches = [(torch.randn(16, 1, 8, 8, generator=rng).double(), torch.arange(16) % 5) for _ in range(4)]
    return [(x[rank::world], y[rank::world]) for x, y in batches]


def built(world):
    model = net()
    if world > 1:
        from torch.distributed.fsdp import fully_shard

        for layer in (model[3], model):
            fully_shard(layer)
    return model


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)


def train(model, optimizer, data, steps, begin=0):
    for step in range(begin, steps):
        x, y = data[step % 4]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def perform(name, rank, world):
    model, data, made = built(world), shares(rank, world), recipe(name)
    if made.drive == "prune":
        result = ow.prune(model, made, data=data, loss=F.cross_entropy)
    elif made.drive == "attach":
        optimizer = adamw(model)
        run = ow.attach(model, made, optimizer)
        train(model, optimizer, data, STEPS)
        result = run.finish()
    else:
        point = {k: v.clone() for k, v in model.state_dict().items()}
        result = ow.cycle(model, made, lambda m, now: train(m, adamw(m), data, 3), rewind_to=point)
    sent = [entry.pop("sent_bytes", 0) for entry in result.log]
    losses = [entry["search"].pop("losses") for entry in result.log if "search" in entry]
    kept = result.masks.kept()
    with ow.hold(model, result.masks):
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), data, 1)
    return {
        "masks": {n: whole(m) for n, m in result.masks.items()},
        "weights": {n: whole(p.detach()) for n, p in model.named_parameters()},
        "rows": [r for r in result.tensors if not r["skipped"]],
        "kept": (kept, result.counts.kept, result.density),
        "log": result.log,
        "losses": losses,
        "sent": sent[-1],
        "report": len(result.report()),
    }


class Experts(nn.Module):
    """A grouped convolution and a stack of experts of which the last four see nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Conv2d(8, 12, 3, groups=4))
        self.experts = nn.Parameter(torch.randn(6, 5, 12))

    def forward(self, x):
        x = self.convs(x).mean((2, 3))
        return sum(x[i::2] @ self.experts[i].T for i in range(2))


def of_experts(rank, world):
    model = Experts().double()
    if world > 1:
        from torch.distributed.fsdp import fully_shard

        for module in (model.convs, model):
            fully_shard(module)
    data = [torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(s)).double() for s in range(3)]
    each = 16 // world
    data = [x[rank * each : (rank + 1) * each] for x in data]
    masks = ow.prune(model, methods.wanda(0.4, structure=ow.Element()), data).masks
    return {n: whole(m) for n, m in masks.items()}


def work(rank, world):
    return {**{name: perform(name, rank, world) for name in CASES}, "experts": of_experts(rank, world)}


@pytest.fixture(scope="module")
def alone():
    return work(0, 1)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    return on_ranks(request.param, tmp_path_factory.mktemp("ranks"), work)


@pytest.mark.parametrize("name", CASES)
def test_sharded_weights_get_the_masks_of_one_process(ranks, alone, name):
    want = alone[name]
    for rank in ranks:
        found = rank[name]
        assert found["masks"].keys() == want["masks"].keys()
        for tensor, mask in want["masks"].items():
            assert torch.equal(found["masks"][tensor], mask), tensor
        for tensor, weight in want["weights"].items():
            torch.testing.assert_close(found["weights"][tensor], weight, rtol=1e-6, atol=1e-9)
        assert found["kept"] == want["kept"]
        assert found["rows"] == want["rows"]
        assert found["log"] == want["log"]
        torch.testing.assert_close(found["losses"], want["losses"])
        assert found["report"] > 200


def test_input_norms_of_groups_and_experts(ranks, alone):
    for rank in ranks:
        assert all(torch.equal(rank["experts"][n], m) for n, m in alone["experts"].items())


def test_what_is_sent_does_not_grow_with_the_weights(ranks):
    # a choice in one tensor of 64-bit scores takes six sums of 2,048 counts, and one for the ties
    most = 2 * 3 * 8 * (6 * 2048 + 100)
    assert 0 < ranks[0]["global"]["sent"] < most
    assert ranks[0]["per row"]["sent"] < 200  # rows lie whole on a rank
