"""The index and the functions behind it."""

import inspect
import re

import pytest

import openwork as ow
from openwork import methods
from openwork.errors import RecipeError
from openwork.methods import index
from openwork.structure import NM, Element


@pytest.mark.parametrize("entry", methods.METHODS, ids=lambda e: e.name)
def test_an_entry_and_its_function_agree(entry):
    function = methods.get(entry.name)
    assert getattr(methods, entry.name) is function
    recipe = function(0.2)
    assert recipe.name == entry.name
    assert (recipe.drive, recipe.density) == (entry.drive, 0.2)
    assert list(inspect.signature(function).parameters)[:3] == ["density", "structure", "where"]
    doc = inspect.getdoc(function)
    order = ["Args:", "Differences:", "Cost:", "When not to use it:", "Examples:", "References:"]
    assert [line for line in doc.splitlines() if line in order] == order
    assert doc.splitlines()[0].endswith(".")
    assert ">>>" in doc
    assert all(len(line) > 0 and re.match("(held|in part|not held|open)\\b", state) for line, state in entry.claims)
    needs = bool(recipe.rule.needs)
    assert needs == ("data" in entry.needs or "input shape" in entry.needs)


def test_every_claim_belongs_to_a_method():
    assert set(index.claims()) == set(methods.names())


def test_unknown_methods_are_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"unknown method 'spodes'; did you mean 'spode'"):
        methods.get("spodes")


def test_set_has_two_names_and_hides_nothing():
    assert methods.set is methods.set_ is methods.get("set")
    assert index.find("set").module == "set_"


UNEVEN = ("set", "rigl", "str", "ecoflap", "sap", "obspa", "precrop", "masksparsity")
DEFAULTED = [n for n in methods.names() if n not in UNEVEN]


@pytest.mark.parametrize("name", DEFAULTED)
@pytest.mark.parametrize("structure", [NM(2, 4), Element(per="row")], ids=repr)
def test_structures_with_quotas_get_a_scope_that_serves_them(name, structure):
    recipe = methods.get(name)(structure=structure)
    assert recipe.density == (0.5 if structure == NM(2, 4) else methods.get(name)().density)


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("magnitude", "global"),
        ("acdc", "global"),
        ("imp", "global"),
        ("random", "erk"),
        ("set", "erk"),
        ("rigl", "erk"),
    ],
)
def test_a_scope_over_tensors_is_refused_for_quotas_at_once(name, scope):
    """AC/DC would otherwise say it at its first sparse phase, a tenth of the training later."""
    message = rf"NM\(keep=2, of=4, dim=1\) has quotas of its own, so scope must be 'layer', got '{scope}'"
    with pytest.raises(RecipeError, match=message):
        methods.get(name)(structure=NM(2, 4), scope=scope)


@pytest.mark.parametrize("name", ["spode", "spode_iterative"])
def test_options_of_spode_are_checked(name):
    function = methods.get(name)
    assert function(0.1, momentum=0.9, clamp=True).rule.momentum == 0.9
    with pytest.raises(RecipeError, match="spode has no option 'momentun'; did you mean 'momentum'"):
        function(0.1, momentun=0.9)
    with pytest.raises(RecipeError, match="has quotas of its own, so scope must be 'local', got 'global'"):
        function(structure=NM(2, 4), scope="global")
    with pytest.raises(RecipeError, match="scope must be one of global, local, got 'layer'"):
        function(0.1, scope="layer")


def test_words_that_are_modes_are_checked():
    for call, message in (
        (lambda: methods.magnitude(scope="tensor"), "scope must be 'layer', 'global' or 'erk', got 'tensor'"),
        (lambda: methods.acdc(on_decompress="one"), "on_decompress must be 'zero' or 'keep', got 'one'"),
        (lambda: methods.gradual_magnitude(masked="no"), "masked must be 'zero' or 'freeze', got 'no'"),
        (lambda: methods.imp(rate=1.0), r"rate must be a share in \(0, 1\), got 1.0"),
        (lambda: methods.imp(rewind="all"), "rewind must be 'none', 'weights' or 'lr', got 'all'"),
        (
            lambda: methods.sequential_attention_pp(schedule="cifar"),
            "schedule must be 'imagenet', 'criteo' or stretches",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            call()


def test_global_mp_can_be_gradual():
    recipe = methods.global_mp(0.1, begin=10, end=110, every=25)
    assert recipe.drive == "attach"
    assert [t for t in range(200) if recipe.schedule(t).update] == [10, 35, 60, 85, 110]


def test_recipes_of_methods_are_equal_when_their_arguments_are():
    assert methods.spode(0.1) == methods.spode(0.1)
    assert methods.spode(0.1) != methods.spode(0.1, radius=1.2)
    assert isinstance(methods.spode(0.1), ow.Recipe)
