"""Architectures of transformers and diffusers from tiny configs: groups, equality, a reload by plain from_pretrained."""

import time

import pytest
import torch
from tests.unit.graph.architectures import ZOO, build

import openwork as ow
from openwork.graph import Example
from openwork.methods import magnitude, random
from openwork.structure import Coupling

hf = pytest.importorskip("transformers", reason="needs transformers: pip install 'openwork[hf]'")
pytestmark = pytest.mark.slow  # a few minutes in all


def shrink(model, example, kinds, **bounds):
    structure = Coupling(Example.of(example), kinds, **bounds)
    result = ow.prune(model, random(density=0.5, structure=structure))
    return ow.compact(model, result, example=example)


@pytest.mark.parametrize("name", ZOO)
def test_an_architecture_becomes_smaller_and_stays_the_same(name):
    model, example = build(name)
    start = time.process_time()
    graph = ow.build_graph(model, example)
    assert time.process_time() - start < 10
    assert len(graph.of("vocabulary")) == 1 or "input_ids" not in example or name in ("T5", "CLIP", "LLaVA")
    kinds = [g.kind for g in graph.groups if g.kind != "vocabulary"]
    assert {k: kinds.count(k) for k in set(kinds)} == ZOO[name][1]
    small = shrink(model, example, ("channels",))
    proof = ow.verify(small, model, example)
    assert proof.max_error <= 1e-5 * max(1.0, proof.largest)
    assert proof.reference == "masked model"
    assert sum(p.numel() for p in small.parameters()) < 0.97 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "T5", "Swin", "BERT", "Whisper"])
def test_heads_go(name):
    model, example = build(name)
    small = shrink(model, example, ("heads",))
    assert ow.verify(small, model, example).reference == "masked model"


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Mixtral", "ConvNeXt"])
def test_hidden_widths_go_with_their_norms(name):
    model, example = build(name)
    small = shrink(model, example, ("hidden",), multiple=4)
    proof = ow.verify(small, model, example)
    assert proof.over
    assert "statistics over the units that stay" in proof.reference


def test_experts_go_with_their_router_rows():
    model, example = build("Mixtral")
    small = shrink(model, example, ("experts",), at_least=3)
    assert (
        small.model.layers[0].mlp.experts.gate_up_proj.shape[0] == small.model.layers[0].mlp.gate.weight.shape[0] == 3
    )
    assert ow.verify(small, model, example).over


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Llama", ("channels",)),
        ("Llama", ("heads",)),
        ("GPT-2", ("channels",)),
        ("Qwen2", ("heads",)),
        ("Mixtral", ("experts",)),
        ("ViT", ("channels",)),
        ("Llama", ("hidden",)),
    ],
)
def test_a_uniform_model_loads_without_us(name, kinds, tmp_path):
    model, example = build(name)
    structure = Coupling(Example.of(example), kinds, multiple=2 if "heads" not in kinds else 1)
    result = ow.prune(model, magnitude(density=0.5, structure=structure))
    small = ow.compact(model, result, example=example, homogeneous=True)
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**example).logits, small(**example).logits)


def reloaded(small, folder):
    """Through the files of transformers alone, and through ours."""
    small.save_pretrained(folder)
    return type(small).from_pretrained(folder).eval()


@pytest.mark.parametrize(
    ("name", "field"), [("Llama", "num_hidden_layers"), ("GPT-2", "n_layer"), ("ViT", "num_hidden_layers")]
)
def test_a_model_without_some_blocks_loads_without_us(name, field, tmp_path):
    model, example = build(name)
    result = ow.prune(model, random(density=0.5, structure=ow.layers(example=example)))
    before = getattr(model.config, field)
    small = ow.compact(model, result, example=example, homogeneous=True)
    assert getattr(small.config, field) == before // 2
    assert getattr(model.config, field) == before
    again = reloaded(small, tmp_path / "hf")
    with torch.no_grad():
        wanted = model(**example).logits
        torch.testing.assert_close(again(**example).logits, wanted, atol=1e-5, rtol=1e-5)
    ow.save(small, result, tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(ow.load(tmp_path / "ours")[0].eval()(**example).logits, again(**example).logits)


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_a_model_with_fewer_tokens_loads_without_us(name, tmp_path):
    model, example = build(name)
    result = ow.prune(model, random(density=0.5, structure=ow.vocabulary(example=example)))
    old_end = model.config.eos_token_id
    small = ow.compact(model, result, example=example, homogeneous=True)
    places = ow.token_map(small)
    stay = (places >= 0).nonzero().flatten()
    assert small.config.vocab_size == len(stay) == len(places) // 2
    if isinstance(old_end, int):
        new = int(places[old_end])
        assert small.config.eos_token_id == (new if new >= 0 else None)
    again = reloaded(small, tmp_path)
    ids = stay[torch.arange(6) % len(stay)][None]
    with torch.no_grad():
        torch.testing.assert_close(again(places[ids]).logits, model(ids).logits[..., stay], atol=1e-5, rtol=1e-5)


def test_widths_that_no_config_can_say():
    model, example = build("GPT-2")
    result = ow.prune(model, random(density=0.5, structure=ow.heads(example=example)))
    with pytest.raises(ow.OpenworkError, match="no config gives these widths"):
        ow.compact(model, result, example=example, homogeneous=True)
    model, example = build("Llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Tanh()  # by hand, so that the config does not know
    result = ow.prune(model, magnitude(density=0.5, structure=ow.channels(example=example)))
    with pytest.raises(
        ow.VerificationFailed, match="a model built from the new config does not compute what the small"
    ):
        ow.compact(model, result, example=example, homogeneous=True)
    with pytest.raises(ow.OpenworkError, match="needs a transformers model with a config"):
        x = torch.randn(2, 1, 8, 8)
        mlp = ow.build_model("mlp")
        ow.compact(mlp, ow.prune(mlp, random(structure=ow.channels(example=x))), homogeneous=True)


def test_a_large_model_on_the_meta_device_takes_seconds():
    sizes = dict(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336
    )
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=32000, **sizes))
    start = time.process_time()
    graph = ow.build_graph(model, {"input_ids": torch.zeros(1, 16, dtype=torch.long, device="meta")})
    assert time.process_time() - start < 15  # about 5 on a free core
    assert len(graph.of("heads")) == 64
    assert len(graph.of("channels")) == 32
