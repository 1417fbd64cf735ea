"""Reads an ONNX file from a stranger: whole, from its own folder only, and of a kind that can be pruned."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from openwork.errors import FileError, RecipeError, StructureError

LIMIT = 2_000_000_000
"""Bytes of a model in memory; protobuf cannot hold more."""
OLDEST = 11
QUANTISED = ("Quantize", "QLinear", "Integer", "QAttention", "NBits", "QGemm", "QMoE", "DynamicQuantize")


def read_onnx(path: str | Path) -> Any:
    """An ``onnx.ModelProto`` with its weights in memory, constants as initializers, functions inlined.

    Raises:
        FileError: no such file, truncated, corrupt, too large, or its weights lie outside its folder.
        StructureError: a quantised model, sparse weights, or an operator set before 11.
        RecipeError: the package ``onnx`` is missing.
    """
    onnx = needed("onnx")
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: no such file; pass the path of a .onnx file")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as problem:  # protobuf has errors of its own
        raise FileError(f"{path}: is no ONNX file or is truncated ({_line(problem)})") from None
    if not model.graph.node or not model.graph.output:
        raise FileError(f"{path}: is no ONNX model: its graph has no nodes or no outputs")
    _load_weights(model, path)
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = import_module("onnx.inliner").inline_local_functions(model)
        _refuse(model, path)
        _lift_constants(model)
        for tensor in model.graph.initializer:
            array_of(tensor)
    except (FileError, StructureError):
        raise
    except Exception as problem:
        raise FileError(f"{path}: is not a valid ONNX model ({_line(problem)})") from None
    return model


def needed(package: str) -> Any:
    """``onnx`` or ``onnxruntime``.

    Raises:
        RecipeError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError:
        raise RecipeError(f"ONNX files need the package {package}; install it: pip install 'openwork[onnx]'") from None


def array_of(tensor: Any) -> np.ndarray[Any, Any]:
    """The values of a TensorProto."""
    found: np.ndarray[Any, Any] = needed("onnx").numpy_helper.to_array(tensor)
    return found


def _line(problem: BaseException) -> str:
    text = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {text[0][:200]}" if text else type(problem).__name__


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph, those in attributes and in the graphs of control flow included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _load_weights(model: Any, path: Path) -> None:
    """Weights in other files are read from the folder of the model and from nowhere else."""
    onnx = needed("onnx")
    folder = path.resolve().parent
    total = 0
    outside = [t for t in _tensors(model.graph) if t.data_location == onnx.TensorProto.EXTERNAL]
    for function in model.functions:
        outside += [t for t in _tensors(function_graph(function)) if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in outside:
        said = {entry.key: entry.value for entry in tensor.external_data}
        place = said.get("location", "")
        file = (folder / place).resolve()
        if not place or "\\" in place or Path(place).is_absolute() or ".." in Path(place).parts:
            raise FileError(
                f"{path}: weights of {tensor.name!r} lie at {place!r}, which leaves the folder of the model"
            )
        if not file.is_relative_to(folder):
            raise FileError(f"{path}: {place} is a link that leads out of the folder of the model")
        if not file.is_file():
            raise FileError(f"{path}: {place}, which holds the weights of {tensor.name!r}, is missing")
        try:
            start, length = int(said.get("offset", 0)), int(said.get("length", file.stat().st_size))
        except ValueError:
            raise FileError(f"{path}: offset and length of {tensor.name!r} must be numbers, got {said}") from None
        if start < 0 or length < 0 or start + length > file.stat().st_size:
            raise FileError(f"{path}: {place} has {file.stat().st_size} bytes, {tensor.name!r} wants {start}+{length}")
        total += length
        if total > LIMIT:
            raise FileError(f"{path}: more than {LIMIT:,} bytes of weights cannot be held in one ONNX model")
        with file.open("rb") as source:
            source.seek(start)
            tensor.raw_data = source.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def function_graph(function: Any) -> Any:
    """A model-local function seen as a graph without initializers."""
    graph = needed("onnx").GraphProto()
    graph.node.extend(function.node)
    return graph


def _refuse(model: Any, path: Path) -> None:
    onnx = needed("onnx")
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if 0 < opset < OLDEST:
        raise StructureError(
            f"{path}: operator set {opset} is older than {OLDEST}; convert it by onnx.version_converter"
        )
    for node in model.graph.node:
        if any(word in node.op_type for word in QUANTISED):
            raise StructureError(f"{path}: is quantised ({node.op_type}); prune the model before it is quantised")
    if model.graph.sparse_initializer:
        raise StructureError(f"{path}: has sparse weights; make them dense before pruning")
    names = ("INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2")
    small = {getattr(onnx.TensorProto, n, None) for n in names}
    for tensor in model.graph.initializer:
        if tensor.data_type in small:
            raise StructureError(f"{path}: {tensor.name} is quantised; prune the model before it is quantised")


def _lift_constants(model: Any) -> None:
    """``Constant`` nodes become initializers, whose names every rule knows."""
    onnx = needed("onnx")
    graph = model.graph
    rest = []
    for node in graph.node:
        given = {a.name: a for a in node.attribute}
        name = next((n for n in given if n.startswith("value")), "")
        if node.op_type != "Constant" or name in ("", "value_string", "value_strings"):
            rest.append(node)
            continue
        value = onnx.helper.get_attribute_value(given[name])
        if name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
        else:
            tensor = onnx.numpy_helper.from_array(np.asarray(value, np.float32 if "float" in name else np.int64))
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(rest)
    weights = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in weights]  # old files list weights among the inputs
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)
