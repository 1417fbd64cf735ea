"""Networks that were made to break a dependency graph: sizes from shapes, several heads, uneven pieces, loops over data."""

import torch
from tests.unit.graph.nets import IMAGE, ROW, SEQUENCE, Net, conv, linear, pooled, with_numbers
from torch import nn
from torch.nn import functional as F


def any_size(n, x):
    y = torch.tanh(n.a(x))
    up = F.interpolate(y, size=(2 * y.shape[-2], y.shape[-1] + 3), mode="nearest")
    y = n.b(up).view(x.shape[0], -1, up.shape[-2] * up.shape[-1]).transpose(1, 2)
    return n.head(torch.sigmoid(y).mean(1))


def any_length(n, x):
    steps = torch.arange(x.shape[1], dtype=x.dtype)[None, :, None] / x.shape[1]
    y = torch.sigmoid(n.a(x)) * steps
    return n.b(y[:, -1] + y.mean(1))


def by_name(n, pixels, tokens=None, scale=1.0):
    y = torch.sigmoid(n.a(pixels)) * scale
    out = {"first": n.b(y)}
    if tokens is not None:
        out["second"] = (n.c(y), [n.d(torch.tanh(n.b2(tokens)))])
    return out


def mean_and_spread(n, x):
    mean, _ = n.a(x).chunk(2, 1)
    return n.head(pooled(n.b(mean)))


def uneven(n, x):
    a, b, c = n.a(x).split(5, 1)
    return n.head(pooled(n.b(torch.cat([torch.tanh(a), torch.sigmoid(b), c], 1))))


def bare_norm(n, x):
    y = n.norm(n.a(x))
    return n.b(torch.sigmoid(y))


def written_in_place(n, x):
    y = n.a(x)
    y += 1
    y[:, 1:3] *= 2
    return n.b(torch.relu_(y))


def early_and_late(n, x):
    first = torch.tanh(n.a(x))
    second = torch.tanh(n.b(first))
    third = torch.tanh(n.c(second) + first)
    return n.d(third), n.e(second), first.mean()


def looped(n, x):
    y = n.a(x)
    for layer in n.layers:
        y = y + layer(torch.sigmoid(y))
    return n.head(y)


def buried(n, x):
    return n.head(n.inner(n.inner.inner(torch.tanh(n.a(x)))))


def by_stride(n, x):
    y = torch.sigmoid(n.a(x))
    return n.b(y[..., torch.arange(7, -1, -1)]) + n.c(y[..., ::3])


def weights_from_weights(n, x):
    w = n.a.weight * torch.sigmoid(n.gate.weight)
    return n.b(torch.tanh(F.linear(x, w, n.a.bias)))


def only_some(n, x):
    return n.b(torch.tanh(n.a(x)))


def branching(n, x):
    return n.b(torch.tanh(n.a(x))) if x.sum() > 0 else n.c(torch.sigmoid(n.a(x)))


def counting(n, x):
    y = torch.tanh(n.a(x))
    while y.abs().max() > 1e-2:
        y = y / 2
    return n.b(y)


def picking(n, x):
    y = torch.tanh(n.a(x))
    return n.b(y[x[:, 0] > -9])


def numbers(n, x):
    return n.b(torch.tanh(n.a(x))) * float(x.mean().item() > 0)


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def net(run, *shapes, numbers=None, **layers):
    return lambda: (with_numbers(Net(run, **layers), **(numbers or {})), tuple(torch.randn(s) for s in shapes))


class Keyed(Net):
    """Called by keywords only."""

    def __init__(self, **layers):
        super().__init__(by_name, **layers)

    def forward(self, **named):
        return by_name(self, **named)


# name -> (network, what it is called with), sizes of its groups
HOSTILE = {
    "sizes from shapes": (net(any_size, IMAGE, a=conv(3, 8), b=conv(8, 6), head=linear(6)), [8, 6]),
    "any length": (net(any_length, SEQUENCE, a=nn.Linear(12, 9), b=linear(9)), [9]),
    "keywords and nested outputs": (
        lambda: (
            Keyed(a=nn.Linear(10, 8), b=linear(8), b2=nn.Linear(4, 6), c=nn.Linear(8, 3), d=linear(6)),
            {"pixels": torch.randn(ROW), "scale": 0.5, "tokens": torch.randn(4, 4)},
        ),
        [8, 6],
    ),
    "a keyword left out": (
        lambda: (
            Keyed(a=nn.Linear(10, 8), b=linear(8), b2=nn.Linear(4, 6), c=nn.Linear(8, 3), d=linear(6)),
            {"pixels": torch.randn(ROW)},
        ),
        [8],
    ),
    "half of a chunk": (net(mean_and_spread, IMAGE, a=conv(3, 12), b=conv(6, 7), head=linear(7)), [6, 7]),
    "pieces that are not equal": (net(uneven, IMAGE, a=conv(3, 12), b=conv(12, 7), head=linear(7)), [7]),
    "norm without weights": (
        net(bare_norm, SEQUENCE, a=nn.Linear(12, 10), norm=nn.LayerNorm(10, elementwise_affine=False), b=linear(10)),
        [10],
    ),
    "written in place": (net(written_in_place, ROW, a=nn.Linear(10, 8), b=linear(8)), []),
    "early and late outputs": (
        net(
            early_and_late,
            ROW,
            a=nn.Linear(10, 8),
            b=nn.Linear(8, 6),
            c=nn.Linear(6, 8),
            d=linear(8),
            e=nn.Linear(6, 2),
        ),
        [8, 6],
    ),
    "a loop over layers": (
        net(
            looped,
            ROW,
            a=nn.Linear(10, 8),
            layers=nn.ModuleList([nn.Sequential(nn.Linear(8, n), nn.GELU(), nn.Linear(n, 8)) for n in (5, 6, 7)]),
            head=linear(8),
        ),
        [8, 5, 6, 7],
    ),
    "a module inside itself": (
        net(buried, ROW, a=nn.Linear(10, 8), inner=Doubled(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))), head=linear(8)),
        [8, 6],
    ),
    "reversed and every third": (
        net(by_stride, ROW, a=nn.Linear(10, 8), b=linear(8), c=nn.Linear(3, 5)),
        [],
    ),
    "weights made of weights": (
        net(weights_from_weights, ROW, a=nn.Linear(10, 8), gate=nn.Linear(10, 8), b=linear(8)),
        [8],
    ),
    "rows picked by data": (net(picking, ROW, a=nn.Linear(10, 8), b=linear(8)), [8]),
    "layers that nobody calls": (
        net(only_some, ROW, a=nn.Linear(10, 8), b=linear(8), c=nn.Linear(8, 8), d=nn.Linear(8, 3)),
        [8],
    ),
}  # fmt: skip


# name -> (network, what it is called with): torch.export cannot follow these
REFUSED = {
    "a branch on data": net(branching, ROW, a=nn.Linear(10, 8), b=linear(8), c=linear(8)),
    "a loop on data": net(counting, ROW, a=nn.Linear(10, 8), b=linear(8)),
    "a number from data": net(numbers, ROW, a=nn.Linear(10, 8), b=linear(8)),
}


def build_hostile(name):
    torch.manual_seed(0)
    made, given = HOSTILE[name][0]() if name in HOSTILE else REFUSED[name]()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made.eval(), given
