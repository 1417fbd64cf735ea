"""Tiny configs of the architectures of transformers and diffusers, with random weights, and their groups."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

try:
    import transformers as hf
except ImportError:
    hf = None

try:
    import diffusers as df
except ImportError:
    df = None

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
TRANSFORMERS = {
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


def latents(kind, shape, **options):
    """A network of diffusers on noise of a shape; the other inputs by their names."""
    inputs = {
        name: options.pop(name) for name in ("timestep", "class_labels", "encoder_hidden_states") if name in options
    }
    name = "hidden_states" if kind.startswith("DiT") else "sample"
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return lambda: (getattr(df, kind)(**options), {name: noise, **inputs})


def around(word, attention=""):
    """Two blocks down and two up, one pair with attention."""
    return {
        "down_block_types": ("DownBlock2D", f"{attention}Down{word}"),
        "up_block_types": (f"{attention}Up{word}", "UpBlock2D"),
    }


BLOCKS = dict(block_out_channels=(16, 32), norm_num_groups=4)
STEPS = torch.tensor([1, 2])
UNET = dict(sample_size=16, layers_per_block=1, attention_head_dim=8, timestep=torch.tensor(3), **BLOCKS)
DIFFUSERS = {
    "UNet2DModel": (latents("UNet2DModel", (2, 3, 16, 16), in_channels=3, out_channels=3, **UNET, **around("Block2D", "Attn")), {"channels": 14, "heads": 4, "hidden": 12}),
    "UNet2DConditionModel": (latents("UNet2DConditionModel", (2, 4, 16, 16), cross_attention_dim=24, encoder_hidden_states=torch.ones(2, 5, 24), **UNET, **around("Block2D", "CrossAttn")), {"channels": 18, "heads": 8, "hidden": 16}),
    "AutoencoderKL": (latents("AutoencoderKL", (2, 3, 16, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, **BLOCKS), {"channels": 19, "hidden": 16}),
    "DiT": (latents("DiTTransformer2DModel", (2, 4, 16, 16), timestep=STEPS, class_labels=STEPS, num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=16, patch_size=4, num_embeds_ada_norm=10, norm_num_groups=4), {"channels": 6, "heads": 2, "hidden": 1}),
}  # fmt: skip
ZOO = {**(TRANSFORMERS if hf else {}), **(DIFFUSERS if df else {})}


def build(name):
    torch.manual_seed(0)
    model, example = ZOO[name][0]()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval(), example
