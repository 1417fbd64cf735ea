"""Architectures of transformers, built from tiny configs: groups, equality, and a reload by plain from_pretrained."""

import time

import pytest
import torch

import openwork as ow
from openwork.graph import Example
from openwork.methods import magnitude, random
from openwork.structure import Coupling

hf = pytest.importorskip("transformers", reason="needs transformers: pip install 'openwork[hf]'")
pytestmark = pytest.mark.slow  # a few minutes in all

IDS = torch.randint(0, 60, (2, 8), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, max_position_embeddings=32)
PATCH = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
)
STAGES = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def text(kind, config, **options):
    return lambda: (getattr(hf, kind)(getattr(hf, config)(**{**TEXT, **ENDS, **options})), {"input_ids": IDS})


def image(kind, config, **options):
    return lambda: (getattr(hf, kind)(getattr(hf, config)(**options)), {"pixel_values": PIXELS})


def gpt2():
    config = hf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    return hf.GPT2LMHeadModel(config), {"input_ids": IDS}


def t5():
    config = hf.T5Config(
        d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=48, vocab_size=64, decoder_start_token_id=0
    )
    return hf.T5ForConditionalGeneration(config), {"input_ids": IDS, "decoder_input_ids": IDS}


def whisper():
    sides = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    config = hf.WhisperConfig(
        d_model=32,
        vocab_size=64,
        max_source_positions=16,
        max_target_positions=16,
        num_mel_bins=8,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
        **sides,
        **ENDS,
    )
    return hf.WhisperForConditionalGeneration(config), {
        "input_features": torch.randn(2, 8, 32),
        "decoder_input_ids": IDS,
    }


def clip():
    config = hf.CLIPConfig(
        text_config={**TEXT, **ENDS, "intermediate_size": 48}, vision_config=PATCH, projection_dim=16
    )
    return hf.CLIPModel(config), {"input_ids": IDS, "pixel_values": PIXELS}


def llava():
    words = dict(model_type="llama", num_key_value_heads=2, intermediate_size=24, **TEXT)
    config = hf.LlavaConfig(
        text_config=words, vision_config={"model_type": "clip_vision_model", **PATCH}, image_token_index=63
    )
    ids = torch.tensor([[1] + [63] * 16 + [5, 6, 7]] * 2)
    return hf.LlavaForConditionalGeneration(config), {"input_ids": ids, "pixel_values": PIXELS}


def detr():
    backbone = hf.ResNetConfig(embedding_size=8, out_features=["stage4"], **STAGES)
    sides = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
    }
    config = hf.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        num_queries=6,
        **sides,
    )
    return hf.DetrForObjectDetection(config), {"pixel_values": PIXELS}


GQA = dict(num_attention_heads=8, num_key_value_heads=2, intermediate_size=24)
# architecture -> what builds it, and how many groups of each kind it has
ZOO = {
    "GPT-2": (gpt2, {"heads": 2, "channels": 2, "hidden": 1}),
    "Llama": (text("LlamaForCausalLM", "LlamaConfig", **GQA), {"heads": 4, "channels": 2, "hidden": 1}),
    "Mistral": (text("MistralForCausalLM", "MistralConfig", **GQA), {"heads": 4, "channels": 2, "hidden": 1}),
    "Qwen2": (text("Qwen2ForCausalLM", "Qwen2Config", intermediate_size=24, num_key_value_heads=4, tie_word_embeddings=True), {"heads": 2, "channels": 2, "hidden": 1}),
    "Qwen3": (text("Qwen3ForCausalLM", "Qwen3Config", head_dim=8, num_key_value_heads=2, intermediate_size=24), {"heads": 4, "channels": 2, "hidden": 1}),
    "Mixtral": (text("MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, intermediate_size=24, num_local_experts=6), {"heads": 4, "channels": 2, "experts": 2, "hidden": 1}),
    "OPT": (text("OPTForCausalLM", "OPTConfig", ffn_dim=48, word_embed_proj_dim=32), {"heads": 2, "channels": 2, "hidden": 1}),
    "GPT-NeoX": (text("GPTNeoXForCausalLM", "GPTNeoXConfig", intermediate_size=48), {"heads": 2, "channels": 2, "hidden": 1}),
    "BERT": (text("BertForSequenceClassification", "BertConfig", intermediate_size=48), {"heads": 2, "channels": 3, "hidden": 1}),
    "DistilBERT": (text("DistilBertForSequenceClassification", "DistilBertConfig", dim=32, n_layers=2, n_heads=4, hidden_dim=48), {"heads": 2, "channels": 3, "hidden": 1}),
    "T5": (t5, {"heads": 2, "channels": 4}),
    "ResNet": (image("ResNetForImageClassification", "ResNetConfig", embedding_size=8, **STAGES), {"channels": 12}),
    "RegNet": (image("RegNetForImageClassification", "RegNetConfig", embedding_size=8, groups_width=8, **STAGES), {"channels": 20}),
    "MobileNetV1": (image("MobileNetV1ForImageClassification", "MobileNetV1Config", depth_multiplier=0.25), {"channels": 14}),
    "MobileNetV2": (image("MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.35), {"channels": 25}),
    "EfficientNet": (image("EfficientNetForImageClassification", "EfficientNetConfig", width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320), {"channels": 24}),
    "ViT": (image("ViTForImageClassification", "ViTConfig", **PATCH), {"heads": 2, "channels": 2, "hidden": 1}),
    "DeiT": (image("DeiTForImageClassification", "DeiTConfig", **PATCH), {"heads": 2, "channels": 2, "hidden": 1}),
    "Swin": (image("SwinForImageClassification", "SwinConfig", embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=32, patch_size=2), {"heads": 4, "channels": 4, "hidden": 2}),
    "ConvNeXt": (image("ConvNextForImageClassification", "ConvNextConfig", **STAGES), {"channels": 4, "hidden": 4}),
    "CLIP": (clip, {"heads": 4, "channels": 4}),
    "LLaVA": (llava, {"heads": 6, "channels": 5, "hidden": 1}),
    "Whisper": (whisper, {"heads": 6, "channels": 5, "hidden": 1}),
    "DETR": (detr, {"heads": 3, "channels": 16}),
    "YOLOS": (image("YolosForObjectDetection", "YolosConfig", num_detection_tokens=5, **{**PATCH, "image_size": [32, 32]}), {"heads": 2, "channels": 6}),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model, example = ZOO[name][0]()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval(), example


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
    kinds = [g.kind for g in graph.groups]
    assert {k: kinds.count(k) for k in set(kinds)} == ZOO[name][1]
    multiple = 4 if name == "Mixtral" else 1  # grouped products want rows of 16 bytes
    small = shrink(model, example, ("channels",), multiple=multiple)
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


def test_widths_that_no_config_can_say():
    model, example = build("GPT-2")
    result = ow.prune(model, random(density=0.5, structure=ow.heads(example=example)))
    with pytest.raises(ow.OpenworkError, match="no config gives these widths"):
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
