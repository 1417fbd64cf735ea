"""Writes a pruned ONNX model: weights masked or cut, and every number that follows a width rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwork.graph.attributes import width
from openwork.onnx.file import needed
from openwork.onnx.graph import OnnxGraph
from openwork.onnx.rules import Change
from openwork.onnx.running import Array

SCALARS = ("Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape")


def masked(model: Any, graph: OnnxGraph, alive: Mapping[str, Tensor]) -> Any:
    """The model as it was, with zeros where units are gone."""
    weights: dict[str, Array] = {}
    for (name, dim), keep in _kept(graph, alive).items():
        array = weights.get(name, graph.weights[name])
        shape = [-1 if d == dim else 1 for d in range(array.ndim)]
        weights[name] = array * keep.numpy().reshape(shape).astype(array.dtype)
    return _with_weights(model, weights)


def small(model: Any, graph: OnnxGraph, alive: Mapping[str, Tensor]) -> Any:
    """The model without the units that are gone."""
    weights: dict[str, Array] = {}
    for (name, dim), keep in _kept(graph, alive).items():
        weights[name] = np.compress(keep.numpy(), weights.get(name, graph.weights[name]), axis=dim)
    made = _with_weights(model, weights)
    del made.graph.value_info[:]
    _Numbers(made, graph, alive).write()
    return made


def _kept(graph: OnnxGraph, alive: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """Tensor and dimension -> bool per entry, where something goes."""
    keeps: dict[tuple[str, int], Tensor] = {}
    for group in graph.groups:
        units = alive.get(group.name)
        if units is None or bool(units.all()):
            continue
        for site in group.sites:
            keep = torch.where(site.labels >= 0, units[site.labels.clamp(min=0)], True)
            old = keeps.get((site.tensor, site.dim))
            keeps[site.tensor, site.dim] = keep if old is None else keep & old
    return keeps


def _with_weights(model: Any, weights: Mapping[str, Array]) -> Any:
    onnx = needed("onnx")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
    return made


class _Numbers:
    """Rewrites targets of reshapes, lengths of pieces, groups of convolutions.

    What several nodes read is never changed: each gets a copy of its own, and so do the nodes that put it together.
    """

    def __init__(self, model: Any, graph: OnnxGraph, alive: Mapping[str, Tensor]):
        self._graph, self._seen, self._groups, self._alive = model.graph, graph.seen, graph, alive
        self._constants = {t.name: t for t in model.graph.initializer}
        self._makers = {n: node for node in model.graph.node for n in node.output if n}
        self._before: dict[str, list[Any]] = {}
        self._count = 0

    def write(self) -> None:
        for change in self._groups.changes:
            entries = {
                i: width(axis, self._groups, self._alive)
                for i, axis in enumerate(change.axes)
                if axis is not None and width(axis, self._groups, self._alive) != axis.size
            }
            if entries:
                self._settle(change, self._makers[change.node], entries)
        nodes = [made for node in self._graph.node for made in (*self._before.get(_key(node), ()), node)]
        fresh = needed("onnx").GraphProto()
        fresh.node.extend(nodes)
        del self._graph.node[:]
        self._graph.node.extend(fresh.node)

    def _settle(self, change: Change, node: Any, entries: dict[int, int]) -> None:
        if isinstance(change.slot, int):
            made: list[Any] = []
            node.input[change.slot] = self._copy(node.input[change.slot], entries, made)
            self._before.setdefault(_key(node), []).extend(made)
            return
        slot = "num_groups" if node.op_type == "GroupNormalization" else change.slot
        for attribute in node.attribute:
            if attribute.name == slot and attribute.ints:
                for i, n in entries.items():
                    attribute.ints[i] = n
            elif attribute.name == slot:
                attribute.i = entries[0]

    def _copy(self, name: str, entries: dict[int, int], made: list[Any]) -> str:
        """The name of a value that differs from another in some entries; what is computed from shapes stays."""
        onnx = needed("onnx")
        if name in self._constants:
            array = np.array(onnx.numpy_helper.to_array(self._constants[name]))
            for i, n in entries.items():
                array.reshape(-1)[i] = n
            tensor = onnx.numpy_helper.from_array(array, self._name(name))
            self._graph.initializer.append(tensor)
            return str(tensor.name)
        maker = self._makers.get(name)
        if maker is None or maker.op_type not in ("Concat", *SCALARS):
            return name
        node = onnx.NodeProto()
        node.CopyFrom(maker)
        node.name = node.output[0] = self._name(name)
        start = 0
        for i, piece in enumerate(maker.input if maker.op_type == "Concat" else maker.input[:1]):
            length = int(np.prod(self._seen.shapes[piece]))
            mine = {k - start: n for k, n in entries.items() if start <= k < start + length}
            if mine:
                node.input[i] = self._copy(piece, mine, made)
            start += length
        made.append(node)
        return str(node.output[0])

    def _name(self, name: str) -> str:
        taken = {*self._constants, *self._makers}
        self._count += 1
        while (new := f"{name}_cut{self._count}") in taken:
            self._count += 1
        return new


def _key(node: Any) -> str:
    return next(n for n in node.output if n)
