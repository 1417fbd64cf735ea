"""Suite files: YAML in, a checked suite out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from openwork import methods as index
from openwork.core.protocols import Structure
from openwork.core.targets import Select
from openwork.errors import FileError, RecipeError, did_you_mean
from openwork.lab.budget import Budget, default_budget
from openwork.lab.job import LARGEST_SEED
from openwork.lab.search import TUNABLE, Search
from openwork.lab.suite import (
    CONTROLS,
    DENSE,
    EXTRA,
    LONG,
    RANDOM,
    RENEWED,
    SHUFFLED,
    SMALL,
    Contestant,
    Setting,
    Suite,
    check_recipes,
)
from openwork.structure import Element
from openwork.structure.words import structure_of


def load_suite(path: Path, only: Sequence[str] = ()) -> Suite:
    """Read a suite file; ``only`` names the settings to take, all when it is empty.

    Raises:
        FileError: no such file, or not YAML; a checkpoint that is not there.
        RecipeError: an unknown key, a value of the wrong kind, an empty grid, a name given twice, or a combination of
            setting, method and density that the method refuses.
    """
    if not path.is_file():
        raise FileError(f"{path}: no such suite file")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Strict)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        where = getattr(problem, "problem_mark", None)
        at = f" at line {where.line + 1}" if where is not None else ""
        raise FileError(f"{path}: not a YAML file ({getattr(problem, 'problem', None) or problem}{at})") from None
    return read_suite(data, path.stem, path.parent, only)


def read_suite(data: Any, name: str = "suite", folder: Path = Path(), only: Sequence[str] = ()) -> Suite:
    """A suite from the content of its file.

    Relative checkpoints and roots lie beside the file; ``$NAME`` in them is an environment variable.

    Raises:
        FileError, RecipeError: as for ``load_suite``.
    """
    top = _mapping("suite", data, ("settings", "methods", "densities", "seeds", "tune", "controls", "sanity", "timed"))
    tune = _mapping("tune", top.get("tune") or {}, (*TUNABLE, "validation", "sampler", "trials", "density"))
    search = _search(tune)
    named = _named("settings", top.get("settings"))
    for wanted in only:
        if wanted not in named:
            raise RecipeError(f"suite: no setting is called {wanted!r}; {did_you_mean(wanted, named)}")
    settings = tuple(_setting(n, s, folder) for n, s in named.items() if n in (only or named))
    contestants = tuple(_contestant(n, m) for n, m in _named("methods", top.get("methods")).items())
    for contestant in contestants:
        for wanted in contestant.settings:
            if wanted not in named:
                raise RecipeError(
                    f"methods.{contestant.name}: there is no setting {wanted!r}; {did_you_mean(wanted, named)}"
                )
    validation = _number("tune.validation", tune.get("validation", 0.2))
    if not 0 < validation < 1:
        raise RecipeError(f"tune.validation must be a share of the training set in (0, 1), got {validation}")
    controls = _several("controls", top.get("controls", list(CONTROLS)), str, may_be_empty=True)
    for control in controls:
        if control not in CONTROLS:
            raise RecipeError(f"controls: unknown control {control!r}; {did_you_mean(control, CONTROLS)}")
    sanity = top.get("sanity", False)
    if not isinstance(sanity, bool):
        raise RecipeError(f"sanity: must be true or false, got {sanity!r}")
    timed = top.get("timed", 0)
    if isinstance(timed, bool) or not isinstance(timed, int) or timed < 0:
        raise RecipeError(f"timed: must be a batch size, or 0 to time nothing, got {timed!r}")
    densities = tuple(sorted(_several("densities", top.get("densities"), _share), reverse=True))
    tune_at = None if "density" not in tune else _share(tune["density"])
    if tune_at is not None and tune_at not in densities:
        raise RecipeError(f"tune.density: must be one of {', '.join(map(str, densities))}, got {tune_at}")
    suite = Suite(
        name,
        settings,
        tuple(c for c in contestants if not c.settings or any(s.name in c.settings for s in settings)),
        densities,
        tuple(_several("seeds", top.get("seeds"), _seed)),
        tuple(sorted(_several("tune.lr", tune["lr"], _rate))) if "lr" in tune and search is None else (),
        validation,
        tuple(c for c in CONTROLS if c in controls),
        sanity,
        timed,
        search,
        tune_at,
    )
    _check_rates(suite)
    check_recipes(suite)
    return suite


def _check_rates(suite: Suite) -> None:
    """Learning rates that are tuned must not begin where those of the budget end."""
    tried = suite.lr if suite.search is None else suite.search.ranges["lr"]
    for setting in suite.settings if tried else ():
        if min(tried) < setting.budget.final_lr:
            raise RecipeError(
                f"settings.{setting.name}: tune.lr begins at {min(tried):g}, below final_lr "
                f"{setting.budget.final_lr:g}; raise it or lower final_lr"
            )


class _Strict(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the usual loader keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            text = str(key.value)
            if text in seen:
                raise RecipeError(
                    f"suite: {text!r} is given twice (line {key.start_mark.line + 1}); rename one of them"
                )
            seen.add(text)
        return super().construct_mapping(node, deep)


def _search(tune: Mapping[str, Any]) -> Search | None:
    """The sampler of ``tune``, if it names one; ranges without a sampler are refused."""
    if "sampler" not in tune:
        extra = [k for k in tune if k not in ("lr", "validation", "density")]
        if extra or isinstance(tune.get("lr"), Mapping):
            raise RecipeError(f"tune.{(extra or ['lr'])[0]}: needs a sampler, such as sampler: tpe and trials: 20")
        return None
    ranges = {}
    for name in (k for k in tune if k in TUNABLE):
        ends = _mapping(f"tune.{name}", tune[name], ("low", "high"))
        low, high = (_number(f"tune.{name}.{end}", ends.get(end)) for end in ("low", "high"))
        ranges[name] = (low, high)
    return Search(tune["sampler"], tune.get("trials", 20), ranges)


def _setting(name: str, data: Any, folder: Path) -> Setting:
    owner = f"settings.{name}"
    known = ("model", "data", "model_options", "data_options", "budget", "where", "structure", "checkpoint", "root")
    given = _mapping(owner, data, known)
    for key in ("model", "data"):
        if not isinstance(given.get(key), str):
            raise RecipeError(f"{owner}: needs {key}, a name, got {given.get(key)!r}")
    budget = default_budget(given["data"])
    types = {f.name: f.default for f in fields(Budget)}
    asked: dict[str, Any] = {}
    for key, value in _mapping(f"{owner}.budget", given.get("budget") or {}, tuple(types)).items():
        asked[key] = value if isinstance(types[key], str) else _number(f"{owner}.budget.{key}", value)
    for key in ("batch_size", "accumulate"):
        if key in asked and asked[key].is_integer():  # else the budget says what is wrong
            asked[key] = int(asked[key])
    return Setting(
        name,
        given["model"],
        given["data"],
        _options(f"{owner}.model_options", given.get("model_options")),
        _options(f"{owner}.data_options", given.get("data_options")),
        replace(budget, **asked),
        _where(owner, given.get("where")) or Select(),
        _structure(owner, given.get("structure")) or Element(),
        _weights(owner, _beside(folder, given.get("checkpoint"))),
        _beside(folder, given.get("root")),
    )


def _contestant(name: str, data: Any) -> Contestant:
    owner = f"methods.{name}"
    known = ("method", "options", "at", "structure", "where", "settings")
    given = _mapping(owner, {"method": data} if isinstance(data, str) else data or {}, known)
    if (
        name.startswith((*RANDOM, EXTRA, LONG, f"{SMALL} "))
        or name in (DENSE, SMALL)
        or name.endswith((SHUFFLED, RENEWED))
    ):
        raise RecipeError(f"{owner}: is the name of a control, which is added by itself; choose another name")
    method = given.get("method", name)
    drive = index.find(str(method)).drive
    at = given.get("at", "pretrained")
    if at not in ("pretrained", "init"):
        raise RecipeError(f"{owner}: at must be 'pretrained' or 'init', got {at!r}")
    if at == "init" and drive != "prune":
        raise RecipeError(f"{owner}: at must be left out, since {method} trains and prunes in one, got 'init'")
    settings = _several(f"{owner}.settings", given["settings"], str) if "settings" in given else ()
    return Contestant(
        name,
        str(method),
        _options(f"{owner}.options", given.get("options")),
        at,
        _structure(owner, given.get("structure")),
        _where(owner, given.get("where")),
        tuple(settings),
    )


def _named(owner: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not data:
        raise RecipeError(f"suite: {owner} must name at least one of them, got {data!r}; the grid would be empty")
    return {str(k): v for k, v in data.items()}


def _mapping(owner: str, data: Any, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RecipeError(f"{owner}: must be a mapping of keys to values, got {type(data).__name__}")
    for key in data:
        if key not in known:
            raise RecipeError(f"{owner}: unknown key {key!r}; {did_you_mean(str(key), known)}")
    return dict(data)


def _options(owner: str, data: Any) -> dict[str, Any]:
    if not isinstance(data or {}, Mapping):
        raise RecipeError(f"{owner}: options must be a mapping, got {type(data).__name__}")
    return {str(k): tuple(v) if isinstance(v, list) else v for k, v in (data or {}).items()}


def _where(owner: str, data: Any) -> Select | None:
    if data is None:
        return None
    given = _mapping(f"{owner}.where", data, ("include", "exclude", "min_units"))
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return Select(**made)


def _structure(owner: str, data: Any) -> Structure | None:
    if data is None:
        return None
    if not isinstance(data, str):
        raise RecipeError(f"{owner}: structure must be a word such as 'block:8x8', got {data!r}")
    return structure_of(data)


def _beside(folder: Path, place: Any) -> str | None:
    if place is None:
        return None
    whole = os.path.expandvars(str(place))
    if "\0" in whole:
        raise RecipeError(f"suite: {place!r}: a path must not hold a null byte; write it anew")
    if "$" in whole:
        raise RecipeError(f"suite: {place}: this environment variable is not set; set it or leave the setting out")
    return str((folder / Path(whole).expanduser()).resolve())


def _weights(owner: str, place: str | None) -> str | None:
    if place is not None and not os.path.isfile(place):  # noqa: PTH113  (Path.is_file raises for long names)
        raise FileError(f"{owner}: checkpoint: there is no file {place}; make it first or leave checkpoint out")
    return place


def _several(owner: str, data: Any, read: Callable[[Any], Any], may_be_empty: bool = False) -> list[Any]:
    """A list without repetitions; ``read`` turns each entry into its value."""
    if not isinstance(data, list) or not (data or may_be_empty):
        raise RecipeError(f"suite: {owner} must be a list with at least one entry, got {data!r}")
    values = [read(v) for v in data]
    for value in values:
        if values.count(value) > 1:
            raise RecipeError(f"suite: {owner} lists {value!r} more than once; leave one out")
    return values


def _share(value: Any) -> float:
    share = _number("densities", value)
    if not 0 < share <= 1:
        raise RecipeError(f"densities: each must be a kept share in (0, 1], got {share}; 5 % is 0.05")
    return share


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_SEED:
        raise RecipeError(f"seeds: each must be a whole number from 0 on, at most 2**62, got {value!r}")
    return value


def _rate(value: Any) -> float:
    rate = _number("tune.lr", value)
    if rate <= 0:
        raise RecipeError(f"tune.lr: each learning rate must be positive, got {rate}")
    return rate


def _number(owner: str, value: Any) -> float:
    """YAML reads ``1e-3`` as a word; here it is a number."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"{owner} must be a finite number, got {value!r}")
    return number
