"""Calls and little models that the tests of refusals share."""

import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.core.now import Now, Phase, Update
from openwork.core.protocols import Rule
from openwork.core.recipe import Recipe
from openwork.core.stat import Stat
from openwork.criteria import Saliency
from openwork.engine.cycle import Cycle
from openwork.methods import imp, magnitude, sequential_attention_pp, snip
from openwork.relax import SoftmaxAttention
from openwork.rules.drop_grow import DropGrow
from openwork.rules.topk import TopK
from openwork.schedules import Cubic, OneShot
from openwork.structure import Block, Element, partition


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))


BATCH = (torch.ones(4, 8), torch.tensor([0, 1, 2, 3]))


def one(rule, structure=None, density=0.5, schedule=None):
    return Recipe("made", structure or Element(), rule, schedule or OneShot(density))


def prune(rule, structure=None, model=None, **more):
    given = {"data": [BATCH], "loss": F.cross_entropy, **more}
    return ow.prune(model or net(), one(rule, structure), **given)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def now(**more):
    parts, _ = partition(net(), Element(), ow.Select())
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    return Now(parts, units, {n: p.detach() for n, p in net().named_parameters()}, **more)


def grow_on_nan():
    seen = now(grads={"0.weight": torch.full((12, 8), math.nan)})
    seen.units["0.weight"][::2] = False
    active = int(seen.units["0.weight"].sum())
    DropGrow()._replace("0.weight", seen.parts["0.weight"], seen, 0.5, active)


def keep_infinite():
    scores = torch.ones(12, 8)
    scores[3, 4] = math.inf
    TopK._refuse_infinite(now(), {"0.weight": scores}, Phase(0.5, True))


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def after_detach():
    model = net()
    run = ow.attach(model, magnitude(density=0.5), sgd(model))
    run.detach()
    run.finish()


def late_gates():
    model = net()
    optimizer = sgd(model)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    recipe = sequential_attention_pp(density=0.5, structure=Block(2, 2), steps=60, min_blocks=2)
    ow.attach(model, replace(recipe, relaxation=SoftmaxAttention(learning_rate=2.0)), optimizer)


def through_gates():
    model = net()
    recipe = Recipe("made", Element(), TopK(Saliency()), Cubic(0.5, 0, 5), sequential_attention_pp().relaxation)
    ow.attach(model, recipe, sgd(model), data=[BATCH], loss=F.cross_entropy)


class Bad(Rule):
    """Answers with whatever it is given."""

    def __init__(self, units=None, edits=None):
        self.units, self.edits = units, edits or {}

    def update(self, now, phase, state):
        return Update(self.units(now) if self.units else now.units, edits=self.edits)


class Other(Stat):
    pass


def held(name, mask):
    with ow.hold(net(), {name: mask}):
        pass


def early():
    rounds = Cycle(net(), imp(density=0.5, rounds=1, rewind="none"))
    rounds.prune_round()
    rounds.prune_round()


def foreign_state(engine):
    model = net()
    if engine == "attach":
        optimizer = sgd(model)
        run = ow.attach(model, magnitude(density=0.5), optimizer)
        ow.attach(model, magnitude(density=0.25), optimizer).load_state_dict(run.state_dict())
    elif engine == "other model":
        run = ow.attach(model, magnitude(density=0.5), sgd(model))
        other = nn.Sequential(nn.Linear(8, 3))
        ow.attach(other, magnitude(density=0.5), sgd(other)).load_state_dict(run.state_dict())
    else:
        state = Cycle(model, imp(density=0.5, rewind="none")).state_dict()
        Cycle(model, imp(density=0.25, rewind="none")).load_state_dict(state)


def attach_untrained():
    model = net()
    ow.attach(model, magnitude(density=0.5), torch.optim.SGD(model[0].parameters(), lr=0.1))


def dead_layer():
    model = net()
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, -1.0)
    ow.prune(model, snip(density=0.5), data=[BATCH], loss=F.cross_entropy)


def wrong_save(tmp_path):
    model, other = net(), net()
    result = ow.prune(model, magnitude(density=0.5))
    other.load_state_dict(model.state_dict())
    other.add_module("more", nn.Linear(2, 2))
    ow.save(other, result, tmp_path / "r")


class Head(nn.Module):
    """Its weight is used, but not through a layer's forward."""

    def __init__(self):
        super().__init__()
        self.body, self.unused = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(x, self.body.weight)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.ConvTranspose1d(1, 2, 3)

    def forward(self, x):
        return self.cell(x[:, None])


def recipe_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return Recipe.load(tmp_path / name)
