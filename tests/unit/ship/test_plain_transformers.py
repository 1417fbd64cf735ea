"""Models that the user made with transformers, not with ``build_model``: their folders say how to build them."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.errors import FileError, OpenworkError
from openwork.methods import group_importance, magnitude
from openwork.zoo.hugging_face import known_source

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'openwork[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers and what it imports

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 60}
IDS = torch.arange(12)[None]


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def bert(kind="BertForSequenceClassification"):
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SMALL, num_labels=3)).eval()


@pytest.mark.parametrize("make", [bert, lambda: bert("BertModel"), lambda: llama(torch.bfloat16)])
def test_a_pruned_model_is_built_again_without_being_passed(make, tmp_path):
    model = make()
    result = ow.prune(model, magnitude(density=0.5))
    ow.save(model, result, tmp_path / "r")
    again, found = ow.load(tmp_path / "r")
    assert type(again) is type(model)
    assert found.counts == result.counts
    with torch.no_grad():
        assert torch.equal(again.eval()(IDS)[0], model(IDS)[0])


def test_a_fresh_process_loads_a_compacted_one(tmp_path):
    model = llama()
    structure = ow.hidden(example={"input_ids": IDS})
    result = ow.prune(model, group_importance(structure=structure), target={"params": 0.9})
    small = ow.compact(model, result)
    ow.save(small, result, tmp_path / "r")
    code = (
        "import sys, torch, openwork as ow\n"
        "model = ow.load(sys.argv[1])[0].eval()\n"
        "print(float(model(torch.arange(12)[None]).logits.double().sum()), sum(p.numel() for p in model.parameters()))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True, check=True)
    total, size = run.stdout.split()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    assert int(size) == sizes[0] < sizes[1]
    assert float(total) == pytest.approx(float(small(IDS).logits.double().sum()), abs=1e-4)


def test_a_packed_one_is_built_again(tmp_path):
    model = bert()
    result = ow.prune(model, magnitude(density=0.25, structure=ow.Block(8, 8)))
    packed = ow.pack(model, structure=ow.Block(8, 8), plan="always", example=IDS)
    ow.export(packed, result, tmp_path / "p")
    again, _ = ow.load(tmp_path / "p")
    with torch.no_grad():
        assert torch.allclose(again(IDS)[0], model(IDS)[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_that_left_a_homogeneous_model_need_no_dense_one_to_be_cut(tmp_path, dtype):
    model = llama()
    for part in (*model.model.layers, model.model.embed_tokens, model.model.norm, model.lm_head):
        part.to(dtype)  # all that has weights; the config still says float32
    dense = copy.deepcopy(model)
    recipe = group_importance(structure=ow.layers(example={"input_ids": IDS}))
    result = ow.prune(model, recipe, target={"params": 0.555})
    small = ow.compact(model, result, homogeneous=True)
    ow.save(small, result, tmp_path / "r")
    for given in (None, dense, copy.deepcopy(small)):
        again, _ = ow.load(tmp_path / "r", given)
        assert again.config.num_hidden_layers == len(again.model.layers) == 2
        assert again.dtype == dtype
        with torch.no_grad():
            assert torch.equal(again(IDS).logits, small(IDS).logits)
    assert len(dense.model.layers) == 4
    with pytest.raises(FileError, match=r"holds a transformers\..*LlamaForCausalLM, but model= is a .*BertModel"):
        ow.load(tmp_path / "r", bert("BertModel"))


def test_only_what_the_config_builds_has_a_source():
    source = known_source(bert())
    assert source is not None
    assert json.loads(json.dumps(source)) == source
    assert (source["kind"], source["name"]) == ("hf", "BertForSequenceClassification")
    changed = bert()
    changed.classifier = nn.Linear(32, 7)
    own = type("Mine", (transformers.BertModel,), {"__module__": "mine"})(transformers.BertConfig(**SMALL))
    quantized = bert()
    quantized.config.quantization_config = {"bits": 4}
    for model in (changed, own, quantized, nn.Linear(3, 3)):
        assert known_source(model) is None


def test_a_class_of_the_users_own_must_be_passed(tmp_path):
    own = type("Mine", (transformers.BertModel,), {"__module__": "mine"})(transformers.BertConfig(**SMALL))
    ow.save(own, ow.prune(own, magnitude(density=0.5)), tmp_path / "r")
    with pytest.raises(OpenworkError, match=r"does not say how to build its model \(mine.Mine\)"):
        ow.load(tmp_path / "r")
