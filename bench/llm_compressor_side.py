"""SparseGPT and Wanda of llm-compressor, when it can be imported: on one layer, and as a script on a model folder.

It wants an environment of its own (``python -m venv``, ``pip install llmcompressor``).
``python llm_compressor_side.py FOLDER IDS.npy OUT``: its ``oneshot`` with SparseGPT at 50 %, as its examples do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NAME = "llm-compressor"
Method = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def methods(block: int, damp: float) -> dict[str, Method]:
    """Its functions by name, as (weight, Gram matrix, density) -> (weight, mask); empty when it cannot be imported."""
    if importlib.util.find_spec("llmcompressor") is None:
        return {}
    from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
    from llmcompressor.modifiers.pruning.wanda import wanda_sparsify

    def layer(weight: Tensor) -> nn.Linear:
        with torch.device("meta"):
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        module.weight = nn.Parameter(weight, requires_grad=False)
        return module

    @torch.no_grad()
    def sparsegpt(weight: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
        module = layer(weight)
        _, found = sgpt_sparsify.sparsify_weight(module, {module: gram.clone()}, 1 - density, 0, 0, block, damp, False)
        return found, found != 0

    @torch.no_grad()
    def wanda(weight: Tensor, gram: Tensor, density: float) -> tuple[Tensor, Tensor]:
        module = layer(weight)
        found = wanda_sparsify.sparsify_weight(module, {module: gram.diagonal().clone()}, 1 - density, 0, 0)
        return found, found != 0

    return {"sparsegpt": sparsegpt, "wanda": wanda}


def version() -> str:
    """Of the package."""
    return importlib.metadata.version("llmcompressor")


def resident() -> int:
    """Largest resident memory so far, bytes; ``ru_maxrss`` would hold that of the process which started this one."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def prune_folder(folder: str, ids: np.ndarray, out: str) -> dict[str, Any]:
    """Its whole way: load, calibrate block by block, prune, save."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

    _ = LlamaForCausalLM  # what the run would import later
    before = resident()
    began = time.process_time()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()})
    recipe = SparseGPTModifier(sparsity=0.5, mask_structure="0:0", targets=[r"re:.*layers.\d+$"], ignore=["re:.*head"])
    speller = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")), pad_token="a")  # not asked
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=ids.shape[1], num_calibration_samples=len(ids),
        processor=speller,
    )  # fmt: skip
    model.save_pretrained(out)
    weights = [m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n]
    return {
        "version": version(),
        "seconds": time.process_time() - began,
        "imported_bytes": before,
        "resident_bytes": resident(),
        "density": float(sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)),
    }


if __name__ == "__main__":
    sys.path.pop(0)  # kernels.py of this folder stands in the way of a package of that name
    torch.set_num_threads(1)
    print(json.dumps(prune_folder(sys.argv[1], np.load(sys.argv[2]), sys.argv[3])))
