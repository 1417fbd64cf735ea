"""Names, folders, functions of the user, and building a model again from its source."""

import copy
import json
import sys
import textwrap

import pytest
import torch
from torch import nn

from openwork.errors import FileError, RecipeError
from openwork.zoo import build_model, rebuild_model
from openwork.zoo.registry import ZOO

VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16,
       "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
       "patch_size": 4, "num_channels": 1}  # fmt: skip
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 16, "n_layer": 1, "n_head": 2,
        "vocab_size": 30, "n_positions": 12, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"models_{abs(hash(tmp_path))}"
    code = """
        from torch import nn
        def make(classes=3, bias=True): return nn.Linear(4, classes, bias=bias)
        def plain(): return nn.Linear(4, 2)
        def number(): return 7
    """
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
    return name


@pytest.mark.parametrize("name", ZOO)
def test_a_model_of_the_zoo_is_built_again_from_json(name):
    model = build_model(name, input_shape=(1, 12, 12), classes=4)
    source = json.loads(json.dumps(model.openwork_source))
    again = rebuild_model(source)
    assert shapes(again) == shapes(model)
    assert again.openwork_source == model.openwork_source


def test_options_and_defaults_are_written_out():
    model = build_model("mlp", classes=4, hidden=(5, 6))
    assert model.openwork_source == {
        "kind": "zoo", "name": "mlp", "options": {"input_shape": [1, 8, 8], "classes": 4, "hidden": [5, 6]},
    }  # fmt: skip


def test_the_source_survives_a_copy_and_stays_out_of_the_weights():
    model = build_model("mlp")
    assert copy.deepcopy(model).openwork_source == model.openwork_source
    assert copy.deepcopy(model).openwork_source is not model.openwork_source
    assert not any("openwork" in name for name in model.state_dict())


def test_a_factory_is_offered_shape_and_classes(module):
    model = build_model(f"{module}:make", input_shape=(1, 8, 8), classes=5, bias=False)
    assert shapes(model) == {"weight": (5, 4)}
    assert shapes(build_model(f"{module}:plain", input_shape=(1, 8, 8), classes=5))["weight"] == (2, 4)
    source = json.loads(json.dumps(model.openwork_source))
    assert source == {"kind": "factory", "name": f"{module}:make", "options": {"classes": 5, "bias": False}}
    assert shapes(rebuild_model(source, allow_factory=True)) == shapes(model)


def test_code_named_in_a_file_is_not_imported_unasked(module):
    source = {"kind": "factory", "name": f"{module}:make", "options": {}}
    with pytest.raises(RecipeError, match=rf"built by {module}:make; .* is your decision: pass allow_factory=True"):
        rebuild_model(source)
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet9", {}), "unknown model 'resnet9': neither .*; did you mean 'resnet8'"),
        (("mlp", {"hiden": 3}), "mlp has no option 'hiden'; did you mean 'hidden'"),
        (("{}:number", {}), ":number must return a torch.nn.Module, got int"),
        (("{}:make", {"biass": 1}), r"cannot be called with \['biass'\]: got an unexpected keyword argument"),
        (("{}:nothing", {}), "has no 'nothing'"),
        (("{}_absent:make", {}), "there is no module"),
    ],
)
def test_what_names_no_model_is_refused(module, arguments, message):
    name, options = arguments
    with pytest.raises(RecipeError, match=message):
        build_model(name.format(module), **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "a model source must hold kind, name and options, got None"),
        ({"kind": "zoo", "name": "mlp"}, "a model source must hold kind, name and options"),
        (
            {"kind": "zo", "name": "mlp", "options": {}},
            "unknown kind of model source 'zo'; did you mean 'zoo'",
        ),
        ({"kind": "zoo", "name": "mpl", "options": {}}, "unknown model 'mpl'; did you mean 'mlp'"),
        ({"kind": "zoo", "name": "mlp", "options": {"depth": 3}}, "mlp has no option 'depth'"),
        (
            {"kind": "hf", "name": "x", "options": {}},
            "x: architectures must name a model class of transformers .*, got none",
        ),
    ],
)
def test_a_source_of_another_form_is_refused(source, message):
    with pytest.raises(RecipeError, match=message):
        rebuild_model(source)


@pytest.mark.parametrize("text", [None, "{", "\xff"])
def test_a_folder_needs_a_config(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match=r"must hold a readable config\.json of a Hugging Face model"):
        build_model(str(tmp_path))


def test_a_folder_is_refused_for_options_pickles_and_other_architectures(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(VIT))
    with pytest.raises(RecipeError, match=r"a Hugging Face folder takes no options, got \['depth'\]"):
        build_model(str(tmp_path), depth=3)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(FileError, match=r"holds weights only as pickles \(\.bin\)"):
        build_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    config.write_text(json.dumps({**VIT, "architectures": ["AutoModel"]}))
    with pytest.raises(
        RecipeError,
        match=r"architectures must name a model class of transformers .*, got AutoModel; code that a folder",
    ):
        build_model(str(tmp_path))


def test_a_missing_transformers_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text(json.dumps(VIT))
    with pytest.raises(RecipeError, match=r"needs transformers; install it: pip install 'openwork\[hf\]'"):
        build_model(str(tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of transformers and what it imports
@pytest.mark.parametrize("config", [VIT, GPT2], ids=["vit", "gpt2"])
def test_a_folder_with_and_without_weights(tmp_path, config):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")
    (tmp_path / "config.json").write_text(json.dumps(config))
    untrained = build_model(str(tmp_path), input_shape=(1, 8, 8), classes=2)
    untrained.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    trained = build_model(str(tmp_path))
    assert isinstance(trained, nn.Module)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), untrained.parameters(), strict=True))
    again = rebuild_model(json.loads(json.dumps(trained.openwork_source)))
    assert shapes(again) == shapes(trained)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_config_that_transformers_does_not_know(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")
    (tmp_path / "config.json").write_text(json.dumps({**VIT, "model_type": "no-such-model"}))
    with pytest.raises(RecipeError, match="transformers does not know this model"):
        build_model(str(tmp_path))
