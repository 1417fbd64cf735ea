"""Axes of tensors and what makes them equal: a union-find whose classes can be products or concatenations of others.

The axis of a reshaped tensor is a *product* of axes (``heads x width``), that of a concatenated one is a *sum*. Making
two axes the same makes their parts the same, refining both as far as needed. Every step is local, so the cost of a
whole network is linear in its operations, whatever the widths are.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["atom", "prod", "cat"]
VOCABULARY = "vocabulary: token ids count its rows"
OUTPUT = "output of the model"


class Axis:
    """One axis of one tensor. ``frozen`` says why nothing of it can be removed, ``over`` who takes statistics of it."""

    __slots__ = ("bundle", "frozen", "kind", "over", "parts", "size", "tags", "up")

    def __init__(self, size: int, frozen: str = ""):
        self.size = size
        self.up: Axis | None = None
        self.kind: Kind = "atom"
        self.parts: tuple[Axis, ...] = ()
        self.frozen = frozen
        self.over = ""
        self.tags: frozenset[str] = _locked(frozen)
        self.bundle: Axis | None = None

    def __repr__(self) -> str:
        return show(self)


def _locked(reason: str) -> frozenset[str]:
    """A tag for axes that stay whatever is asked; a vocabulary stays only until ``vocabulary()`` asks for it."""
    return frozenset({"locked"}) if reason and reason not in (VOCABULARY, OUTPUT) else frozenset()


def show(axis: Axis) -> str:
    """``(2x(16+16))`` and the like.

    Examples:
        >>> show(prod(Axis(2), cat(Axis(3), Axis(5))))
        '(2*(3+5))'
    """
    axis = find(axis)
    sign = "*" if axis.kind == "prod" else "+"
    return f"({sign.join(map(show, axis.parts))})" if axis.parts else str(axis.size)


def find(axis: Axis) -> Axis:
    """The representative of a class."""
    top = axis
    while top.up is not None:
        top = top.up
    while axis.up is not None:
        axis.up, axis = top, axis.up
    return top


def prod(*parts: Axis) -> Axis:
    """The axis that a reshape makes of several, the last one running fastest. Single entries cannot be removed."""
    for part in parts:
        if part.size == 1:
            freeze(part, "one entry of a reshaped axis")
    return _made("prod", [p for p in parts if p.size != 1] or list(parts[:1]))


def cat(*parts: Axis) -> Axis:
    """The axis that a concatenation makes of several."""
    return _made("cat", [p for p in parts if p.size != 0] or list(parts[:1]))


def _made(kind: Kind, parts: list[Axis]) -> Axis:
    if len(parts) == 1:
        return parts[0]
    size = 1 if kind == "prod" else 0
    for part in parts:
        size = size * part.size if kind == "prod" else size + part.size
    made = Axis(size)
    made.kind, made.parts = kind, tuple(parts)
    return made


def factors(axis: Axis, kind: Kind) -> list[Axis]:
    """The parts of a product (or of a concatenation), nested ones opened."""
    axis = find(axis)
    return [f for part in axis.parts for f in factors(part, kind)] if axis.kind == kind else [axis]


def leaves(axis: Axis) -> list[Axis]:
    """All atoms of an axis, each as often as it occurs."""
    axis = find(axis)
    return [leaf for part in axis.parts for leaf in leaves(part)] if axis.parts else [axis]


def freeze(axis: Axis, reason: str) -> None:
    """Nothing of this axis may be removed. The first reason stays."""
    _mark(axis, reason, "", _locked(reason))


def measured(axis: Axis, by: str) -> None:
    """Something computes a statistic (a mean, a softmax) over this axis, so that removal changes the function."""
    _mark(axis, "", by, frozenset())


def tag(axis: Axis, word: str) -> None:
    """A word about the use of an axis (``heads``, ``experts``)."""
    _mark(axis, "", "", frozenset({word}))


def is_frozen(axis: Axis) -> bool:
    """Whether every atom of the axis is frozen."""
    return all(leaf.frozen for leaf in leaves(axis))


def _mark(axis: Axis, frozen: str, over: str, tags: frozenset[str]) -> None:
    stack = [axis]
    while stack:
        top = find(stack.pop())
        top.frozen = top.frozen or frozen
        top.over = top.over or over
        top.tags |= tags
        stack.extend(top.parts)


def same(a: Axis, b: Axis) -> None:
    """Entry i of one axis lives exactly when entry i of the other does."""
    a, b = find(a), find(b)
    if a is b:
        return None
    if a.size != b.size:
        return _clash(a, b, "axes of different sizes meet")
    if a.kind == "atom":
        return _link(a, b)
    if b.kind == "atom":
        return _link(b, a)
    if a.kind != b.kind:
        return _distribute(*((a, b) if a.kind == "prod" else (b, a)))
    return _products(a, b) if a.kind == "prod" else _sums(a, b)


def _link(low: Axis, high: Axis) -> None:
    low.up = high
    if low.frozen or low.over or low.tags:
        _mark(high, low.frozen, low.over, low.tags)
    if low.bundle is not None:
        if high.bundle is None:
            high.bundle = low.bundle
        elif find(low.bundle) is not find(high.bundle):
            find(low.bundle).up = find(high.bundle)


def _products(a: Axis, b: Axis) -> None:
    """Align the factors from the fastest one on; a larger factor is split by a smaller one."""
    xs, ys = factors(a, "prod"), factors(b, "prod")
    while xs and ys:
        x, y = xs.pop(), ys.pop()
        if x.size == y.size:
            same(x, y)
            continue
        (big, bigs), (small, _) = ((x, xs), (y, ys)) if x.size > y.size else ((y, ys), (x, xs))
        if big.size % small.size:
            return _clash(a, b, "two reshapes cut it at places that do not match")
        rest = Axis(big.size // small.size)
        same(big, prod(rest, small))
        bigs.extend(factors(rest, "prod"))
    return None


def _sums(a: Axis, b: Axis) -> None:
    """Align the pieces from the first one on; a longer piece is cut where the shorter one ends."""
    xs, ys = factors(a, "cat")[::-1], factors(b, "cat")[::-1]
    while xs and ys:
        x, y = xs.pop(), ys.pop()
        if x.size == y.size:
            same(x, y)
            continue
        (big, bigs), (small, _) = ((x, xs), (y, ys)) if x.size > y.size else ((y, ys), (x, xs))
        rest = Axis(big.size - small.size)
        same(big, cat(small, rest))
        bigs.extend(factors(rest, "cat")[::-1])


def _distribute(product: Axis, total: Axis) -> None:
    """``(a + b) x c = a x c + b x c`` where the pieces end between rows of the product."""
    lead, *rest = factors(product, "prod")
    pieces = factors(total, "cat")
    inner = product.size // lead.size
    if any(p.size % inner for p in pieces):
        return _clash(product, total, "a concatenation ends inside a reshaped block")
    counts = [Axis(p.size // inner) for p in pieces]
    same(lead, cat(*counts))
    for count, piece in zip(counts, pieces, strict=True):
        same(piece, prod(count, *rest))
    return None


def _clash(a: Axis, b: Axis, reason: str) -> None:
    freeze(a, reason)
    freeze(b, reason)


def cut(axis: Axis, sizes: list[int]) -> list[Axis]:
    """Consecutive pieces of an axis, as ``split`` makes them."""
    if is_frozen(axis):
        return [Axis(n, leaves(axis)[0].frozen) for n in sizes]
    pieces = [Axis(n) for n in sizes]
    same(axis, cat(*pieces))
    return pieces


def entries(axis: Axis) -> list[Axis] | None:
    """Every entry as an axis of its own, for permutations of all kinds; None where a product forbids it."""
    found: list[Axis] = []
    for piece in factors(axis, "cat"):
        if piece.kind == "prod":
            return None
        if piece.size == 1 or piece.frozen:
            found += [piece] if piece.size == 1 else [Axis(1, piece.frozen) for _ in range(piece.size)]
            continue
        units = [Axis(1) for _ in range(piece.size)]
        for unit in units:
            unit.bundle = units[0]
        same(piece, cat(*units))
        found += units
    return found
