"""Operations that move entries: reshapes, permutations, concatenations, slices, copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openwork.graph.axes import Axis, cat, entries, freeze, is_frozen, prod, same
from openwork.graph.values import Op, Value, broadcast, regroup, rule


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten.flatten", "aten.unflatten", "aten.view_as",
      "aten.reshape_as", "aten._reshape_alias")  # fmt: skip
def reshape(op: Op, x: Value, *_: Any, **__: Any) -> Any:
    axes = regroup(x.axes, op.shape)
    return NotImplemented if axes is None else x.moved(axes)


@rule("aten.squeeze", "aten.unsqueeze")
def squeeze(op: Op, x: Value, dim: Any = None) -> Any:
    if op.name == "aten.unsqueeze":
        at = dim % (x.ndim + 1)
        return x.moved((*x.axes[:at], Axis(1, "length one"), *x.axes[at:]))
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % x.ndim for d in dims if x.at(d).size == 1}
    for d in gone:
        freeze(x.at(d), "squeezed")
    return x.moved([a for i, a in enumerate(x.axes) if i not in gone])


@rule("aten.permute")
def permute(op: Op, x: Value, dims: Sequence[int]) -> Value:
    return x.moved([x.at(d) for d in dims])


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims", "aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint")
def transpose(op: Op, x: Value, a: int = -2, b: int = -1) -> Value:
    axes = list(x.axes)
    if op.name == "aten.numpy_T":
        return x.moved(axes[::-1])
    if x.ndim > 1:
        axes[a], axes[b] = axes[b], axes[a]
    return x.moved(axes)


@rule("aten.movedim", "aten.moveaxis")
def movedim(op: Op, x: Value, source: Any, destination: Any) -> Value:
    start = [d % x.ndim for d in ([source] if isinstance(source, int) else source)]
    ends = [d % x.ndim for d in ([destination] if isinstance(destination, int) else destination)]
    order = [d for d in range(x.ndim) if d not in start]
    for end, begin in sorted(zip(ends, start, strict=True)):
        order.insert(end, begin)
    return x.moved([x.at(d) for d in order])


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to")
def expand(op: Op, x: Value, *_: Any, **__: Any) -> Value:
    """A stretched axis is a new one: whoever meets it later decides what it is (the repeats of grouped queries)."""
    old = [None] * (len(op.shape) - x.ndim) + list(x.axes)
    axes = [a if a is not None and a.size == n else Axis(n) for a, n in zip(old, op.shape, strict=True)]
    return Value(tuple(axes), x.weight, x.filler)


@rule("aten.repeat", "aten.tile")
def repeat(op: Op, x: Value, times: Sequence[int]) -> Value:
    old = [Axis(1, "length one")] * (len(op.shape) - x.ndim) + list(x.axes)
    axes = []
    for a, n in zip(old, op.shape, strict=True):
        axes.append(a if a.size == n else Axis(n) if a.size == 1 else prod(Axis(n // a.size), a))
    return x.moved(axes)


@rule("aten.repeat_interleave")
def repeat_interleave(op: Op, x: Any, times: Any = None, dim: Any = None, **_: Any) -> Any:
    if not isinstance(times, int) or dim is None:
        return NotImplemented
    axes = list(x.axes)
    axes[dim] = axes[dim] if times == 1 else prod(axes[dim], Axis(times))
    return x.moved(axes)


@rule("aten.cat", "aten.concat", "aten.concatenate")
def concatenate(op: Op, xs: Sequence[Value], dim: int = 0) -> Value:
    xs = [x for x in xs if x.axes != () and (x.ndim > 1 or x.at(0).size)]
    at = dim % xs[0].ndim
    axes = list(xs[0].axes)
    for x in xs[1:]:
        for i, a in enumerate(x.axes):
            if i != at:
                same(axes[i], a)
    axes[at] = cat(*[x.at(at) for x in xs])
    return Value(tuple(axes), all(x.weight for x in xs), all(x.filler for x in xs))


@rule("aten.stack")
def stack(op: Op, xs: Sequence[Value], dim: int = 0) -> Value:
    axes = list(broadcast(xs))
    axes.insert(dim % (len(axes) + 1), op.fixed(len(xs), "stacked"))
    return Value(tuple(axes))


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_split", "aten.unsafe_chunk",
      "aten.unsafe_split_with_sizes", "aten.tensor_split")  # fmt: skip
def split(op: Op, x: Value, by: Any, dim: int = 0) -> tuple[Value, ...]:
    """Pieces that one number makes (how many, or how long) stay equally long, so unit i goes from all of them."""
    sizes = [s[dim] for s in op.shapes]
    if isinstance(by, int) and len(set(sizes)) > 1:
        freeze(x.at(dim), f"split into pieces that are not equal ({op.where})")
    pieces = op.cut(x.at(dim), sizes)
    if isinstance(by, int):
        for piece in pieces[1:]:
            same(pieces[0], piece)
    return tuple(_with(x, dim, piece) for piece in pieces)


@rule("aten.slice", "aten.narrow")
def slice_(op: Op, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    axis, size = x.at(dim), op.shape[dim]
    if not isinstance(start, int | None):
        return NotImplemented
    if size == axis.size:
        return x
    begin = min(max((start or 0) + (axis.size if (start or 0) < 0 else 0), 0), axis.size)
    if step == 1 or op.name == "aten.narrow" or is_frozen(axis):
        return _with(x, dim, op.cut(axis, [begin, size, axis.size - begin - size])[1])
    if axis.size % step == 0 and begin < step and axis.size // step == size:
        kept = Axis(size)
        same(axis, prod(kept, Axis(step, f"every {step}th entry is taken ({op.where})")))
        return _with(x, dim, kept)
    units = entries(axis)
    if units is None:
        return NotImplemented
    return _with(x, dim, cat(*units[begin::step][:size]))


@rule("aten.select")
def select(op: Op, x: Value, dim: int, index: Any) -> Value:
    freeze(x.at(dim), f"single entries are read ({op.where})")
    return x.moved([a for i, a in enumerate(x.axes) if i != dim % x.ndim])


@rule("aten.unbind")
def unbind(op: Op, x: Value, dim: int = 0) -> tuple[Value, ...]:
    one = select(op, x, dim, 0)
    return tuple(one for _ in op.shapes)


@rule("aten.flip", "aten.fliplr", "aten.flipud")
def flip(op: Op, x: Value, dims: Any = None) -> Any:
    for d in dims if dims is not None else ([1] if op.name == "aten.fliplr" else [0]):
        axis = x.at(d)
        if is_frozen(axis):
            continue
        units = entries(axis)
        if units is None:
            return NotImplemented
        x = _with(x, d, cat(*units[::-1]))
    return x


@rule("aten.roll")
def roll(op: Op, x: Value, shifts: Any, dims: Any = ()) -> Any:
    for by, d in zip(_many(shifts), _many(dims), strict=False):
        axis = x.at(d)
        if is_frozen(axis):
            continue
        units = entries(axis)
        if units is None:
            return NotImplemented
        by %= len(units)
        x = _with(x, d, cat(*units[len(units) - by :], *units[: len(units) - by]))
    return x if _many(dims) else NotImplemented


@rule("aten.pad", "aten.constant_pad_nd", "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.replication_pad2d")
def pad(op: Op, x: Value, by: Sequence[int], *_: Any, **__: Any) -> Any:
    axes = list(x.axes)
    for i in range(len(by) // 2):
        left, right = by[2 * i], by[2 * i + 1]
        axis = axes[-1 - i]
        if (left, right) == (0, 0):
            continue
        if is_frozen(axis):
            axes[-1 - i] = op.fixed(op.shape[-1 - i])
        elif min(left, right) < 0:
            return NotImplemented
        else:
            reason = f"padding ({op.where})"
            axes[-1 - i] = cat(op.fixed(left, reason), axis, op.fixed(right, reason))
    return x.moved(axes)


@rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
def pixel_shuffle(op: Op, x: Value, r: int) -> Value:
    """``(C r r, H, W) <-> (C, H r, W r)``: a channel and its ``r x r`` positions."""
    within = prod(op.fixed(r), op.fixed(r))
    axes = list(x.axes)
    axes[-2:] = [op.fixed(n) for n in op.shape[-2:]]
    if op.name == "aten.pixel_unshuffle":
        axes[-3] = prod(axes[-3], within)
        return x.moved(axes)
    kept = Axis(op.shape[-3])
    same(axes[-3], prod(kept, within))
    axes[-3] = kept
    return x.moved(axes)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(op: Op, x: Value, groups: int) -> Value:
    outer, inner = Axis(groups), Axis(x.at(1).size // groups)
    same(x.at(1), prod(outer, inner))
    return _with(x, 1, prod(inner, outer))


@rule("aten.index", "aten.index_select", "aten.gather", "aten.take_along_dim", "aten.embedding_bag")
def index(op: Op, x: Value, *args: Any, **_: Any) -> Any:
    """Axes that data picks from stay whole; the others pass."""
    if op.name in ("aten.index_select", "aten.gather"):
        freeze(x.at(args[0]), f"picked from by data ({op.where})")
        if op.name == "aten.gather":
            for i, a in enumerate(args[1].axes):
                if i != args[0] % x.ndim and a.size == x.at(i).size:
                    same(a, x.at(i))
        return _with(x, args[0], op.fixed(op.shape[args[0]], "picked by data"))
    if op.name != "aten.index":
        return NotImplemented
    picks = list(args[0]) + [None] * (x.ndim - len(args[0]))
    dims = [i for i, p in enumerate(picks) if p is not None]
    for i in dims:
        freeze(x.at(i), f"picked from by data ({op.where})")
    rank = max(picks[i].ndim for i in dims)
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    axes = [a for i, a in enumerate(x.axes) if i not in dims]
    at = dims[0] if adjacent else 0
    new = [op.fixed(n, "picked by data") for n in op.shape[at : at + rank]]
    axes[at:at] = new
    return x.moved(axes) if len(axes) == len(op.shape) else NotImplemented


@rule("aten.index_add_", "aten.index_add", "aten.index_copy", "aten.index_copy_")
def index_add(op: Op, x: Value, dim: int, at: Value, source: Value, **_: Any) -> Value:
    freeze(x.at(dim), f"written to by data ({op.where})")
    freeze(source.at(dim), f"written by data ({op.where})")
    for i, a in enumerate(x.axes):
        if i != dim % x.ndim:
            same(a, source.at(i))
    return source.moved(x.axes)


@rule("aten.copy_", "aten.copy")
def copy(op: Op, x: Value, source: Value, *_: Any) -> Value:
    broadcast([x, source])
    return x


def _with(x: Value, dim: int, axis: Axis) -> Value:
    axes = list(x.axes)
    axes[dim] = axis
    return x.moved(axes)


def _many(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)
