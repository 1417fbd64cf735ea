"""Small networks that break naive pruners: one for every rule of the graph, and combinations."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Layers by name and a forward pass as a function of the network."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, *args):
        return self._run(self, *args)


def conv(i, o, k=3, **kw):
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


def pooled(x):
    return x.mean((2, 3))


def residual(n, x):
    a = F.relu(n.b0(n.a(x)))
    return n.head(pooled(a + n.c(F.relu(n.b1(n.b(a))))))


def nested(n, x):
    a = n.a(x)
    b = a + n.b(torch.sigmoid(a))
    return n.head(pooled(torch.tanh(b + n.c(b) + a)))


def concatenated(n, x):
    a, b = n.a(x), n.b(x)
    y = torch.cat([torch.sigmoid(a), b, a], 1)
    return n.head(pooled(n.c(y)))


def split_and_joined(n, x):
    a, b, c = n.a(x).split([n.first, n.second, n.third], 1)
    return n.head(pooled(n.c(torch.cat([c, torch.tanh(b), a], 1))))


def chunked(n, x):
    gate, value = n.a(x).chunk(2, 1)
    return n.head(pooled(n.c(torch.sigmoid(gate) * value)))


def residual_of_concat(n, x):
    y = torch.cat([n.a(x), n.b(x)], 1)
    return n.head(pooled(F.relu(y + n.c(y))))


def squeezed(n, x):
    y = F.silu(n.b0(n.a(x)))
    y = F.silu(n.d(y))
    s = torch.sigmoid(n.e2(F.relu(n.e1(F.adaptive_avg_pool2d(y, 1)))))
    return n.head(pooled(n.c(y * s)))


def shuffled(n, x):
    y = n.a(x)
    b, c, h, w = y.shape
    y = y.view(b, n.groups, c // n.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
    return n.head(pooled(torch.sigmoid(n.c(y))))


def pixel_shuffled(n, x):
    return n.c(F.relu(F.pixel_shuffle(n.a(x), 2)))


def pixel_unshuffled(n, x):
    return n.head(pooled(n.c(F.pixel_unshuffle(torch.sigmoid(n.a(x)), 2))))


def flattened(n, x):
    return n.head(F.relu(n.fc(F.relu(n.a(x)).flatten(1))))


def reversed_(n, x):
    y = n.a(x)
    return n.head(pooled(torch.sigmoid(y + y.flip(1))))


def every_other(n, x):
    y = n.a(x)
    return n.head(pooled(torch.sigmoid(n.c(y[:, ::2] * y[:, 1::2]))))


def negative_slice(n, x):
    y = n.a(x)
    return n.head(pooled(torch.sigmoid(y[:, -n.tail :] + n.b(y[:, : -n.tail]))))


def shared_module(n, x):
    y = n.a(x)
    return n.head(pooled(n.s(torch.sigmoid(n.s(torch.tanh(y))))))


def reused_weight(n, x):
    y = torch.tanh(n.a(x))
    z = torch.sigmoid(F.linear(y, n.b.weight))
    return F.linear(z, n.b.weight.t()) + n.c(y)


def two_in_two_out(n, x, y):
    a, b = torch.sigmoid(n.a(x)), torch.tanh(n.b(y))
    both = a * b
    return n.head(both), {"other": n.c(both), "sum": n.head(a)}


def glu(n, x):
    return n.head(F.silu(n.gate(x)) * n.up(x))


def fused_glu(n, x):
    gate, up = n.both(x).chunk(2, -1)
    return n.head(F.gelu(gate) * up)


def einsummed(n, x):
    return torch.einsum("bth,oh->bto", torch.sigmoid(torch.einsum("btc,hc->bth", x, n.a.weight)), n.b.weight)


def tied(n, ids):
    return F.linear(n.norm(n.emb(ids) + n.down(F.gelu(n.up(n.emb(ids))))), n.emb.weight)


def recurrent(n, x):
    y, _ = n.rnn(x)
    return n.head(torch.sigmoid(y))


def unknown(n, x):
    y = torch.tanh(n.a(x))
    z = torch.cumprod(n.b(y), -1)
    return n.c(y) + n.d(z)


def attention(n, x):
    b, t, _ = x.shape
    q = n.q(x).view(b, t, n.heads, n.width).transpose(1, 2)
    k, v = (f(x).view(b, t, n.groups, n.width).transpose(1, 2) for f in (n.k, n.v))
    k, v = (z[:, :, None].expand(b, n.groups, n.heads // n.groups, t, n.width).flatten(1, 2) for z in (k, v))
    half = n.width // 2
    q, k = (z * 0.6 + torch.cat([-z[..., half:], z[..., :half]], -1) * 0.8 for z in (q, k))
    y = F.scaled_dot_product_attention(q, k, v)
    return x + n.o(y.transpose(1, 2).reshape(b, t, n.heads * n.width))


def fused_attention(n, x):
    b, t, _ = x.shape
    q, k, v = n.qkv(x).view(b, t, 3, n.heads, n.width).permute(2, 0, 3, 1, 4).unbind(0)
    y = ((q @ k.transpose(-1, -2)) * n.width**-0.5).softmax(-1) @ v
    return n.o(y.transpose(1, 2).flatten(2))


def with_numbers(net, **numbers):
    for name, value in numbers.items():
        setattr(net, name, value)
    return net


IMAGE = torch.Size((2, 3, 8, 8))
ROW = torch.Size((4, 10))
SEQUENCE = torch.Size((2, 5, 12))


def linear(n):
    return nn.Linear(n, 5)


# name -> (network, shapes of its inputs, kinds and sizes of the groups that must be found)
NETS = {
    "residual": lambda: (
        Net(
            residual,
            a=conv(3, 8),
            b0=nn.BatchNorm2d(8),
            b=conv(8, 6),
            b1=nn.BatchNorm2d(6),
            c=conv(6, 8),
            head=linear(8),
        ),
        [IMAGE],
        [8, 6],
    ),
    "nested residuals": lambda: (Net(nested, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8), head=linear(8)), [IMAGE], [8]),
    "concat with a repeat": lambda: (
        Net(concatenated, a=conv(3, 4), b=conv(3, 6), c=conv(14, 7), head=linear(7)),
        [IMAGE],
        [4, 6, 7],
    ),
    "split and joined": lambda: (
        with_numbers(Net(split_and_joined, a=conv(3, 12), c=conv(12, 7), head=linear(7)), first=4, second=6, third=2),
        [IMAGE],
        [4, 6, 2, 7],
    ),
    "chunked gate": lambda: (Net(chunked, a=conv(3, 12), c=conv(6, 7), head=linear(7)), [IMAGE], [6, 7]),
    "residual of concat": lambda: (
        Net(residual_of_concat, a=conv(3, 4), b=conv(3, 6), c=conv(10, 10), head=linear(10)),
        [IMAGE],
        [4, 6],
    ),
    "depthwise and squeeze-excite": lambda: (
        Net(
            squeezed,
            a=conv(3, 8),
            b0=nn.BatchNorm2d(8),
            d=conv(8, 8, groups=8),
            e1=conv(8, 3, 1),
            e2=conv(3, 8, 1),
            c=conv(8, 7),
            head=linear(7),
        ),
        [IMAGE],
        [8, 3, 7],
    ),
    "depthwise multiplier": lambda: (
        Net(
            lambda n, x: n.head(pooled(n.c(torch.sigmoid(n.d(n.a(x)))))),
            a=conv(3, 6),
            d=conv(6, 12, groups=6),
            c=conv(12, 7),
            head=linear(7),
        ),
        [IMAGE],
        [6, 2, 7],
    ),
    "grouped": lambda: (
        Net(
            lambda n, x: n.head(pooled(n.c(torch.sigmoid(n.g(torch.tanh(n.a(x))))))),
            a=conv(3, 12),
            g=conv(12, 18, groups=3),
            c=conv(18, 7),
            head=linear(7),
        ),
        [IMAGE],
        [3, 4, 6, 7],
    ),
    "transposed convolution": lambda: (
        Net(
            lambda n, x: n.c(torch.sigmoid(n.t(torch.tanh(n.a(x))))),
            a=conv(3, 8),
            t=nn.ConvTranspose2d(8, 6, 2, 2),
            c=conv(6, 3),
        ),
        [IMAGE],
        [8, 6],
    ),
    "grouped transposed": lambda: (
        Net(
            lambda n, x: n.c(torch.sigmoid(n.t(torch.tanh(n.a(x))))),
            a=conv(3, 8),
            t=nn.ConvTranspose2d(8, 12, 2, 2, groups=4),
            c=conv(12, 3),
        ),
        [IMAGE],
        [4, 2, 3],
    ),
    "channel shuffle": lambda: (
        with_numbers(Net(shuffled, a=conv(3, 12), c=conv(12, 7), head=linear(7)), groups=4),
        [IMAGE],
        [4, 3, 7],
    ),
    "pixel shuffle": lambda: (Net(pixel_shuffled, a=conv(3, 16), c=conv(4, 3)), [IMAGE], [4]),
    "pixel unshuffle": lambda: (Net(pixel_unshuffled, a=conv(3, 4), c=conv(16, 7), head=linear(7)), [IMAGE], [4, 7]),
    "flatten": lambda: (Net(flattened, a=conv(3, 6), fc=nn.Linear(6 * 64, 9), head=linear(9)), [IMAGE], [6, 9]),
    "flipped channels": lambda: (Net(reversed_, a=conv(3, 8), head=linear(8)), [IMAGE], [4]),
    "slices with steps": lambda: (Net(every_other, a=conv(3, 12), c=conv(6, 7), head=linear(7)), [IMAGE], [6, 7]),
    "negative slices": lambda: (
        with_numbers(Net(negative_slice, a=conv(3, 16), b=conv(10, 6), head=linear(6)), tail=6),
        [IMAGE],
        [10, 6],
    ),
    "shared module": lambda: (Net(shared_module, a=conv(3, 8), s=conv(8, 8), head=linear(8)), [IMAGE], [8]),
    "reused weight": lambda: (
        Net(reused_weight, a=nn.Linear(10, 8), b=nn.Linear(8, 6, bias=False), c=nn.Linear(8, 8)),
        [ROW],
        [6],
    ),
    "two inputs, two outputs": lambda: (
        Net(two_in_two_out, a=nn.Linear(10, 8), b=nn.Linear(10, 8), c=nn.Linear(8, 3), head=linear(8)),
        [ROW, ROW],
        [8],
    ),
    "gated linear": lambda: (Net(glu, gate=nn.Linear(10, 16), up=nn.Linear(10, 16), head=linear(16)), [ROW], [16]),
    "fused gate and up": lambda: (Net(fused_glu, both=nn.Linear(10, 32), head=linear(16)), [ROW], [16]),
    "einsum": lambda: (Net(einsummed, a=nn.Linear(12, 9), b=nn.Linear(9, 4)), [SEQUENCE], [9]),
    "group norm": lambda: (
        Net(
            lambda n, x: n.head(pooled(torch.sigmoid(n.g(n.a(x))))),
            a=conv(3, 12),
            g=nn.GroupNorm(4, 12),
            head=linear(12),
        ),
        [IMAGE],
        [4, 3],
    ),
    "instance norm and PReLU": lambda: (
        Net(
            lambda n, x: n.head(pooled(n.p(n.g(n.a(x))))),
            a=conv(3, 8),
            g=nn.InstanceNorm2d(8, affine=True),
            p=nn.PReLU(8),
            head=linear(8),
        ),
        [IMAGE],
        [8],
    ),
    "padded channels": lambda: (
        Net(
            lambda n, x: n.head(pooled(torch.sigmoid(n.b(x) + F.pad(n.a(x), (0, 0, 0, 0, 2, 2))))),
            a=conv(3, 4),
            b=conv(3, 8),
            head=linear(8),
        ),
        [IMAGE],
        [4],
    ),
    "LSTM": lambda: (
        Net(recurrent, rnn=nn.LSTM(12, 7, num_layers=2, bidirectional=True, batch_first=True), head=linear(14)),
        [SEQUENCE],
        [7],
    ),
    "GRU": lambda: (Net(recurrent, rnn=nn.GRU(12, 7), head=linear(7)), [SEQUENCE], [7]),
    "unknown operation": lambda: (
        Net(unknown, a=nn.Linear(10, 8), b=nn.Linear(8, 6), c=nn.Linear(8, 4), d=nn.Linear(6, 4)),
        [ROW],
        [8],
    ),
    "grouped queries with rotary halves": lambda: (
        with_numbers(
            Net(attention, q=nn.Linear(12, 24), k=nn.Linear(12, 8), v=nn.Linear(12, 8), o=nn.Linear(24, 12)),
            heads=6,
            groups=2,
            width=4,
        ),
        [SEQUENCE],
        [2, 3],
    ),
    "fused attention": lambda: (
        with_numbers(Net(fused_attention, qkv=nn.Linear(12, 60), o=nn.Linear(20, 7)), heads=5, width=4),
        [SEQUENCE],
        [5],
    ),
}


def build(name):
    torch.manual_seed(0)
    net, shapes, sizes = NETS[name]()
    with torch.no_grad():  # running statistics and norms that would hide an error
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.ndim == 1:
                tensor.add_(0.3 * torch.rand_like(tensor))
    return net.eval(), tuple(torch.randn(s) for s in shapes), sizes
