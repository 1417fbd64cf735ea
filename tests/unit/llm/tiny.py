"""Language models of two blocks from configs, in folders, and token ids; everything a test of the block-wise driver needs."""

from functools import cache
from pathlib import Path

import torch

VOCABULARY, LENGTH = 64, 16
SHARED = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_hidden_layers": 2, "hidden_size": 32}
LLAMA = {**SHARED, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS = {
    "llama": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": False}),
    "tied": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": True, "num_hidden_layers": 3}),
    "gpt2": ("GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("OPTConfig", {**SHARED, "ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32}),
    "qwen2": ("Qwen2Config", LLAMA),
    "mixtral": ("MixtralConfig", {**LLAMA, "num_local_experts": 4}),
    "neox": ("GPTNeoXConfig", {**SHARED, "intermediate_size": 48, "num_attention_heads": 4}),
}


def build(name, dtype=torch.float32):
    """A model with random weights of a size that makes its blocks matter."""
    import transformers

    kind, options = CONFIGS[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(5)
    return model.to(dtype).eval()


@cache
def saved(name, root, dtype=torch.float32, shard="5GB"):
    """The folder of a model; made once per test session."""
    folder = Path(root) / f"{name}-{dtype}-{shard}".replace("torch.", "")
    build(name, dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def load(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options).eval()


def ids(windows=6, seed=1):
    return torch.randint(0, VOCABULARY, (windows, LENGTH), generator=torch.Generator().manual_seed(seed))
