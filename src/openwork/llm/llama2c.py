"""Checkpoints of llama2.c (``stories260K.bin`` and its ``tok512.bin``) -> a folder that transformers loads."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from openwork.errors import FileError
from openwork.ship.atomic import new_folder

HEADER = 7
"""int32: dim, hidden, layers, heads, key-value heads, vocabulary (negative: own output head), context."""


def convert_llama2c(weights: str | Path, tokenizer: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write ``config.json``, ``model.safetensors``, ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        weights: version-0 file of llama2.c: seven int32, then float32 arrays.
        tokenizer: its tokenizer file: int32 longest, then float32 score, int32 length and bytes of every token.
        out: new folder.
        overwrite: replace an earlier result.

    Returns:
        The folder.

    Raises:
        FileError: a file that is missing, truncated or of another format.
    """
    config, tensors = read_weights(Path(weights))
    pieces = read_pieces(Path(tokenizer), config["vocab_size"])
    files = {
        "config.json": _text(config),
        "tokenizer.json": _text(tokenizer_json(pieces)),
        "tokenizer_config.json": _text({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            "model_max_length": config["max_position_embeddings"], "clean_up_tokenization_spaces": False,
        }),
        "model.safetensors": to_bytes(tensors, metadata={"format": "pt"}),
        "openwork.json": _text({"converted": Path(weights).name, "format": 1}),
    }  # fmt: skip
    with new_folder(Path(out), overwrite) as work:
        for name, content in files.items():
            (work / name).write_bytes(content)
    return Path(out)


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a version-0 file, under the names of transformers' Llama.

    Queries and keys are stored in pairs (interleaved RoPE); transformers wants halves, so the rows of each head are
    permuted from (pairs, 2) to (2, pairs).
    """
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise FileError(f"{path}: the checkpoint cannot be read ({problem.strerror})") from None
    if len(raw) < 4 * HEADER:
        raise FileError(f"{path}: too short to be a llama2.c checkpoint ({len(raw)} bytes)")
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", raw[: 4 * HEADER])
    tied, vocab = vocab > 0, abs(vocab)
    good = 0 < dim < 1 << 16 and 0 < layers < 1 << 10 and 0 < heads <= dim and 0 < kv_heads <= heads
    if not (good and hidden > 0 and context > 0 and dim % heads == 0 and heads % kv_heads == 0):
        raise FileError(f"{path}: not the header of a version-0 llama2.c checkpoint")
    head = dim // heads
    kv = head * kv_heads
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("embed", (vocab, dim)), ("norm1", (layers, dim)), ("wq", (layers, dim, dim)), ("wk", (layers, kv, dim)),
        ("wv", (layers, kv, dim)), ("wo", (layers, dim, dim)), ("norm2", (layers, dim)), ("w1", (layers, hidden, dim)),
        ("w2", (layers, dim, hidden)), ("w3", (layers, hidden, dim)), ("norm", (dim,)),
        ("rope", (2, context, head // 2)),
    ]  # fmt: skip
    if not tied:
        shapes.append(("head", (vocab, dim)))
    wanted = sum(int(np.prod(shape)) for _, shape in shapes)
    values = np.frombuffer(raw[4 * HEADER :], dtype="<f4") if len(raw) % 4 == 0 else np.empty(0, "<f4")
    if len(values) != wanted:
        raise FileError(f"{path}: its header asks for {wanted} numbers, the file holds {len(values)}; truncated?")
    arrays, at = {}, 0
    for name, shape in shapes:
        size = int(np.prod(shape))
        arrays[name] = torch.from_numpy(values[at : at + size].reshape(shape).astype("float32"))
        at += size
    tensors = {"model.embed_tokens.weight": arrays["embed"], "model.norm.weight": arrays["norm"]}
    if not tied:
        tensors["lm_head.weight"] = arrays["head"]
    places = {"wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj"}
    places |= {"w3": "mlp.up_proj", "norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    for i in range(layers):
        for name, place in places.items():
            tensors[f"model.layers.{i}.{place}.weight"] = arrays[name][i]
        tensors[f"model.layers.{i}.self_attn.q_proj.weight"] = _halves(arrays["wq"][i], heads)
        tensors[f"model.layers.{i}.self_attn.k_proj.weight"] = _halves(arrays["wk"][i], kv_heads)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim, "intermediate_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": tied,
        "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
    }  # fmt: skip
    return config, {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _halves(weight: Tensor, heads: int) -> Tensor:
    out, inn = weight.shape
    return weight.view(heads, out // heads // 2, 2, inn).transpose(1, 2).reshape(out, inn)


def read_pieces(path: Path, vocabulary: int) -> list[tuple[str, float]]:
    """(text, score) of every token, in the order of their ids."""
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise FileError(f"{path}: the tokenizer cannot be read ({problem.strerror})") from None
    at, pieces = 4, list[tuple[str, float]]()
    try:
        for _ in range(vocabulary):
            score, size = struct.unpack_from("<fi", raw, at)
            piece = raw[at + 8 : at + 8 + size]
            if size < 0 or len(piece) != size:
                raise FileError(f"{path}: truncated after {len(pieces)} of {vocabulary} tokens")
            pieces.append((piece.decode("utf-8"), score))
            at += 8 + size
    except (struct.error, UnicodeDecodeError):
        raise FileError(f"{path}: not a llama2.c tokenizer of {vocabulary} tokens") from None
    return pieces


def tokenizer_json(pieces: list[tuple[str, float]]) -> dict[str, Any]:
    """The same tokenizer in the format of the tokenizers library.

    llama2.c merges, again and again, the neighbours whose union has the best score; that is byte-pair encoding whose
    merges are ranked by the score of what they give.
    """
    texts = ["<unk>", "<s>", "</s>", *(text for text, _ in pieces[3:])]
    ids = {text: i for i, text in reversed(list(enumerate(texts)))}
    merges = []
    for i in sorted(range(259, len(pieces)), key=lambda i: -pieces[i][1]):
        text = texts[i]
        merges += [[text[:k], text[k:]] for k in range(1, len(text)) if text[:k] in ids and text[k:] in ids]
    special = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for i, t in enumerate(texts[:3])
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Prepend", "prepend": " "}, "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"},
                         {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": ids, "merges": merges,
        },
    }  # fmt: skip


def _text(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
