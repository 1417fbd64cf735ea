"""Recipes as data: round trips, refusals, and hostile files."""

import copy
import dataclasses
import importlib
import json
import pkgutil
import typing

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import openwork as ow
from openwork import methods
from openwork.core.compose import Chain, During, On
from openwork.core.protocols import Rule
from openwork.core.recipe import Recipe
from openwork.core.serial import KINDS, from_plain, to_plain
from openwork.criteria import Magnitude, Random, Saliency
from openwork.errors import FileError, OpenworkError, RecipeError
from openwork.relax import Masking, SoftmaxAttention
from openwork.rules.drop_grow import CosineFraction, DropGrow
from openwork.rules.topk import Repeat, TopK
from openwork.schedules import Cubic, OneShot, Phases, Stretch
from openwork.stats import LossGradient, SynapticFlow

COMPOSED = Recipe(
    "made",
    ow.Block(2, 3),
    Chain((On("a*", TopK(Saliency(LossGradient(2)))), During("sparse", DropGrow(fraction=CosineFraction(0.3, 10))))),
    Phases(0.25, 100, (Stretch("dense", 0.5), Stretch("soften", 0.25), Stretch("sparse", 0.25))),
    SoftmaxAttention(clip=False),
    ow.Select(include=("a", "re:b.*"), min_units=2),
)


def recipes():
    yield COMPOSED
    yield Recipe("flow", ow.NM(1, 2), Repeat(TopK(Magnitude()), 3), OneShot(0.5))
    for name in methods.names():
        yield methods.get(name)(density=0.5)


@pytest.mark.parametrize("recipe", list(recipes()), ids=lambda r: r.name)
def test_round_trips(recipe, tmp_path):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict(), allow_nan=False))) == recipe
    for name in ("r.json", "r.yaml", "r.yml"):
        recipe.save(tmp_path / name)
        assert Recipe.load(tmp_path / name) == recipe


def test_the_table_of_kinds_is_complete_and_true():
    for kind, module in KINDS.items():
        cls = getattr(importlib.import_module(module), kind)
        assert cls.__module__ == module
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen
        typing.get_type_hints(cls)  # every annotation can be checked
    rooms = ("structure", "schedules", "stats", "criteria", "allocation", "rules", "relax")
    for room in rooms:
        package = importlib.import_module(f"openwork.{room}")
        for info in pkgutil.iter_modules(package.__path__):
            for name, cls in vars(importlib.import_module(f"openwork.{room}.{info.name}")).items():
                here = getattr(cls, "__module__", "") == f"openwork.{room}.{info.name}"
                parts = isinstance(cls, type) and here and dataclasses.is_dataclass(cls) and not name.startswith("_")
                if parts and room == "rules" and not issubclass(cls, Rule) and not name.endswith("Fraction"):
                    continue
                if parts and name not in ("Tiles", "Piece", "Coupled", "Covered", "Moments", "Grams", "Product"):
                    assert name in KINDS, f"{name} of {room} cannot be written to a recipe"


def change(path, value):
    data = COMPOSED.to_dict()
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return data


def deep(n):
    data = []
    for _ in range(n):
        data = [data]
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "a recipe must be a mapping with format: 1, got 2"),
        (("kind",), "Select", "Recipe|Select: unknown key"),
        (("kind",), "Recip", "unknown kind 'Recip' in a recipe; did you mean 'Recipe'"),
        (("kind",), ["Recipe"], "kind must be a string in a recipe, got list; known: [A-Z]"),
        (("schedule", "density"), "0.5", r"Phases: density must be of type float, got '0.5'"),
        (("schedule", "density"), True, r"Phases: density must be of type float, got True"),
        (("schedule", "density"), float("nan"), r"Phases: density must be of type float, got nan"),
        (("schedule", "density"), 10**400, r"Phases: density must be of type float, got 1000"),
        (("schedule", "density"), 50, "50 % is 0.5"),
        (("schedule", "steps"), 10.5, "Phases: steps must be of type int, got 10.5"),
        (("schedule", "steps"), 10**30, "Phases: steps must be of type int, got 1000"),
        (
            ("schedule", "stretches"),
            [{"kind": "OneShot", "density": 1}],
            r"Phases: stretches must be of type tuple\[St",
        ),
        (("schedule", "stretches"), "abc", "Phases: stretches must be of type tuple"),
        (("schedule",), {"kind": "Stretch", "phase": "dense", "fraction": 1.0}, "schedule must be of type Schedule"),
        (("structure",), {"kind": "Magnitude"}, "Recipe: structure must be of type Structure, got Magnitude"),
        (("structure",), {"rows": 2}, "Recipe: structure must be of type Structure, got {'rows': 2}"),
        (("relaxation",), {"kind": "Element"}, r"Recipe: relaxation must be of type Relaxation \| None"),
        (("relaxation", "clip"), 1, "SoftmaxAttention: clip must be of type bool, got 1"),
        (("rule", "rules"), [1], r"Chain: rules must be of type tuple\[Rule, ...\]"),
        (("rule", "rules", 0, "rule", "criterion"), {"kind": "Uniform"}, "TopK: criterion must be of type Criterion"),
        (("rule", "rules", 0, "rule", "allocation"), {"kind": "Random"}, "TopK: allocation must be of type Allocation"),
        (
            ("rule", "rules", 1, "rule", "fraction"),
            {"kind": "OneShot", "density": 1},
            "fraction must be of type Fraction",
        ),
        (("rule", "rules", 1, "phase"), "sofen", "During: phase must be of type Literal"),
        (("where", "include"), ["a", 5], r"Select: include must be of type tuple\[str, ...\]"),
        (("where", "include"), ["re:("], "is not a regular expression"),
        (("where", "includes"), [], "Select: unknown key 'includes'; did you mean 'include'"),
        (("where", "min_units"), "x" * 500, r"got 'x{99}\.\.\.$"),
        (("name",), deep(60), "a recipe may hold 10000 values, nested 50 deep; this is no recipe"),
        (("name",), [0] * 10_001, "a recipe may hold 10000 values"),
    ],
)
def test_refused_data(path, value, message):
    with pytest.raises(OpenworkError, match=message):
        Recipe.from_dict(change(path, value))


def test_missing_keys_are_named():
    data = COMPOSED.to_dict()
    del data["schedule"]["steps"]
    with pytest.raises(RecipeError, match="Phases: .*missing 1 required positional argument: 'steps'"):
        Recipe.from_dict(data)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[" * 100_000),
        ("a.yaml", "[" * 3000),
        ("a.yaml", "!!python/object/apply:os.system ['true']"),
        ("a.yaml", "a: !!int ''"),
        ("a.yaml", "a: !!bool maybe"),
        ("a.yaml", "a: !!timestamp x"),
        ("a.yaml", "? [a]\n: b"),
        ("a.json", "\x00"),
        ("a.yaml", "{"),
        ("a.json", "9" * 5000),
    ],
)
def test_files_that_cannot_be_read(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match="not valid JSON or YAML"):
        Recipe.load(tmp_path / name)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(FileError, match="not valid JSON or YAML"):
        Recipe.load(tmp_path / "a.yaml")
    with pytest.raises(FileError, match="no such recipe file"):
        Recipe.load(tmp_path)


def test_aliases_cannot_multiply(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (tmp_path / "a.yaml").write_text("format: 1\nkind: Recipe\nname: *a39\n".join(["", ""]) + "\n".join(lines))
    (tmp_path / "b.yaml").write_text("\n".join(lines) + "\nformat: 1\nkind: Recipe\nname: *a39\n")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(OpenworkError):
            Recipe.load(tmp_path / name)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(KINDS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "density", "rule", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(data, path=()):
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@given(st.sampled_from(list(recipes())), st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_recipes_raise_nothing_but_our_errors(recipe, data):
    """What is read is a recipe that can be written again; everything else is refused by us."""
    plain = copy.deepcopy(recipe.to_dict())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(plain))))
        if not path:
            continue
        at = plain
        for key in path[:-1]:
            at = at[key]
        if isinstance(at, dict) and data.draw(st.booleans()):
            del at[path[-1]]
        else:
            at[path[-1]] = data.draw(JUNK)
    try:
        read = Recipe.from_dict(plain)
    except OpenworkError:
        return
    assert Recipe.from_dict(read.to_dict()) == read
    read.schedule(0)
    assert isinstance(read.rule.needs_grads, bool)
    hash(read.rule.needs)


@given(JUNK)
@settings(max_examples=150, deadline=None)
def test_any_data_raises_nothing_but_our_errors(data):
    for call in (Recipe.from_dict, from_plain):
        try:
            call(data)
        except OpenworkError:
            pass


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_raises_nothing_but_our_errors(tmp_path, text):
    (tmp_path / "any.yaml").write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(OpenworkError):
        Recipe.load(tmp_path / "any.yaml")


def test_parts_of_a_recipe_are_checked_in_python_too():
    given = {"structure": ow.Element(), "rule": TopK(Random()), "schedule": OneShot(0.5)}
    for part, wrong in {
        "structure": ow.Element,
        "rule": Magnitude(),
        "schedule": 0.5,
        "relaxation": ow.Element(),
        "where": "fc1",
    }.items():
        with pytest.raises(RecipeError, match=f"made: the {part} of a recipe must be one, got "):
            Recipe("made", **{**given, part: wrong})
    with pytest.raises(
        RecipeError, match=r"NM\(keep=2, of=4, dim=1\) keeps 0.5 by definition, but density 0.3 was asked"
    ):
        Recipe("made", ow.NM(2, 4), TopK(Random()), OneShot(0.3))
    assert Recipe("made", ow.NM(2, 4), TopK(Random()), OneShot(1.0), Masking()).density == 1.0


def test_only_plain_values_can_be_written():
    with pytest.raises(RecipeError, match="a recipe must be plain data, got"):
        to_plain(lambda: 0)
    with pytest.raises(RecipeError, match="Foreign: only openwork's own parts can be written to a recipe file"):
        to_plain(dataclasses.make_dataclass("Foreign", [])())
    assert to_plain({"a": (1, None)}) == {"a": [1, None]}
    assert from_plain({"kind": "SynapticFlow", "input_shape": [1, 8]}) == SynapticFlow((1, 8))
    assert yaml.safe_load(yaml.safe_dump(to_plain(Cubic(0.5, 0, 9)))) == to_plain(Cubic(0.5, 0, 9))
