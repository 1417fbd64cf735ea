"""SparseGPT in bounded memory: a large Llama of random weights, written to disk in shards, pruned to 50 %.

``python llm_scale.py --size 1b`` writes 1.1 billion parameters (bfloat16, 2.2 GB) and prunes them, or with
``--blocks 5`` only the first five of 22 blocks; the numbers are the time per block, the largest resident memory, and
what the time would be for 7B and 70B shapes by the operations counted (in^3 for the factor, out in^2 for the columns,
tokens in^2 for the Gram matrix, the forward passes). ``--quick`` runs a rehearsal of 56 million parameters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from common import spread, write
from safetensors.torch import save_file

import openwork as ow
from openwork.llm.heap import resident
from openwork.methods import sparsegpt

# hidden, intermediate, layers, heads, key-value heads
SIZES = {
    "rehearsal": (512, 1376, 8, 8, 4),
    "300m": (1024, 2816, 24, 16, 8),
    "1b": (2048, 5632, 22, 32, 4),
    "7b": (4096, 11008, 32, 32, 32),
    "70b": (8192, 28672, 80, 64, 8),
}
VOCABULARY = 32000


def shapes(size: str) -> dict[str, tuple[int, int]]:
    """The matrices of one block."""
    hidden, inner, _, heads, kv = SIZES[size]
    narrow = hidden // heads * kv
    return {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip


def write_checkpoint(folder: Path, size: str) -> int:
    """Random weights, one shard per block; returns the number of parameters."""
    hidden, inner, layers, heads, kv = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rng = torch.Generator().manual_seed(0)
    names: dict[str, str] = {}
    count = 0

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=rng) * shape[-1] ** -0.5).bfloat16()

    def put(file: str, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal count
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(tensors, file))
        count += sum(t.numel() for t in tensors.values())

    for i in range(layers):
        block = {f"model.layers.{i}.{n}.weight": draw(*s) for n, s in shapes(size).items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            block[f"model.layers.{i}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        put(f"model-{i + 1:05d}.safetensors", block)
    ends = {
        "model.embed_tokens.weight": draw(VOCABULARY, hidden) * hidden**0.5,
        "lm_head.weight": draw(VOCABULARY, hidden),
    }
    put("model-00000.safetensors", {**ends, "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return count


def operations(size: str, tokens: int) -> float:
    """Multiply-adds of one block: factors, columns, Gram matrices, two forward passes."""
    done, inputs = 0.0, set()
    for name, (rows, columns) in shapes(size).items():
        shared = "qkv" if name[10:11] in "qkv" and "attn" in name else "gu" if name[4:8] in ("gate", "up_p") else name
        if shared not in inputs:  # equal inputs share the Gram matrix; every layer has its own factor
            inputs.add(shared)
            done += tokens * columns**2
        done += 0.7 * columns**3 + 0.5 * rows * columns**2 + 3 * tokens * rows * columns
    return done


class _EnoughBlocks(Exception):
    pass


def row_of(size: str, blocks: list[dict], windows: int, length: int, cpu: float, parameters: int) -> dict:
    """The numbers of the blocks that were pruned; the time of larger models is extrapolated from them."""
    layers = SIZES[size][2]
    row = {
        "size": size, "parameters": parameters, "density": sum(b["density"] for b in blocks) / len(blocks),
        "blocks": len(blocks), "of_blocks": layers, "windows": [windows, length], "cpu_seconds": cpu,
        "wall_seconds_per_block": spread([b["seconds"] for b in blocks]), "resident_bytes": blocks[-1]["resident"],
        "after": spread([sum(b["density"] for b in blocks) / len(blocks)]),
    }  # fmt: skip
    if size != "rehearsal":  # small products say nothing about the speed of large ones
        rate = operations(size, windows * length) * len(blocks) / cpu
        row["cpu_minutes_all_blocks"] = cpu / len(blocks) * layers / 60
        row["extrapolated_hours_one_thread"] = {
            big: operations(big, 128 * 2048) * SIZES[big][2] / rate / 3600 for big in ("7b", "70b")
        }
    return row


def main(size: str, windows: int, length: int, memory: float, most: int | None) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        source, out = Path(scratch) / "dense", Path(scratch) / "sparse"
        source.mkdir()
        parameters = write_checkpoint(source, size)
        rng = torch.Generator().manual_seed(1)
        ids = torch.randint(0, VOCABULARY, (windows, length), generator=rng)
        before = resident()
        cpu = time.process_time()

        def watch(stage: str, done: int, of: int, error: float) -> None:
            print(f"block {done} of {of}, error {error:.4f}", flush=True)
            if done == most:
                raise _EnoughBlocks

        try:
            result = ow.prune_blockwise(source, sparsegpt(0.5), ids, out=out, batch=1, memory=int(memory * 1e9),
                                        dtype=torch.float32, tell=print, watch=watch)  # fmt: skip
            blocks = result.blocks
            print(result.summary())
        except _EnoughBlocks:
            blocks = json.loads((Path(scratch) / "sparse.partial" / "state.json").read_text())["done"]
        cpu = time.process_time() - cpu
    row = {**row_of(size, blocks, windows, length, cpu, parameters), "resident_before_bytes": before}
    print({k: v for k, v in row.items() if k not in ("windows", "after")})
    write("llm_scale_quick" if size == "rehearsal" else f"llm_scale_{size}", [row])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1b", choices=[s for s in SIZES if s != "70b"])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--memory-gb", type=float, default=0.5, help="activations above this go to disk")
    parser.add_argument("--blocks", type=int, help="stop behind so many blocks and extrapolate from them")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        main("rehearsal", 4, 128, 0.001, args.blocks)
    else:
        main(args.size, args.windows, args.length, args.memory_gb, args.blocks)
