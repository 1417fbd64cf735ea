"""DeepSparse's side of `bench/engines.py`; runs in an environment of its own, without openwork.

    python -m venv other && other/bin/pip install deepsparse==1.8.0 "numpy<2"

Reads the path of a ``.npz`` from each line (``x`` and ``w``: ``(T, in)`` and ``(out, in)`` for a linear layer, images
and a kernel with same padding for a convolution), answers one line of JSON: milliseconds of single calls, one thread.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from deepsparse import compile_model
from onnx import TensorProto, helper, numpy_helper, save

SECONDS = 0.3  # of calls for one answer


def network(x: np.ndarray, w: np.ndarray) -> object:
    """One layer as an ONNX model."""
    if w.ndim == 2:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        w, shape = np.ascontiguousarray(w.T), (x.shape[0], w.shape[0])
    else:
        pad = w.shape[2] // 2
        node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=list(w.shape[2:]), pads=[pad] * 4)
        shape = (x.shape[0], w.shape[0], *x.shape[2:])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in (("x", x.shape), ("y", shape))]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def main() -> None:
    engines: dict[str, tuple[object, list[np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for line in sys.stdin:
            place = line.strip()
            if place not in engines:
                given = np.load(place)
                file = str(Path(work) / f"{len(engines)}.onnx")
                save(network(given["x"], given["w"]), file)
                engine = compile_model(file, batch_size=given["x"].shape[0], num_cores=1)
                engines[place] = (engine, [np.ascontiguousarray(given["x"])])
                np.save(place + ".y.npy", engine.run(engines[place][1])[0])
            engine, x = engines[place]
            times, end = [], time.perf_counter() + SECONDS
            while time.perf_counter() < end or len(times) < 3:
                began = time.perf_counter()
                engine.run(x, val_inp=False)
                times.append(1e3 * (time.perf_counter() - began))
            print("ANSWER " + json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
