"""Models that torch.export refuses: masks of single filters with the reason said, or an error on request."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.graph import GraphRefused
from openwork.lab.shrinking import shrunk
from openwork.methods import group_importance, magnitude, taylor
from openwork.structure import Coupling, partition

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Two ways through the middle, chosen by the data; two heads; a layer that is used twice by name."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.bright, self.dark = nn.Linear(6, 8), nn.Linear(6, 8)
        self.turned = nn.ConvTranspose2d(6, 6, 3, padding=1, bias=False)
        self.label, self.box = nn.Linear(8, 3), nn.Linear(8, 4)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = self.turned(F.relu(self.norm(self.stem(x)))).mean((2, 3))
        x = self.bright(x) if x.sum() > -1e9 else self.dark(x)
        x = self.second(torch.tanh(self.first(torch.tanh(x))))
        return self.label(x), (self.box(x) * 2).tanh()


def net():
    torch.manual_seed(0)
    return Branching().eval()


def test_single_filters_are_masked_and_the_reason_is_said():
    model = net()
    with pytest.warns(
        UserWarning, match=r"Branching: there is no graph, since torch.export cannot .* nothing can be cut"
    ):
        result = ow.prune(model, magnitude(density=0.5, structure=ow.channels(example=X)))
    assert {n: int(u.sum()) for n, u in result.units.items()} == {
        "stem.weight": 3, "turned.weight": 3, "bright.weight": 4
    }  # fmt: skip
    gone = ~result.units["bright.weight"]
    assert not model.bright.weight[gone].any()
    assert not model.bright.bias[gone].any()
    assert model.bright.weight[~gone].any(1).all()
    assert not model.turned.weight[:, ~result.units["turned.weight"]].any()
    rows = {t["name"]: t["skipped"] for t in result.tensors}
    assert rows["label.weight"] == rows["box.weight"] == "makes outputs of the model"
    assert rows["dark.weight"].startswith("did not run on the example")
    assert rows["first.weight"].startswith("its weight is shared")
    assert rows["norm.weight"].startswith("there is no graph (")
    with pytest.raises(GraphRefused, match="ow.channels masks single filters at a density"):
        ow.compact(model, result)


def test_a_job_goes_on_with_zeros_in_place():
    model = net()
    with pytest.warns(UserWarning, match="there is no graph"):
        result = ow.prune(model, magnitude(density=0.5, structure=ow.channels(example=X)))
    with pytest.warns(UserWarning, match="nothing is cut, the zeros stay in place: Branching: torch.export cannot"):
        same, saved = shrunk(model, result, X)
    assert same is model
    assert saved == {}


def test_bounds_selections_and_criteria_hold():
    model = net()
    structure = ow.channels(example=X, multiple=4, at_least=4)
    x, y = X, torch.arange(4) % 3
    for recipe in (
        taylor(density=0.6, structure=structure, where=ow.Select(exclude=("stem.*",)), batches=1),
        group_importance(0.6, structure, ow.Select(include=("bright.*",)), "l2"),
    ):
        with pytest.warns(UserWarning, match="there is no graph"):
            result = ow.prune(net(), recipe, [(x, y)], lambda out, y: F.cross_entropy(out[0], y))
        assert "stem.weight" not in result.units
        assert all(int(u.sum()) % 4 == 0 or int(u.sum()) == len(u) for u in result.units.values())
    with pytest.warns(UserWarning, match="there is no graph"):
        parts = partition(model, ow.channels(example=X), ow.Select())[0]
    assert parts["stem.weight"].members == ("stem.weight", "stem.bias")
    assert parts["turned.weight"].spread(torch.arange(6) < 2)["turned.weight"].sum() == 6 * 2 * 9


def test_errors_on_request_and_where_nothing_can_be_masked():
    with pytest.raises(GraphRefused, match="torch.export cannot follow the forward pass"):
        partition(net(), ow.channels(example=X, refused="error"), ow.Select())
    for structure in (ow.heads(example=X), ow.hidden(example=X)):
        with pytest.raises(GraphRefused, match="torch.export cannot follow the forward pass"):
            partition(net(), structure, ow.Select())
    with pytest.raises(GraphRefused, match="nothing can be counted or cut"):
        ow.prune(net(), magnitude(structure=ow.channels(example=X)), target={"macs": 0.5})
    with pytest.raises(GraphRefused):  # it does not run on this example either
        partition(net(), ow.channels(example=torch.zeros(1, 3, 6, 6)), ow.Select())
    with pytest.raises(ow.StructureError, match="refused must be 'masks' or 'error', got 'mask'"):
        ow.channels(example=X, refused="mask")
    both = Coupling(ow.channels(example=X).example, ("channels", "heads"), refused="error")
    assert ow.Recipe.from_dict(magnitude(structure=both).to_dict()).structure == both
