"""Runs ONNX models on made inputs: to learn the shape of every value, and to compare outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openwork.errors import FileError, RecipeError
from openwork.onnx.file import needed

Array = np.ndarray[Any, Any]
SHORT = 64
"""Integer values of so many entries are kept: targets of reshapes, ends of slices."""


@dataclass(frozen=True)
class Seen:
    """What one run showed: the shape and dtype of every value, and the short integer ones themselves."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]
    short: dict[str, Array]


def inputs_of(model: Any, dims: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Normal floats and small integers of the shapes that the model declares; open dimensions by ``dims``, else 2.

    Raises:
        RecipeError: an input that is no tensor, a dimension below 1, or a name in ``dims`` that no input has.
    """
    onnx = needed("onnx")
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    used: set[str] = set()
    for value in model.graph.input:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise RecipeError(f"{value.name}: an input must be a tensor whose rank is known")
        shape = []
        for d in kind.shape.dim:
            used.add(d.dim_param)
            shape.append(d.dim_value if d.HasField("dim_value") else dims.get(d.dim_param, 2))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if min(shape, default=1) < 1:
            raise RecipeError(f"{value.name}: its dimensions must be at least 1, got {shape}")
        if np.issubdtype(dtype, np.floating):
            made[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            made[value.name] = rng.integers(0, 2, shape).astype(dtype)
    unknown = set(dims) - used
    if unknown:
        names = ", ".join(sorted(filter(None, used))) or "none"
        raise RecipeError(f"no input has a dimension {sorted(unknown)[0]!r}; open dimensions: {names}")
    return made


def observe(model: Any, inputs: Mapping[str, Array]) -> Seen:
    """Run a model once with every value among its outputs.

    Raises:
        FileError: ONNX Runtime refuses the model.
    """
    onnx = needed("onnx")
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    names = [name for node in wide.graph.node for name in node.output if name]
    there = {o.name for o in wide.graph.output}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    ordered = [o.name for o in wide.graph.output]
    found = {**dict(zip(ordered, run(wide, inputs, plain=True), strict=True)), **inputs}
    arrays = {n: a for n, a in found.items() if isinstance(a, np.ndarray)}
    short = {n: a for n, a in arrays.items() if a.dtype.kind in "iu" and a.size <= SHORT}
    return Seen({n: a.shape for n, a in arrays.items()}, {n: a.dtype for n, a in arrays.items()}, short)


def run(model: Any, inputs: Mapping[str, Array], plain: bool = False) -> Sequence[Array]:
    """The outputs of a model in ONNX Runtime, on one thread; ``plain`` without its optimisations.

    Raises:
        FileError: ONNX Runtime refuses the model or the inputs.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if plain:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs: Sequence[Array] = session.run(None, dict(inputs))
    except Exception as problem:  # the runtime has a dozen error classes without a common base
        text = " ".join(str(problem).split())
        raise FileError(f"ONNX Runtime cannot run the model ({text[:300]})") from None
    return outputs
