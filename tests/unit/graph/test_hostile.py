"""Networks and models of hostile users: right or refused, with a reason, and never touched by a refusal."""

import pytest
import torch
from tests.unit.graph.hostile_nets import HOSTILE, REFUSED, build_hostile
from tests.unit.graph.nets import Net, linear
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.graph import Example, GraphRefused
from openwork.methods import magnitude, random
from openwork.structure import Coupling

EVERY = ("channels", "heads", "hidden", "experts")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_network_becomes_smaller_and_stays_the_same(name):
    net, given = build_hostile(name)
    groups = ow.build_graph(net, given).groups
    assert sorted(g.n_units for g in groups) == sorted(HOSTILE[name][1])
    if not groups:
        with pytest.raises(ow.StructureError, match="finds nothing to prune"):
            ow.prune(net, magnitude(structure=ow.channels(example=given)))
        return
    result = ow.prune(net, random(density=0.5, structure=Coupling(Example.of(given), EVERY)))
    small = ow.compact(net, result, example=given)
    proof = ow.verify(small, net, given)
    assert proof.max_error <= 1e-5 * max(1.0, proof.largest)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("sizes from shapes", torch.Size((5, 3, 11, 6))),
        ("any length", torch.Size((1, 9, 12))),
        ("half of a chunk", torch.Size((1, 3, 16, 8))),
    ],
)
def test_the_small_network_takes_other_sizes(name, other):
    net, given = build_hostile(name)
    small = ow.compact(net, ow.prune(net, random(density=0.5, structure=ow.channels(example=given))))
    x = torch.randn(other)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_control_flow_over_data_is_refused_quietly(name, capfd):
    net, given = build_hostile(name)
    with pytest.raises(GraphRefused, match="cannot follow the forward pass"):
        ow.build_graph(net.train(), given)
    assert net.training
    assert capfd.readouterr() == ("", "")


def test_an_example_without_numbers_proves_nothing():
    net = Net(lambda n, x: n.b(torch.tanh(n.a(x))), a=nn.Linear(4, 6), b=linear(6))
    small = ow.compact(net, ow.prune(net, random(density=0.5, structure=ow.channels(example=torch.zeros(2, 4)))))
    with pytest.raises(ow.VerificationFailed, match="gives no numbers to compare"):
        ow.verify(small, net, torch.zeros(0, 4))


def test_a_position_hidden_in_the_code():
    def forward(n, x):
        y = torch.tanh(n.a(x))
        return n.b(y * torch.where(torch.arange(y.shape[-1]) < 3, 2.0, 1.0))

    net = Net(forward, a=nn.Linear(4, 6), b=linear(6))
    assert not ow.build_graph(net, torch.zeros(2, 4)).groups  # a length that the code counts stays
    net = Net(
        lambda n, x: n.b(y[:, 2:] + y[:, :-2]) if (y := n.a(x)) is not None else y, a=nn.Linear(4, 6), b=linear(4)
    )
    net.unrelated = 2  # looks like where the code cuts, and is not
    result = ow.prune(net, random(density=0.5, structure=ow.channels(example=torch.zeros(2, 4))))
    with pytest.raises(ow.OpenworkError, match="its code holds"):
        ow.compact(net, result)


@pytest.mark.parametrize(
    "activation", [F.hardswish, F.logsigmoid, F.relu6, torch.special.expit, lambda x: torch.multiply(x, x)]
)
def test_activations_that_torch_does_not_call_pointwise(activation):
    net = Net(lambda n, x: n.b(activation(n.a(x))), a=nn.Linear(4, 6), b=linear(6))
    assert [g.n_units for g in ow.build_graph(net, torch.zeros(2, 4)).groups] == [6]
