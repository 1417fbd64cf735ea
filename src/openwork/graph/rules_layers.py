"""Operations with weights or statistics: products, convolutions, norms, attention, recurrences, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openwork.graph.axes import VOCABULARY, Axis, cat, find, freeze, measured, prod, same, tag
from openwork.graph.values import Op, Value, broadcast, rule


@rule("aten.linear")
def linear(op: Op, x: Value, weight: Value, bias: Value | None = None) -> Value:
    contract(op, x, -1, weight, -1)
    if bias is not None:
        same(bias.at(-1), weight.at(0))
    op.multiplies(*x.axes, *weight.axes[:-1])
    return Value((*x.axes[:-1], *weight.axes[:-1]))


def contract(op: Op, a: Value, i: int, b: Value, j: int) -> None:
    """Sum over an axis of two tensors. Without a weight on either side there is nothing to clear, so it stays."""
    if b.weight:
        op.consumes(b, j, a.at(i))
    elif a.weight:
        op.consumes(a, i, b.at(j))
    else:
        same(a.at(i), b.at(j))
        freeze(a.at(i), f"summed over between two activations ({op.where})")


@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def matmul(op: Op, a: Value, b: Value, **_: Any) -> Value:
    """``[..., n, k] @ [..., k, m]``; leading axes are batches: of heads between activations, of experts in weights."""
    contract(op, a, -1, b, -2 if b.ndim > 1 else 0)
    rows = a.axes[-2:-1] if a.ndim > 1 else ()
    columns = b.axes[-1:] if b.ndim > 1 else ()
    batches = [v.moved(v.axes[:-2]) for v in (a, b) if v.ndim > 2]
    lead = broadcast(batches) if batches else ()
    op.multiplies(*lead, *rows, *columns, a.at(-1))
    stacked = any(v.weight and v.ndim > 2 for v in (a, b))
    for axis in lead:
        if stacked or not (a.weight or b.weight):
            tag(axis, "experts" if stacked else "heads")
    if lead and not (a.weight or b.weight):
        for axis in (*rows, *columns):
            freeze(axis, f"rows or columns of a product of activations ({op.where})")
    return Value((*lead, *rows, *columns))


@rule("aten.addmm", "aten.baddbmm", "aten.addmv", "aten.addbmm")
def addmm(op: Op, bias: Value, a: Value, b: Value, **_: Any) -> Any:
    if op.name == "aten.addbmm":
        return NotImplemented
    out = matmul(op, a, b)
    return Value(broadcast([out, bias]))


@rule("aten.einsum")
def einsum(op: Op, equation: Any, operands: Any = None, *_: Any, **__: Any) -> Any:
    if not isinstance(equation, str) or "." in equation:
        return NotImplemented
    left, right = equation.replace(" ", "").split("->") if "->" in equation else (equation, None)
    letters: dict[str, list[tuple[Value, int]]] = {}
    for word, x in zip(left.split(","), operands, strict=True):
        for i, letter in enumerate(word):
            letters.setdefault(letter, []).append((x, i))
    if right is None:
        right = "".join(sorted(n for n, uses in letters.items() if len(uses) == 1))
    for letter, uses in letters.items():
        (first, i), *others = uses
        for x, j in others:
            same(first.at(i), x.at(j))
        if letter in right:
            continue
        weights = [(x, k) for x, k in uses if x.weight]
        for x, k in weights:
            op.notes.consumed.add(id(x.at(k)))
        if not weights:
            freeze(first.at(i), f"summed over between two activations ({op.where})")
    op.multiplies(*(uses[0][0].at(uses[0][1]) for uses in letters.values()))
    wide = [x for x in operands if not x.weight]
    for letter in right:
        if len(wide) > 1 and len(letters[letter]) == len(operands):
            tag(letters[letter][0][0].at(letters[letter][0][1]), "heads")
    return Value(tuple(letters[n][0][0].at(letters[n][0][1]) for n in right))


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped(op: Op, x: Value, weight: Value, *_: Any, **__: Any) -> Any:
    """``[S, K]`` rows sorted by expert, ``[E, K, N]`` weights -> ``[S, N]``; which rows, data decides."""
    if x.ndim != 2 or weight.ndim != 3:
        return NotImplemented
    contract(op, x, -1, weight, 1)
    op.multiplies(*x.axes, weight.at(2))
    op.notes.bounds += [(axis, 1, 16 // op.itemsize) for axis in (x.at(-1), weight.at(2))]  # rows of 16 bytes
    tag(weight.at(0), "experts")
    op.notes.banks.append((op.module, weight.at(0)))
    return Value((x.at(0), weight.at(2)))


@rule("aten.topk")
def topk(op: Op, x: Value, k: int, dim: int = -1, *_: Any, **__: Any) -> Any:
    """The scores of a router: the axis that is picked from belongs to the experts that are picked."""
    measured(x.at(dim), op.where)
    tag(x.at(dim), "routed")
    op.notes.bounds.append((x.at(dim), k, 1))
    op.notes.routed.append((op.module, x.at(dim)))
    axes = list(x.axes)
    axes[dim] = op.fixed(k, "picked by data")
    return Value(tuple(axes)), Value(tuple(axes))


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution", "aten._convolution",
      "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")  # fmt: skip
def convolution(op: Op, x: Value, weight: Value, bias: Value | None = None, *args: Any, **named: Any) -> Value:
    """``[O, I / g, ...]``; transposed ``[I, O / g, ...]``. Groups are an axis of their own on both sides."""
    spatial = weight.ndim - 2
    if op.name in ("aten.convolution", "aten._convolution"):
        flipped, groups = bool(args[3]), args[5]
    else:
        flipped = "transpose" in op.name
        groups = named.get("groups", args[3] if len(args) > 3 else 1)
    at = -1 - spatial
    inner, outer = weight.axes[(0 if flipped else 1)], weight.axes[(1 if flipped else 0)]
    if groups == 1:
        op.consumes(weight, 0 if flipped else 1, x.at(at))
        out = outer
    elif flipped:
        within, group = Axis(x.at(at).size // groups), Axis(groups)
        same(x.at(at), prod(group, within))
        op.consumes(weight, 0, x.at(at))
        out = prod(group, outer)
    else:
        group, within = Axis(groups), Axis(outer.size // groups)
        same(x.at(at), prod(group, inner) if inner.size > 1 else group)
        same(outer, prod(group, within) if within.size > 1 else group)
        op.notes.consumed.add(id(inner))
        out = outer
    if groups > 1:
        op.notes.groups.append((op.module, group))
    if bias is not None:
        same(bias.at(0), out)
    for kernel in weight.axes[2:]:
        freeze(kernel, "kernel position")
    spread = tuple(op.fixed(n) for n in op.shape[at + 1 :])
    if flipped:  # every input entry meets the outputs of its group, once per kernel position
        op.multiplies(*x.axes, *weight.axes[1:])
    else:
        op.multiplies(*x.axes[:at], *spread, *weight.axes)
    return Value((*x.axes[:at], out, *spread))


@rule("aten.batch_norm", "aten.instance_norm", "aten._native_batch_norm_legit_no_training", "aten.prelu")
def batch_norm(op: Op, x: Value, *args: Any, **_: Any) -> Any:
    """Every channel is normalised by itself."""
    for other in args[:4]:
        if isinstance(other, Value) and other.ndim and other.at(0).size == x.at(1).size:
            same(other.at(0), x.at(1))
    return (x, *(Value(()) for _ in op.shapes[1:])) if len(op.shapes) > 1 else x


@rule("aten.layer_norm", "aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def layer_norm(op: Op, x: Value, sizes: Sequence[int], *args: Any, **_: Any) -> Any:
    for other in args[:2]:
        if isinstance(other, Value):
            for a, b in zip(other.axes, x.axes[-len(sizes) :], strict=True):
                same(a, b)
    op.notes.normed.append((op.module, x.axes[-len(sizes) :]))
    for axis in x.axes[-len(sizes) :]:
        measured(axis, op.where)
    if len(op.shapes) == 1:
        return x
    return (x, *(Value(tuple(op.fixed(n) for n in s)) for s in op.shapes[1:]))


@rule("aten.group_norm")
def group_norm(op: Op, x: Value, groups: int, *args: Any, **_: Any) -> Value:
    for other in args[:2]:
        if isinstance(other, Value):
            same(other.at(0), x.at(1))
    group, within = Axis(groups), Axis(x.at(1).size // groups)
    same(x.at(1), prod(group, within) if within.size > 1 and groups > 1 else within if groups == 1 else group)
    if groups > 1:
        op.notes.groups.append((op.module, group))
    if within.size > 1:
        measured(within, op.where)
    return x


@rule("aten.embedding")
def embedding(op: Op, weight: Value, ids: Value, *_: Any, **__: Any) -> Value:
    freeze(weight.at(0), VOCABULARY if ids.given else "rows that are counted by something else than token ids")
    if ids.given:
        tag(weight.at(0), "vocabulary")
    return Value((*ids.axes, weight.at(1)))


@rule("aten.scaled_dot_product_attention")
def attention(op: Op, q: Value, k: Value, v: Value, mask: Any = None, *args: Any, **named: Any) -> Value:
    """Heads may go; the query-key width carries the scale, and with grouped queries a head takes its queries along."""
    for reason, axes in (
        ("query-key width of attention", (q.at(-1), k.at(-1))),
        ("value width of attention", (v.at(-1), v.at(-1))),
        ("position", (k.at(-2), v.at(-2))),
    ):
        same(*axes)
        freeze(axes[0], reason)
    freeze(q.at(-2), "position")
    lead = list(q.axes[:-2])
    for i in range(len(lead)):
        kv = k.axes[i]
        same(kv, v.axes[i])
        if kv.size not in (1, lead[i].size):
            same(lead[i], prod(kv, Axis(lead[i].size // kv.size)))
        elif kv.size == lead[i].size:
            same(lead[i], kv)
    if isinstance(mask, Value):
        rows = Value((*lead, q.at(-2), k.at(-2)))
        broadcast([rows, mask])
    for axis in lead:
        tag(axis, "heads")
    for width in (q.at(-1), v.at(-1)):
        op.multiplies(*lead, q.at(-2), k.at(-2), width)
    return Value((*lead, q.at(-2), v.at(-1)))


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrence(op: Op, x: Value, hx: Any, params: Sequence[Value], has_biases: bool, layers: int, *args: Any) -> Any:
    """Gates are stacked, ``(gates x hidden)``; all layers and directions share the hidden units, as the module does."""
    both, first = bool(args[2]), bool(args[3]) if len(args) > 3 else False
    ways, each = 1 + both, 2 + 2 * bool(has_biases)
    if len(params) != layers * ways * each:  # projections
        return NotImplemented
    hidden = Axis(params[1].at(1).size)
    inputs = x.at(-1)
    for layer in range(layers):
        for way in range(ways):
            mine = params[(layer * ways + way) * each :][:each]
            op.consumes(mine[0], 1, inputs)
            op.consumes(mine[1], 1, hidden)
            op.multiplies(*x.axes[:-1], *mine[0].axes)
            op.multiplies(*x.axes[:-1], *mine[1].axes)
            gates = mine[0].at(0).size // hidden.size
            for p in mine:
                same(p.at(0), prod(Axis(gates, "gates of a recurrent layer"), hidden) if gates > 1 else hidden)
        inputs = cat(*[hidden] * ways)
    for state in hx if isinstance(hx, list | tuple) else [hx]:
        if not state.filler:
            same(state.at(-1), hidden)
    states = [Value((op.fixed(layers * ways), *x.axes[(0 if first else 1) : (1 if first else 2)], hidden))]
    return (Value((*x.axes[:-1], inputs)), *states * (len(op.shapes) - 1))


@rule("aten.mean", "aten.sum", "aten.var", "aten.std", "aten.amax", "aten.amin", "aten.linalg_vector_norm",
      "aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d")  # fmt: skip
def reduction(op: Op, x: Value, *args: Any, **named: Any) -> Value:
    if "pool" in op.name:
        return pooled(op, x)
    at = 1 if op.name == "aten.linalg_vector_norm" else 0
    dims = named.get("dim", args[at] if len(args) > at else None)
    if isinstance(dims, bool | float) or dims is None or dims == []:
        dims = list(range(x.ndim))
    gone = {d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    for d in gone:
        measured(x.at(d), op.where)
    if len(op.shape) == x.ndim:
        return Value(tuple(op.fixed(1, "length one") if i in gone else a for i, a in enumerate(x.axes)))
    return Value(tuple(a for i, a in enumerate(x.axes) if i not in gone))


@rule("aten.softmax", "aten._softmax", "aten.log_softmax", "aten._log_softmax", "aten.special_softmax")
def softmax(op: Op, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    measured(x.at(dim), op.where)
    return x


@rule("aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d",
      "aten.adaptive_max_pool2d", "aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d",
      "aten.upsample_nearest1d", "aten.upsample_nearest3d", "aten.upsample_linear1d", "aten.upsample_trilinear3d",
      "aten._upsample_nearest_exact2d", "aten.max_pool2d_with_indices", "aten.adaptive_max_pool1d",
      "aten.adaptive_max_pool3d")  # fmt: skip
def pooled(op: Op, x: Value, *_: Any, **__: Any) -> Any:
    spatial = int(next(c for c in op.name[::-1] if c.isdigit())) if op.name[-1] == "d" else 2
    out = Value((*x.axes[:-spatial], *(op.fixed(n) for n in op.shape[-spatial:])))
    return (out, *(out for _ in op.shapes[1:])) if len(op.shapes) > 1 else out


@rule("aten.arange", "aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.scalar_tensor", "aten.new_zeros",
      "aten.new_ones", "aten.new_full", "aten.new_empty", "aten.eye", "aten.linspace", "aten.rand",
      "aten.randn")  # fmt: skip
def factory(op: Op, *_: Any, **__: Any) -> Value:
    return Value(tuple(op.fixed(n, f"length written in the code ({op.where})") for n in op.shape), filler=True)


@rule("aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like", "aten.randn_like",
      "aten.contiguous", "aten.clone", "aten.detach", "aten.detach_", "aten.alias", "aten.to", "aten._to_copy",
      "aten.dropout", "aten.dropout_", "aten.feature_dropout", "aten.alpha_dropout", "aten.native_dropout",
      "aten.lift_fresh_copy", "aten.type_as", "aten.float", "aten.lift_fresh", "aten.zero_", "aten.fill_",
      "aten.cumsum", "aten.triu", "aten.tril", "aten.glu")  # fmt: skip
def unchanged(op: Op, x: Value, *args: Any, **_: Any) -> Any:
    if op.name in ("aten.cumsum", "aten.triu", "aten.tril"):
        for axis in x.axes if op.name != "aten.cumsum" else [x.at(args[0])]:
            freeze(axis, f"order matters ({op.where})")
    if op.name == "aten.glu":
        dim = args[0] if args else -1
        half = Axis(op.shape[dim])
        same(x.at(dim), cat(half, half))
        return Value(tuple(half if i == dim % x.ndim else a for i, a in enumerate(x.axes)))
    if op.name.endswith("_like"):
        return Value(x.axes, filler=False)
    return x if len(op.shapes) == 1 else (x, x)


@rule("aten.where", "aten.__and__", "aten.__or__", "aten.__xor__", "aten.masked_fill", "aten.masked_fill_",
      "aten.isin", "aten.__iand__", "aten.__ior__", "aten.lerp", "aten.rsub", "aten.square", "aten.bitwise_not",
      "aten.hardswish", "aten.hardswish_", "aten.log_sigmoid", "aten.relu6_", "aten.gelu_", "aten.mish_",
      "aten.special_expit", "aten.multiply", "aten.divide", "aten.subtract", "aten.negative", "aten.absolute",
      "aten.floor_divide")  # fmt: skip
def pointwise(op: Op, *args: Any, **named: Any) -> Any:
    values = [a for a in (*args, *named.values()) if isinstance(a, Value)]
    return elementwise(op, values) if op.name != "aten.where" or len(args) > 1 else NotImplemented


@rule("aten.masked_scatter", "aten.masked_scatter_")
def masked_scatter(op: Op, x: Value, mask: Value, source: Value) -> Any:
    """Whole rows are written when the mask is the same along the last axis."""
    if mask.ndim != x.ndim or mask.at(-1).size != 1 or x.at(-1).size != source.at(-1).size:
        return NotImplemented
    same(x.at(-1), source.at(-1))
    broadcast([x, mask])
    for axis in x.axes[:-1]:
        freeze(axis, f"written to by data ({op.where})")
    return x


def elementwise(op: Op, values: Sequence[Value]) -> Value:
    """What every operation does that torch marks as pointwise."""
    out = Value(broadcast(values), filler=all(v.filler for v in values))
    return out if len(out.axes) == len(op.shape) else Value(tuple(find(a) for a in out.axes))
