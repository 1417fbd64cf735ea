"""Suite files: what is read, what is refused, and what the cells of a grid are."""

from importlib.util import find_spec

import pytest
import yaml

from openwork.errors import FileError, OpenworkError, RecipeError
from openwork.lab import Job
from openwork.lab.cells import cells_of
from openwork.lab.facts import facts_of
from openwork.lab.suite_file import load_suite, read_suite
from openwork.structure import Block, Element

GOOD = {
    "settings": {"digits": {"model": "mlp", "data": "digits", "budget": {"epochs": 1, "lr": "1e-1"}}},
    "methods": {"magnitude": None, "global": {"method": "magnitude", "options": {"scope": "global"}}},
    "densities": [0.1, 0.5],
    "seeds": [0, 1],
}


def changed(**parts):
    return {**GOOD, **parts}


def test_a_suite_is_read(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**GOOD, "tune": {"lr": [0.1, 0.01], "validation": 0.3}}))
    suite = load_suite(tmp_path / "s.yaml")
    (setting,) = suite.settings
    assert (setting.budget.epochs, setting.budget.finetune_epochs, setting.budget.lr) == (1.0, 20, 0.1)
    assert suite.densities == (0.5, 0.1)
    assert (suite.lr, suite.validation) == ((0.01, 0.1), 0.3)
    assert [m.method for m in suite.methods] == ["magnitude", "magnitude"]
    assert suite.controls == ("dense", "extra", "random", "small")
    assert setting.structure == Element()
    assert suite.plain() == load_suite(tmp_path / "s.yaml").plain()


def test_settings_and_methods_may_have_structures_and_selections(tmp_path):
    suite = read_suite(
        changed(
            settings={
                "a": {**GOOD["settings"]["digits"], "structure": "block:8x8", "where": {"min_units": 3}},
                "b": GOOD["settings"]["digits"],
            },
            methods={"m": {"method": "magnitude", "structure": "element", "settings": ["a"]}, "acdc": {}},
            controls=["small", "dense"],
        ),
        folder=tmp_path,
    )
    assert suite.settings[0].structure == Block(8, 8)
    assert suite.settings[0].where.min_units == 3
    assert [m.name for m in suite.taking_part(suite.settings[1])] == ["acdc"]
    assert suite.methods[0].structure == Element()
    assert suite.methods[1].drive == "attach"
    assert suite.controls == ("dense", "small")


def test_a_rehearsal_is_short():
    suite = read_suite(changed(densities=[0.5, 0.2, 0.1], settings={"d": {"model": "mlp", "data": "digits"}})).quick()
    assert (suite.seeds, suite.densities) == ((0,), (0.5, 0.2))
    assert (suite.settings[0].budget.epochs, suite.settings[0].budget.finetune_epochs) == (1, 1)


DIGITS = GOOD["settings"]["digits"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "suite: must be a mapping of keys to values, got list"),
        (changed(setings={}), "suite: unknown key 'setings'; did you mean 'settings'"),
        (changed(tune={"lrs": [1]}), "tune: unknown key 'lrs'; did you mean 'lr'"),
        (changed(settings={}), "settings must name at least one of them, got .*the grid would be empty"),
        (changed(methods=None), "methods must name at least one of them, got None"),
        (changed(densities=[]), "densities must be a list with at least one entry, got"),
        (changed(seeds=3), "seeds must be a list with at least one entry, got 3"),
        (changed(seeds=[1, 1]), "seeds lists 1 more than once; leave one out"),
        (changed(densities=[50]), "densities: each must be a kept share in .0, 1., got 50.0; 5 % is 0.05"),
        (changed(densities=["half"]), "densities must be a finite number, got 'half'"),
        (changed(seeds=[True]), "each must be a whole number from 0 on, at most 2..62, got True"),
        (changed(seeds=[99999999999999999999]), "whole number from 0 on, at most 2..62, got 99999999999999999999"),
        (changed(tune={"lr": [-1]}), "each learning rate must be positive, got -1"),
        (changed(tune={"validation": 2}), "tune.validation must be a share of the training set in .0, 1., got 2"),
        (changed(tune={"lr": [1], "density": 0.3}), "tune.density: must be one of 0.5, 0.1, got 0.3"),
        (changed(controls=["densee"]), "controls: unknown control 'densee'; did you mean 'dense'"),
        (changed(settings={"d": {**DIGITS, "modl": 1}}), "settings.d: unknown key 'modl'; did you mean 'model'"),
        (changed(settings={"d": {"model": "mlp"}}), "settings.d: needs data, a name, got None"),
        (changed(settings={"d": {**DIGITS, "budget": {"epoch": 1}}}), "budget: unknown key 'epoch'; did you mean 'epo"),
        (changed(settings={"d": {**DIGITS, "budget": {"lr": "x"}}}), "budget.lr must be a finite number, got 'x'"),
        (changed(settings={"d": {**DIGITS, "budget": {"lr": -1}}}), "batch_size, lr and finetune_lr must be positive"),
        (
            changed(settings={"d": {**DIGITS, "budget": {"momentum": -1}}}),
            "momentum must be in .0, 1. and weight_decay",
        ),
        (
            changed(settings={"d": {**DIGITS, "budget": {"weight_decay": -1}}}),
            "weight_decay at least 0, got 0.9 and -1",
        ),
        (changed(settings={"d": {**DIGITS, "budget": {"batch_size": 2.5}}}), "batch_size must be a whole number"),
        (changed(settings={"d": {**DIGITS, "budget": {"lr": 10**400}}}), "budget.lr must be a finite number, got 1000"),
        (
            changed(settings={"d": {**DIGITS, "checkpoint": "no.safetensors"}}),
            "d: checkpoint: there is no file .*no.saf",
        ),
        (
            changed(settings={"d": {**DIGITS, "checkpoint": "9" * 400}}),
            "d: checkpoint: there is no file .*999; make it",
        ),
        (
            changed(settings={"d": {**DIGITS, "budget": {"precision": "bfloat"}}}),
            "Budget: unknown precision 'bfloat'; did you mean 'bfloat16'",
        ),
        (
            changed(settings={"d": {**DIGITS, "budget": {"schedule": "cosinus"}}}),
            "Budget: unknown schedule 'cosinus'; did you mean 'cosine'",
        ),
        (
            changed(settings={"d": {**DIGITS, "budget": {"accumulate": 2.5}}}),
            "accumulate must be a whole number from 1 on that divides batch_size 64, got 2.5",
        ),
        (
            changed(settings={"d": {**DIGITS, "budget": {"accumulate": 2}}}, methods={"probmask": {}}),
            "probmask on d at density 0.5: probmask: accumulate must be 1, since every forward pass draws a mask",
        ),
        (
            changed(settings={"d": {**DIGITS, "budget": {"final_lr": 0.02}}}, tune={"lr": [0.01, 0.1]}),
            "settings.d: tune.lr begins at 0.01, below final_lr 0.02; raise it or lower final_lr",
        ),
        pytest.param(
            changed(
                settings={"d": {**DIGITS, "budget": {"final_lr": 0.02}}},
                tune={"sampler": "random", "lr": {"low": 0.01, "high": 0.1}},
            ),
            "settings.d: tune.lr begins at 0.01, below final_lr 0.02; raise it or lower final_lr",
            marks=pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed"),
        ),
        (changed(settings={"d": {**DIGITS, "model_options": [1]}}), "options must be a mapping, got list"),
        (changed(settings={"d": {**DIGITS, "structure": 8}}), "structure must be a word such as 'block:8x8', got 8"),
        (changed(settings={"d": {**DIGITS, "structure": "blok"}}), "unknown structure 'blok'; did you mean 'block'"),
        (changed(settings={"d": {**DIGITS, "where": {"includ": 1}}}), "unknown key 'includ'; did you mean 'include'"),
        (changed(methods={"spoed": {}}), "unknown method 'spoed'; did you mean 'spode'"),
        (changed(methods={"snip": {"at": "later"}}), "methods.snip: at must be 'pretrained' or 'init', got 'later'"),
        (changed(methods={"small dense": {"method": "snip"}}), "methods.small dense: is the name of a control"),
        (changed(methods={"acdc": {"at": "init"}}), "at must be left out, since acdc trains and prunes in one"),
        (changed(methods={"snip": {"settings": ["digit"]}}), "there is no setting 'digit'; did you mean 'digits'"),
        (
            changed(methods={"m": {"method": "spode", "options": {"radios": 1}}}),
            "cell that cannot run: m on digits at density 0.5: spode has no option 'radios'; did you mean 'radius'",
        ),
        (
            changed(methods={"magnitude": {"structure": "nm:2:4"}}),
            "magnitude on digits at density 0.1: .*keeps 0.5 by definition",
        ),
    ],
)
def test_a_bad_suite_is_refused(data, message):
    with pytest.raises(OpenworkError, match=message):
        read_suite(data)


def test_a_bad_file_is_refused(tmp_path):
    with pytest.raises(FileError, match="no such suite file"):
        load_suite(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("settings: {a: [")
    with pytest.raises(FileError, match=r"not a YAML file .* at line"):
        load_suite(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("methods:\n  spode: {}\n  spode: {}\n")
    with pytest.raises(RecipeError, match=r"'spode' is given twice .line 3.; rename one of them"):
        load_suite(tmp_path / "twice.yaml")


def test_one_setting_of_a_file(tmp_path, monkeypatch):
    settings = {
        **GOOD["settings"],
        "other": {"model": "mlp", "data": "digits", "checkpoint": "$NO_SUCH_PLACE/w.safetensors"},
    }
    both = changed(settings=settings, methods={"magnitude": None, "spode": {"settings": ["other"]}})
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(both))
    suite = load_suite(tmp_path / "s.yaml", ["digits"])
    assert [s.name for s in suite.settings] == ["digits"]
    assert [m.name for m in suite.methods] == ["magnitude"]
    with pytest.raises(RecipeError, match=r"no setting is called 'digit'; did you mean 'digits'"):
        load_suite(tmp_path / "s.yaml", ["digit"])
    with pytest.raises(RecipeError, match=r"\$NO_SUCH_PLACE/w.safetensors: this environment variable is not set"):
        load_suite(tmp_path / "s.yaml")
    monkeypatch.setenv("NO_SUCH_PLACE", str(tmp_path))
    with pytest.raises(FileError, match=r"settings.other: checkpoint: there is no file .*w.safetensors; make it first"):
        load_suite(tmp_path / "s.yaml")
    (tmp_path / "w.safetensors").touch()
    assert load_suite(tmp_path / "s.yaml").settings[1].checkpoint == str(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("method", "options"),
    [("powerpropagation", {"prune_at": [1]}), ("powerpropagation", {"prune_at": None})],
)
def test_options_of_another_kind(method, options):
    suite = {
        "settings": {"d": {"model": "mlp", "data": "digits"}},
        "methods": {"m": {"method": method, "options": options}},
        "densities": [0.1],
        "seeds": [0],
    }
    with pytest.raises(RecipeError, match="option prune_at must be a finite number, got"):
        read_suite(suite)
    with pytest.raises(RecipeError, match="its options must be of the kinds that its signature names"):
        Job("mlp", "digits", method="sequential_attention_pp", where=3, density=0.1).build_recipe(10)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("woodfisher", {"update": "maybe"}, "woodfisher: option update must be true or false, got 'maybe'"),
        ("woodfisher", {"joint": 1}, "option joint must be true or false, got 1"),
        ("woodfisher", {"samples": "400"}, "option samples must be a whole number, got '400'"),
        ("woodfisher", {"samples": 2.5}, "option samples must be a whole number, got 2.5"),
        ("woodfisher", {"samples": True}, "option samples must be a whole number, got True"),
        ("woodfisher", {"damp": "small"}, "option damp must be a finite number, got 'small'"),
        ("woodfisher", {"damp": float("nan")}, "option damp must be a finite number, got nan"),
        ("woodfisher", {"end": "late"}, "option end must be a whole number, or null, got 'late'"),
        ("woodfisher", {"scope": "all"}, "option scope must be 'auto', 'layer' or 'global', got 'all'"),
        ("probmask", {"budget": (0.5,)}, r"option budget must be a list of 2, each a finite number, got \(0.5,\)"),
        ("spode", {"clamp": "perhaps"}, "spode: option clamp must be true or false, got 'perhaps'"),
    ],
)
def test_an_option_of_another_type_is_refused(method, options, message):
    with pytest.raises(RecipeError, match=message):
        read_suite(changed(methods={"m": {"method": method, "options": options}}))


def test_words_stand_for_booleans_and_numbers():
    def rule(**options):
        return Job("mlp", "digits", method="woodfisher", density=0.5, options=options).build_recipe(10).rule

    for word in ("false", "False", "no", "OFF", False):
        assert rule(update=word).correct is False
    for word in ("true", "True", "yes", "On", True):
        assert rule(update=word).correct is True
    assert rule(damp="1e-3").damp == 1e-3  # YAML reads it as a word
    assert Job("mlp", "digits", method="spode", options={"clamp": "no"}).build_recipe(10).rule.clamp is False
    budget = Job("mlp", "digits", method="probmask", options={"budget": [0.2, 0.5]}).build_recipe(10).schedule
    assert budget == Job("mlp", "digits", method="probmask", options={"budget": (0.2, 0.5)}).build_recipe(10).schedule


def test_paths_hold_no_null_byte():
    setting = {"model": "mlp", "data": "digits", "root": "a\0b"}
    with pytest.raises(RecipeError, match="a path must not hold a null byte; write it anew"):
        read_suite(changed(settings={"d": setting}))


def test_a_part_of_the_grid():
    suite = read_suite(changed(methods={"magnitude": None, "taylor": None}, densities=[0.5, 0.2], seeds=[0, 1]))
    assert suite.only() == suite
    part = suite.only(["taylor"], [0.2], [1])
    assert ([m.name for m in part.methods], part.densities, part.seeds) == (["taylor"], (0.2,), (1,))
    with pytest.raises(RecipeError, match="no method is called 'tailor'; did you mean 'taylor'"):
        suite.only(["tailor"])
    with pytest.raises(RecipeError, match="density must be one of 0.5, 0.2, got 0.3"):
        suite.only(densities=[0.3])
    with pytest.raises(RecipeError, match="seed must be one of 0, 1, got 2"):
        suite.only(seeds=[2])


def test_rates_may_be_tuned_at_one_density():
    data = changed(
        densities=[0.5, 0.2, 0.1], tune={"lr": [0.1, 0.01], "density": 0.2}, methods={"gradual_magnitude": {}}
    )
    suite = read_suite({**data, "sanity": True})
    cells = cells_of(suite, facts_of(suite))
    tuned = [c.key for c in cells if c.kind == "tune" and c.method == "gradual_magnitude"]
    assert tuned == [f"digits | gradual_magnitude | 0.2 | tune lr {lr}" for lr in (0.01, 0.1)]
    for cell in cells:
        if cell.kind == "run" and cell.method.startswith("gradual_magnitude"):
            assert cell.tuned == tuple(tuned)
        assert set(cell.needs) <= {c.key for c in cells}  # the long dense control and the small network have their own
    assert suite.plain()["tune_at"] == 0.2
    assert read_suite(changed()).plain().get("tune_at") is None
    assert suite.quick().tune_at == 0.5
    assert suite.only(densities=[0.1, 0.2]).densities == (0.2, 0.1)
    with pytest.raises(RecipeError, match="learning rates are tuned at density 0.2; ask for it too, got 0.1"):
        suite.only(densities=[0.1])


def test_what_every_cell_would_refuse_is_refused_before(tmp_path):
    suite = read_suite(changed(tune={"lr": [0.1], "validation": 1e-9}))
    with pytest.raises(RecipeError, match=r"tune.validation must leave samples on both sides, got 1e-09 of 1437"):
        facts_of(suite)
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    suite = read_suite(changed(settings={"d": {**DIGITS, "checkpoint": "w.safetensors"}}), folder=tmp_path)
    with pytest.raises(FileError, match="w.safetensors: not a readable safetensors file"):
        facts_of(suite)
