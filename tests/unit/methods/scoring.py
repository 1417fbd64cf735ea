"""What the method tests share: the situation a rule sees, a plain network, and measuring by hand."""

import torch
from torch import nn

import openwork as ow
from openwork.core.batches import Feed
from openwork.core.measured import measure
from openwork.core.measuring import Measuring
from openwork.core.now import Now
from openwork.structure import partition


def situation(model, recipe, data=None, loss=None):
    """``Now`` of a dense model with everything measured that the recipe's rule needs."""
    parts, _ = partition(model, recipe.structure, recipe.where)
    units = {n: torch.ones(p.n_units, dtype=torch.bool) for n, p in parts.items()}
    weights = {n: p.detach() for n, p in model.named_parameters() if n in parts}
    measuring = Measuring(model, parts, Feed(data, torch.device("cpu")), loss)
    return Now(parts, units, weights, measure(recipe.rule, measuring))


def scores(model, recipe, data=None, loss=None):
    """The criterion's scores, partition name -> ``[n_units]``."""
    now = situation(model, recipe, data, loss)
    rule = getattr(recipe.rule, "rule", recipe.rule)
    return {name: rule.criterion(part, now) for name, part in now.parts.items()}


def plain_net(*sizes, seed=0, bias=False):
    """A ReLU network in float64."""
    torch.manual_seed(seed)
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def labelled(inputs, classes, n=24, seed=1):
    """One batch."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=rng, dtype=torch.float64)
    return x, torch.randint(0, classes, (n,), generator=rng)


def kept_by_hand(values, keep):
    """Indices of the largest values, ties to the lower index, by Python's stable sort."""
    return set(sorted(range(len(values)), key=lambda i: -values[i])[:keep])


def chosen(result: ow.Result):
    """All masks as one flat list of booleans, in parameter order."""
    return torch.cat([m.flatten() for m in result.masks.values()])
