"""A result folder: ``model.safetensors``, ``masks.safetensors``, ``openwork.json``, ``report.html``. Never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from openwork.core.masks import Masks, pack_bits, unpack_bits
from openwork.core.recipe import Recipe
from openwork.core.strict_json import dumps, numbers
from openwork.engine.result import FORMAT, Result
from openwork.errors import FileError, OpenworkError, VerificationFailed
from openwork.graph.plan import Plan, finished
from openwork.metrics.density import densities
from openwork.report.page import report_html
from openwork.runtime.layers import Packed
from openwork.ship.agreement import counts_of, demand_counts
from openwork.ship.atomic import new_folder
from openwork.ship.export import PACKED_FORMAT, load_packed
from openwork.ship.rebuilt import rebuilt
from openwork.ship.seal import demand_seal
from openwork.ship.tied import untied
from openwork.structure.cover import Covered
from openwork.zoo import build_model
from openwork.zoo.hugging_face import known_source

MODEL, MASKS, INDEX, PAGE = "model.safetensors", "masks.safetensors", "openwork.json", "report.html"
MEASURED = ("log", "metrics", "curve")  # what numbers of any kind stand in
KEYS = {"recipe": dict, "density": dict, "tensors": list, "log": list, "units": dict, "tied": dict, "files": dict}
BLOCKWISE_KEYS = {"recipe": dict, "density": dict, "tensors": list, "log": list, "blocks": list}
"""Of a language model that ``prune_blockwise`` wrote: no masks beside the weights, whose zeros say the same."""
PACKED_KEYS = {"layers": dict, "gone": list, "onednn": list, "tied": dict, "plan": dict, "result": dict}


def save(model: nn.Module, result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a pruned model and everything known about it; the folder appears whole or not at all.

    Args:
        model: the pruned model, or the small one that ``compact`` made of it. Models from the zoo or from transformers
            can be built again by ``load``.
        result: what ``prune``, ``finish`` or ``cycle`` returned for this model.
        folder: must not exist, unless ``overwrite``.
        overwrite: replace an earlier result; any other folder is refused.

    Raises:
        FileError: the folder is in the way, or the disk refuses.
        VerificationFailed: the model does not hold zeros where the masks say so.
    """
    return save_with(model, result, folder, {}, overwrite=overwrite)


def save_with(
    model: nn.Module, result: Result, folder: str | Path, more: Mapping[str, bytes], *, overwrite: bool = False
) -> Path:
    """``save``, with more files that appear together with the others: name -> content."""
    plan = getattr(model, "openwork_compaction", None)
    counts = (
        result.counts if plan is not None else densities(model, result.masks)
    )  # a small model has no zeros to count
    if counts != result.counts:
        raise VerificationFailed(
            f"the result counts {result.counts.kept} kept weights, but the model holds {counts.kept}; save the "
            "model that was pruned"
        )
    tensors, tied = untied(model.state_dict(keep_vars=True))
    units = {f"units.{n}": pack_bits(u) for n, u in result.units.items()}
    masks = {f"mask.{n}": m for n, m in result.masks.packed().items()}
    files = {MODEL: tensors_to_bytes(tensors, metadata={"format": "pt"}), MASKS: tensors_to_bytes({**masks, **units})}
    data = result.to_dict()
    data["units"] = {n: u.numel() for n, u in result.units.items()}
    data["source"] = known_source(model)
    data["plan"] = plan
    data["model_class"] = f"{type(model).__module__}.{type(model).__qualname__}"
    data["tied"] = tied
    files[PAGE] = report_html(data, result.masks).encode()
    data["files"] = {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()}
    files[INDEX] = (dumps(data, indent=1) + "\n").encode()
    with new_folder(Path(folder), overwrite) as work:
        for name, content in {**more, **files}.items():
            (work / name).write_bytes(content)
        config = getattr(model, "config", None)
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(work)  # type: ignore[union-attr]
    return Path(folder)


def load(
    folder: str | Path, model: nn.Module | None = None, *, allow_factory: bool = False
) -> tuple[nn.Module, Result]:
    """Read a result folder back: the model with its sparse weights, and the result.

    From a folder of ``export`` comes the packed model, in evaluation mode and apart from ``model``. The masks of its
    result, and of a language model that ``prune_blockwise`` wrote, are where the weights are not zero.

    Args:
        folder: written by ``save``.
        model: an instance to load into; needed when the folder does not know how to build one. For a compacted model
            it is the dense one, which is cut by the plan of the folder (a small one will do as well).
        allow_factory: also import and call the function that the folder names; only for folders you trust.

    Raises:
        FileError: missing, truncated, corrupt or foreign files, or a model that does not fit.
        OpenworkError: the model cannot be built again; pass ``model=``.
    """
    folder = Path(folder)
    data = read_index(folder)
    if data["format"] == PACKED_FORMAT:
        packed, found = load_packed(folder, data, model, allow_factory=allow_factory)
        result = _result_of_zeros(folder, found, packed)
        rows = {row["name"]: row for row in found["tensors"]}
        demand_counts(folder / INDEX, rows, result.counts.kept, result.masks)
        return packed, result
    if is_blockwise(data):
        return _load_blockwise(folder, data, model)
    if model is None:
        model = rebuilt(folder, data, allow_factory)
    elif data.get("plan") is not None and not hasattr(model, "openwork_compaction"):
        model = _recut(folder, data, model)
    if data.get("plan") is not None:
        model.openwork_compaction = data["plan"]
    tensors = _read_tensors(folder / MODEL, data)
    try:
        for alias, name in data["tied"].items():
            tensors[alias] = tensors[name]
    except KeyError as problem:
        raise FileError(f"{folder / MODEL}: tensor {problem} is missing") from None
    _fit(model, tensors, folder)
    model.load_state_dict(tensors)
    result = _result(folder, data)
    if data.get("plan") is not None:
        return model, result
    counts = densities(model, result.masks)
    if counts.kept != data["density"]["kept"]:
        raise FileError(
            f"{folder}: {INDEX} promises {data['density']['kept']} kept weights, the files hold {counts.kept}"
        )
    result.counts = counts
    return model, result


def _recut(folder: Path, data: Mapping[str, Any], dense: nn.Module) -> nn.Module:
    """The small model of a folder out of the dense one; its weights come later."""
    kind = f"{type(dense).__module__}.{type(dense).__qualname__}"
    plan = Plan.from_dict(data["plan"])
    if (data.get("source") or {}).get("kind") != "hf":
        return finished(plan.apply(dense), plan, known_source(dense))
    if kind != data.get("model_class"):  # the config of a homogeneous model says all, the dense one nothing
        raise FileError(f"{folder}: holds a {data.get('model_class')}, but model= is a {kind}")
    return rebuilt(folder, data, False).to(next(dense.parameters()).device).train(dense.training)


def read_result(folder: str | Path) -> Result:
    """Only the result of a folder (masks, counts, log), without building the model."""
    folder = Path(folder)
    data = read_index(folder)
    if data["format"] == PACKED_FORMAT:
        raise FileError(f"{folder}: is a packed model, whose masks lie in its weights; use load")
    if is_blockwise(data):
        raise FileError(f"{folder}: is a language model pruned in blocks, whose masks lie in its weights; use load")
    return _result(folder, data)


def is_blockwise(data: Mapping[str, Any]) -> bool:
    """Whether an index is that of a language model pruned block by block."""
    return "blocks" in data and "files" not in data


def dense_bytes(folder: str | Path) -> int:
    """Bytes of the weights of a result folder, all shards together, without the masks."""
    return sum(p.stat().st_size for p in Path(folder).glob("*.safetensors") if p.name != MASKS)


def read_index(folder: Path) -> dict[str, Any]:
    """``openwork.json`` of a result folder, checked."""
    data = _checked_index(folder)
    told = data["result"] if data["format"] == PACKED_FORMAT else data
    told.update({k: numbers(told[k]) for k in MEASURED if k in told})
    return data


def _checked_index(folder: Path) -> dict[str, Any]:
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileError(f"{folder}: not a result folder, it holds no {INDEX}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise FileError(f"{path}: not readable as JSON ({problem})") from None
    found = data.get("format") if isinstance(data, dict) else None
    if found == PACKED_FORMAT:
        demand_seal(path, _typed(path, data, PACKED_KEYS))
        return data
    if found == FORMAT and is_blockwise(data):
        return _typed(path, data, BLOCKWISE_KEYS)
    if found != FORMAT:
        raise FileError(
            f"{path}: format must be {FORMAT}, got {found!r}; it was written by another version or another program"
        )
    if not isinstance(data.get("source"), dict | None):
        raise FileError(f"{path}: source must be a dict or null, got {type(data['source']).__name__}")
    return _typed(path, data, KEYS)


def companions(folder: str | Path) -> list[Path]:
    """What a language model's folder holds beside its weights: the files of a tokenizer and the like."""
    if not is_blockwise(read_index(Path(folder))):
        return []
    known = ("openwork.json", "model.safetensors.index.json")
    files = sorted(p for p in Path(folder).iterdir() if p.is_file() and p.name not in known)
    return [p for p in files if p.suffix not in (".safetensors", ".bin") and not p.name.startswith(".")]


def _typed(path: Path, data: dict[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    for key, kind in kinds.items():
        if not isinstance(data.get(key), kind):
            raise FileError(f"{path}: {key} must be a {kind.__name__}, got {type(data.get(key)).__name__}")
    return data


def _read_tensors(path: Path, data: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise FileError(f"{path}: cannot be read ({problem.strerror})") from None
    known = data["files"].get(path.name)
    known = known if isinstance(known, dict) else {}
    if known.get("sha256") != hashlib.sha256(content).hexdigest():
        raise FileError(
            f"{path}: its checksum differs from {INDEX} ({len(content)} bytes, {known.get('bytes')} expected); "
            "the file is corrupt or truncated"
        )
    try:
        return tensors_from_bytes(content)
    except (SafetensorError, ValueError) as problem:
        raise FileError(f"{path}: not a safetensors file ({problem})") from None


def _result(folder: Path, data: Mapping[str, Any]) -> Result:
    packed = _read_tensors(folder / MASKS, data)

    def masks(rows: Mapping[str, Any]) -> tuple[Masks, dict[str, Tensor]]:
        shapes = {n[5:]: tuple(rows[n[5:]]["shape"]) for n in packed if n.startswith("mask.")}
        units = {n: unpack_bits(packed[f"units.{n}"], (int(size),)) for n, size in data["units"].items()}
        return Masks.unpack({n: packed[f"mask.{n}"] for n in shapes}, shapes), units

    return _assembled(folder, data, masks)


def _load_blockwise(folder: Path, data: Mapping[str, Any], model: nn.Module | None) -> tuple[nn.Module, Result]:
    """A language model of a folder that ``prune_blockwise`` wrote, by transformers."""
    if model is not None:
        raise FileError(f"{folder}: is a whole Hugging Face folder, which needs no model=; leave it out")
    try:
        model = build_model(str(folder)).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as problem:
        first = (str(problem).splitlines() or ["?"])[0]
        raise FileError(f"{folder}: transformers cannot load it ({first})") from None
    result = _result_of_zeros(folder, data, model)
    for row in data["tensors"]:
        found = int(result.masks[row["name"]].sum()) if row["name"] in result.masks else 0
        if found > row.get("kept", row["numel"]):
            raise FileError(
                f"{folder}: {row['name']} holds {found} weights that are not zero, but {INDEX} promises {row['kept']}; "
                "a file of the weights is missing or another one"
            )
    result.counts = densities(model, result.masks)
    return model, result


def _result_of_zeros(folder: Path, data: Mapping[str, Any], model: nn.Module) -> Result:
    modules = dict(model.named_modules())

    def masks(rows: Mapping[str, Any]) -> tuple[Masks, dict[str, Tensor]]:
        found = {}
        for name, row in rows.items():
            owner = modules.get(name.rpartition(".")[0])
            if row["skipped"] or owner is None:
                continue
            weight = owner.dense_weight() if isinstance(owner, Packed) else getattr(owner, name.rpartition(".")[2])
            found[name] = weight != 0
        return Masks(found), {}

    return _assembled(folder, data, masks)


def _assembled(
    folder: Path,
    data: Mapping[str, Any],
    masks_of: Callable[[Mapping[str, Any]], tuple[Masks, dict[str, Tensor]]],
) -> Result:
    """The result that a dictionary tells of; ``masks_of`` gives masks and units from its rows by name."""
    try:
        rows = {row["name"]: row for row in data["tensors"]}
        masks, units = masks_of(rows)
        coverage = [
            Covered(r["name"], tuple(r["shape"]), r["numel"], r["units"], r["skipped"], tuple(r.get("groups", ())))
            for r in rows.values()
        ]
        counts = counts_of(folder / INDEX, data["density"], rows)
        recipe = Recipe.from_dict(data["recipe"])
    except OpenworkError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as problem:
        raise FileError(f"{folder / INDEX}: incomplete or damaged ({type(problem).__name__}: {problem})") from None
    plain = {k: data.get(k) for k in (*MEASURED, "manifest")}
    groups = data["groups"] if isinstance(data.get("groups"), list) else []
    return Result(recipe, masks, units, counts, coverage, groups=groups, **plain)  # type: ignore[arg-type]


def _fit(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or extra:
        what = f"{missing[0]} is missing in the file" if missing else f"{extra[0]} is unknown to the model"
        raise FileError(
            f"{folder / MODEL}: does not fit {type(model).__name__}: {what} ({len(missing) + len(extra)} names differ)"
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
            raise FileError(
                f"{folder / MODEL}: {name} is {tuple(tensor.shape)} {tensor.dtype}, the model wants "
                f"{tuple(own[name].shape)} {own[name].dtype}"
            )
