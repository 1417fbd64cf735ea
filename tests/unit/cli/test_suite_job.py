"""`openwork prune --suite`: one run of a suite file, the recipes of full scale among them, on folders in the real forms."""

import json
import random
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.unit.data.test_cifar import python2
from tests.unit.data.test_criteo import line
from tests.unit.data.test_folders import layout, picture

from openwork.cli import main
from openwork.cli.main import build_parser
from openwork.cli.prune import job_of
from openwork.data import cifar
from openwork.lab.cells import cells_of
from openwork.lab.facts import facts_of
from openwork.lab.suite_file import load_suite, read_suite
from openwork.ship import load

RECIPES = Path(__file__).parents[3] / "recipes"
ROWS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Twelve pictures, rows or three hundred clicks each."""
    root = tmp_path_factory.mktemp("data")
    layout(root / "imagenet")
    tiny, lines = root / "tiny-imagenet", []
    for number, wnid in enumerate(("n01", "n02", "n03")):
        for index in range(4):
            picture(tiny / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", (80 * number, 40, 20 * index), (64, 64))
        picture(tiny / "val" / "images" / f"val_{number}.JPEG", (80 * number, 40, 30), (64, 64))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (tiny / "val" / "val_annotations.txt").write_text("".join(lines))
    (tiny / "wnids.txt").write_text("n01\nn02\nn03\n")
    (root / "cifar100" / "cifar-100-python").mkdir(parents=True)
    for seed, side in enumerate(("train", "test")):
        rows = np.random.default_rng(seed).integers(0, 256, (ROWS, 3072), dtype=np.uint8)
        labels = {"fine_labels": list(range(88, 100)), "coarse_labels": [0] * ROWS}
        (root / "cifar100" / "cifar-100-python" / side).write_bytes(python2(rows, **labels))
    ten = root / "cifar10" / "cifar-10-batches-py"
    ten.mkdir(parents=True)
    for seed, side in enumerate(("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))):
        rows = np.random.default_rng(seed).integers(0, 256, (ROWS, 3072), dtype=np.uint8)
        (ten / side).write_bytes(python2(rows, labels=[i % 10 for i in range(ROWS)]))
    rng = random.Random(0)
    (root / "criteo").mkdir()
    (root / "criteo" / "train.txt").write_text("\n".join(line(rng) for _ in range(300)) + "\n")
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("OPENWORK_DATA", "")
    for side in ("train", "test"):
        monkeypatch.setitem(cifar.ROWS_100, side, ROWS)
        monkeypatch.setitem(cifar.ROWS_10, side, ROWS)


SHORT = {
    # phases need steps: 30 of the table of ImageNet, 50 of that of Criteo
    "imagenet": ["--epochs", "30", "--batch-size", "12", "--accumulate", "2", "--lr", "0.01", "--model-option", "width=16",
                 "--data-option", "size=16"],
    "criteo": ["--epochs", "10", "--batch-size", "54", "--data-option", "bins=20", "--model-option", "hidden=[20]"],
    "spode_cifar100": ["--epochs", "2", "--finetune-epochs", "1", "--model-option", "width=4"],
    "spode_cifar10": ["--epochs", "2", "--finetune-epochs", "1", "--model-option", "width=4"],
    "spode_structured": ["--epochs", "2", "--finetune-epochs", "1", "--model-option", "width=4"],
    "spode_imagenet": ["--epochs", "1", "--finetune-epochs", "10", "--batch-size", "12", "--model-option", "width=4",
                       "--lr", "0.001", "--finetune-lr", "0.001", "--data-option", "size=16"],
    "spode_tiny_imagenet": ["--epochs", "1", "--finetune-epochs", "1", "--model-option", "width=4",
                            "--data-option", "size=16"],
}  # fmt: skip
RUNS = {
    "imagenet": ("imagenet", "blocks of 8", "sequential_attention_pp", 0.1, 90),
    "criteo": ("criteo", "blocks of 5", "sequential_attention_pp", 0.05, 25 * 5),
    "spode_cifar100": ("cifar100", "ResNet-20", "spode", 0.05, 200),
    "spode_cifar10": ("cifar10", "WRN-20", "spode", 0.05, 200),
    "spode_structured": ("cifar100", "ResNet-20", "spode", 0.37, 200),
    "spode_imagenet": ("imagenet", "ResNet-50", "gradual_magnitude", 0.1, 90),  # in rounds it takes a minute
    "spode_tiny_imagenet": ("tiny-imagenet", "ResNet-50", "magnitude", 0.1, 100),
}


def chosen(recipe, root):
    folder, setting, method, density, _ = RUNS[recipe]
    suite = ["--suite", str(RECIPES / f"{recipe}.yaml"), "--setting", setting, "--method", method]
    return ["prune", *suite, "--density", str(density), "--root", str(root / folder)]


def commands(recipe, root):
    """The commands that the head of a recipe names, on the generated folder."""
    text = (RECIPES / f"{recipe}.yaml").read_text()
    lines = [part.lstrip("# ") for part in text.splitlines() if part.startswith("#   ")]
    for command in "\n".join(lines).replace("\\\n", "").splitlines():
        words = shlex.split(command.replace(f"recipes/{recipe}.yaml", str(RECIPES / f"{recipe}.yaml")))
        given = dict(zip(words, words[1:], strict=False))
        for option in ("--out", "--checkpoint"):  # there is no such file yet
            if option in given:
                words = [w for w in words if w not in (option, given[option])]
        words[words.index("--root") + 1] = str(root / RUNS[recipe][0])
        yield words[words.index("openwork") + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_recipes_of_full_scale_are_checked(recipe, folders, capsys):
    """Every cell by the code of ``openwork compare``, the commands that the file names by that of ``openwork prune``."""
    folder, setting, method, _, steps = RUNS[recipe]
    found = list(commands(recipe, folders))
    assert any("--suite" in words for words in found)
    smaller = {"batch_size": 54} if recipe == "criteo" else {}  # 25 steps are too few for its phases
    more = ["--batch-size", "54"] if smaller else []
    for words in found:
        assert main([*words, *more, "--dry-run", "--quiet"]) == 0, capsys.readouterr().err
    data = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    one = data["settings"][setting]
    budget = {**one["budget"], **smaller}
    data["settings"] = {setting: {**one, "budget": budget, "root": str(folders / folder)}}
    data["methods"] = {n: {k: v for k, v in m.items() if k != "settings"} for n, m in data["methods"].items()}
    suite = read_suite({**data, "controls": []})
    cells = [c for c in cells_of(suite, facts_of(suite)) if c.role == "method"]
    assert len(cells) == sum(len(suite.taking_part(s)) for s in suite.settings) * len(suite.densities) * len(
        suite.seeds
    )
    capsys.readouterr()
    assert main([*chosen(recipe, folders), *more, "--dry-run", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dense_steps"] == steps
    assert plan["recipe"]["name"] == method


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_recipes_of_full_scale_run(recipe, folders, tmp_path):
    out = tmp_path / "out"
    assert main([*chosen(recipe, folders), *SHORT[recipe], "--out", str(out), "--quiet", "--seed", "1"]) == 0
    _, result = load(out)
    assert result.recipe.name == RUNS[recipe][2]
    assert result.manifest["seed"] == 1
    budget = load_suite(RECIPES / f"{recipe}.yaml", [RUNS[recipe][1]]).settings[0].budget.plain()
    changed = {word[2:].replace("-", "_") for word in SHORT[recipe]}
    kept = {k: v for k, v in budget.items() if k not in changed}
    assert kept.items() <= result.manifest["budget"].items()
    assert result.manifest["budget"]["epochs"] == float(SHORT[recipe][1])
    assert all(torch.isfinite(torch.tensor(list(m.values()))).all() for m in result.metrics.values())
    assert 0 < result.density < 1


SUITE = {
    "settings": {
        "small": {"model": "mlp", "data": "digits", "budget": {"epochs": 1, "finetune_epochs": 1, "accumulate": 4}},
        "blocks": {"model": "mlp", "data": "digits", "structure": "block:8x8", "model_options": {"hidden": [16]}},
    },
    "methods": {
        "all": {"method": "magnitude", "options": {"scope": "global"}},
        "fresh": {"method": "snip", "at": "init", "settings": ["small"]},
    },
    "densities": [0.5, 0.1],
    "seeds": [0],
    "tune": {"lr": [0.1], "density": 0.1},
}


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


def test_a_run_of_a_suite_is_that_of_its_options(suite, tmp_path, capsys):
    alone = ["--model", "mlp", "--data", "digits", "--epochs", "1", "--finetune-epochs", "1", "--accumulate", "4"]
    given = ["--set", "scope=global", "--density", "0.5"]
    assert main(["prune", *alone, *given, "--out", str(tmp_path / "a"), "--quiet"]) == 0
    cell = ["--suite", str(suite), "--setting", "small", "--method", "all", "--density", "0.5"]
    assert main(["prune", *cell, "--out", str(tmp_path / "b"), "--quiet"]) == 0
    (model, one), (again, two) = load(tmp_path / "a"), load(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert one.manifest["budget"] == two.manifest["budget"]
    fresh = ["--suite", str(suite), "--setting", "small", "--method", "fresh", "--density", "0.1"]
    assert main(["prune", *fresh, "--out", str(tmp_path / "c"), "--quiet"]) == 0
    assert load(tmp_path / "c")[1].manifest["at"] == "init"
    # the only method of the setting need not be named
    blocks = ["--suite", str(suite), "--setting", "blocks", "--density", "0.1", "--epochs", "3"]
    capsys.readouterr()
    assert main(["prune", *blocks, "--dry-run", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["recipe"]["rule"]["allocation"]["kind"], plan["dense_steps"]) == ("Global", 3 * 23)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--suite: --setting must name one of 'blocks', 'small', since prune runs one of them"),
        (["--setting", "small"], "--suite: --method must name one of 'all', 'fresh'"),
        (["--setting", "small", "--method", "all"], "--suite: --density must name one of '0.5', '0.1'"),
        (["--setting", "smal"], "suite: no setting is called 'smal'; did you mean 'small'"),
        (["--setting", "small", "--method", "al"], "suite: no method is called 'al'; did you mean 'all'"),
        (["--setting", "blocks", "--method", "fresh"], "suite: no method is called 'fresh'; known: all"),
        (["--setting", "blocks", "--density", "0.3"], "suite: density must be one of 0.5, 0.1, got 0.3"),
        (
            ["--model", "mlp"],
            "--suite names the model, the data and the methods; leave out --model, or change the file",
        ),
        (["--data", "digits", "--set", "a=b"], "leave out --data, --set, or change the file"),
        (["--min-units", "1", "--at", "init"], "leave out --at, --min-units, or change the file"),
        (["--macs", "0.5"], "leave out --macs, or change the file"),
    ],
)
def test_a_wrong_choice_in_a_suite_is_refused(options, message, suite, capsys):
    assert main(["prune", "--suite", str(suite), *options, "--dry-run"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_setting_without_a_suite_is_refused(capsys):
    assert main(["prune", "--setting", "small", "--dry-run"]) == 2
    message = "--setting 'small' is one of a suite; give its file with --suite, or leave it out"
    assert message in " ".join(capsys.readouterr().err.split())


def test_checkpoints_of_a_suite_are_for_methods_that_begin_with_them(tmp_path):
    (tmp_path / "dense.safetensors").write_bytes(b"")
    setting = {**SUITE["settings"]["small"], "checkpoint": "dense.safetensors"}
    methods = {"magnitude": {}, "acdc": {}, "snip": {"at": "init"}, "imp": {}}
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump({"settings": {"s": setting}, "methods": methods, "densities": [0.5], "seeds": [0]})
    )
    found, other = {}, str(tmp_path / "other.safetensors")
    for method in methods:
        line = ["prune", "--suite", str(tmp_path / "s.yaml"), "--method", method]
        found[method] = job_of(build_parser().parse_args(line)).checkpoint
        assert job_of(build_parser().parse_args([*line, "--checkpoint", other])).checkpoint == other
    assert found == {"magnitude": str(tmp_path / "dense.safetensors"), "acdc": None, "snip": None, "imp": None}
