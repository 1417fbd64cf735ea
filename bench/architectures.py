"""What becomes of every architecture: groups, a smaller model, a reload in a fresh process, exports.

    python bench/architectures.py [--quick] [--only NAME] [--out FOLDER]

Tiny configs of transformers and diffusers with random weights, and the hand-made networks of the tests. For each one:
the graph and what share of the parameters lies in a group; half of the units of every kind taken away at random; the
small model against the masked one; a reload in another process; ``torch.export`` and ONNX export of the small model,
run and compared. ``--quick`` takes a few of them, ``--only`` those whose name holds a word and keeps the rows of the
others. What fails is a row that says so.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import common
import torch
from safetensors.torch import load_file, save_file
from tests.unit.graph import architectures, hostile_nets, nets
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import openwork as ow
from openwork.graph import Example
from openwork.graph.coverage import coverage_of
from openwork.methods import random
from openwork.structure import Coupling

KINDS = ("channels", "heads", "hidden", "experts")
QUICK = (
    ("transformers", "Llama"),
    ("hand-made", "residual"),
    ("hostile", "half of a chunk"),
    ("refused", "a loop on data"),
)
SETS = {
    "transformers": [n for n in architectures.ZOO if n in architectures.TRANSFORMERS],
    "diffusers": [n for n in architectures.ZOO if n in architectures.DIFFUSERS],
    "hand-made": list(nets.NETS),
    "hostile": list(hostile_nets.HOSTILE),
    "refused": list(hostile_nets.REFUSED),
}


def build(family: str, name: str) -> tuple[nn.Module, Any]:
    """A model in eval mode, the same weights each time, and what it is called with."""
    if family in ("transformers", "diffusers"):
        model, given = architectures.build(name)
        for module in model.modules():  # a cache among the outputs is nothing to compare or to export
            if hasattr(getattr(module, "config", None), "use_cache"):
                module.config.use_cache = False
        return model, given
    return nets.build(name)[:2] if family == "hand-made" else hostile_nets.build_hostile(name)


def called(model: nn.Module, given: Any) -> list[Tensor]:
    """All tensors that a model returns."""
    args, kwargs = arguments(given)
    with torch.no_grad():
        return [t.detach().clone() for t in tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]


def arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, Mapping):
        return (), dict(given)
    return (given if isinstance(given, tuple) else (given,)), {}


def furthest(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference over the largest output, or over one where that is larger."""
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(got, wanted, strict=True) if b.numel()]
    largest = max([1.0, *(float(b.abs().max()) for _, b in pairs)])
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / largest


def why(problem: BaseException) -> str:
    """The first line of an error."""
    text = re.sub("\x1b[^m]*m", "", next((line for line in str(problem).splitlines() if line.strip()), ""))
    return f"{type(problem).__name__}: {text[:160]}"


def row(family: str, name: str, folder: Path) -> dict[str, Any]:
    """One network; the small one is saved in ``folder`` with the outputs it must give."""
    model, given = build(family, name)
    found: dict[str, Any] = {"family": family, "name": name, "refused": None}
    began = time.process_time()
    try:
        graph = ow.build_graph(model, given)
    except ow.OpenworkError as refusal:
        return {**found, "refused": str(refusal)}
    found["seconds"] = time.process_time() - began
    coverage = coverage_of(model, graph)
    found.update(
        operations=graph.n_ops,
        without_rule=dict(graph.unknown),
        params=coverage.params,
        coverage=coverage.share,
        stays=dict(coverage.stays),
        groups=dict(Counter(g.kind for g in graph.groups)),
    )
    if not graph.groups:
        return {**found, "refused": "no group: every axis stays"}
    structure = Coupling(Example.of(given), KINDS, at_least=2)
    result = ow.prune(model, random(density=0.5, structure=structure))
    small = ow.compact(model, result, example=given).eval()
    proof = ow.verify(small, model, given)
    found.update(
        small=sum(p.numel() for p in small.parameters()),
        error=proof.max_error / max(1.0, proof.largest),
        reference=proof.reference,
    )
    wanted = called(small, given)
    ow.save(small, result, folder / "result")
    save_file({str(i): t.contiguous() for i, t in enumerate(wanted)}, folder / "wanted.safetensors")
    (folder / "what.json").write_text(json.dumps([family, name]))
    found["export"] = exported(small, given, wanted)
    found["onnx"] = exported_to_onnx(small, given, wanted, folder)
    if isinstance(found["onnx"], str):  # is it the small model, or does the dense one fail as well?
        found["onnx_dense"] = exported_to_onnx(model, given, called(model, given), folder)
    return found


def exported(small: nn.Module, given: Any, wanted: list[Tensor]) -> float | str:
    """How far ``torch.export`` of the small model is from it, or why it cannot be done."""
    args, kwargs = arguments(given)
    try:
        program = torch.export.export(small, args, kwargs, strict=False).module()
        with torch.no_grad():
            out = [t for t in tree_leaves(program(*args, **kwargs)) if isinstance(t, Tensor)]
    except Exception as problem:
        return why(problem)
    return furthest(out, wanted)


def exported_to_onnx(small: nn.Module, given: Any, wanted: list[Tensor], folder: Path) -> float | str:
    """How far ONNX Runtime is from the small model, or why it cannot be asked."""
    import onnxruntime

    args, kwargs = arguments(given)
    path = folder / "small.onnx"
    try:
        torch.onnx.export(small, args, path, kwargs=kwargs, dynamo=True, verbose=False, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        named = {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
        out = session.run(None, named)
    except Exception as problem:
        return why(problem)
    return furthest([torch.from_numpy(a) for a in out], wanted)


def again(folders: list[str]) -> None:
    """In a fresh process: load every folder without pickle and print how far its outputs are from the promised ones."""
    torch.load = pickle.load = pickle.loads = None  # type: ignore[assignment]  # nobody unpickles anything here
    for folder in map(Path, folders):
        family, name = json.loads((folder / "what.json").read_text())
        model, given = build(family, name)
        small, _ = ow.load(folder / "result", model=model)
        wanted = load_file(folder / "wanted.safetensors")
        print(furthest(called(small.eval(), given), [wanted[str(i)] for i in range(len(wanted))]), flush=True)


def main(quick: bool, only: str = "") -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    ow.build_graph(nn.Linear(2, 2), torch.zeros(1, 2))  # the first graph of a process pays for imports
    result = "architectures_quick" if quick else "architectures"
    rows = {(r["family"], r["name"]): r for r in (common.earlier(result) if only else [])}
    for family, names in SETS.items():
        chosen = [n for n in names if only in n and (not quick or (family, n) in QUICK)]
        with tempfile.TemporaryDirectory() as work:
            rows |= {(family, r["name"]): r for r in measured(family, chosen, Path(work))}
        common.write(result, [*rows.values()], versions=versions())


def measured(family: str, names: list[str], work: Path) -> list[dict[str, Any]]:
    """The rows of one family, reloaded together in one fresh process."""
    rows, saved = [], []
    for i, name in enumerate(names):
        (folder := work / str(i)).mkdir()
        try:
            found = row(family, name, folder)
        except Exception as problem:
            found = {"family": family, "name": name, "refused": None, "failed": why(problem)}
        rows.append(found)
        if "onnx" in found:
            saved.append((found, folder))
        shown = {k: found[k] for k in ("coverage", "error", "export", "onnx", "refused", "failed") if k in found}
        print(f"{family:13} {name:34} {shown}", flush=True)
    if saved:
        command = [sys.executable, __file__, "--again", *(str(folder) for _, folder in saved)]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        for (found, folder), line in zip(saved, lines, strict=True):
            found["reload"] = float(line)
            found["files"] = sorted(p.name for p in (folder / "result").iterdir())
    return rows


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {n: version(n) for n in ("transformers", "diffusers", "onnx", "onnxruntime")}


def option(name: str) -> str:
    """What stands behind an option of the command line."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else ""


if __name__ == "__main__":
    if "--again" in sys.argv:
        again(sys.argv[sys.argv.index("--again") + 1 :])
    else:
        common.RESULTS = Path(option("--out") or common.RESULTS)
        main("--quick" in sys.argv, option("--only"))
