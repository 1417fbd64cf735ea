"""A decoder of a million parameters, trained here on the sources of the Python manual: a real language model.

    python bench/manual.py --out FOLDER [--steps 1000] [--manual DIR]

The manual is the Debian package python3.11-doc, or ``--manual DIR`` with its ``.rst.txt`` files. Every twentieth file
is held out. The folder holds the model and its tokenizer (byte-level BPE of 1,024 words) as `openwork prune-llm` takes
them, with ``calibration.txt``, ``heldout.txt`` and ``training.json`` (steps, tokens, and the loss on the way). Every
method on it: `python bench/llm_stories.py --manual FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from llm_encoders import MANUAL
from stories import Stories
from torch import Tensor, nn

from openwork.llm.calibration import load_tokenizer

WORDS, LENGTH, BATCH, LR = 1024, 256, 16, 3e-3
SIZES = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def files_of(manual: Path) -> tuple[list[str], list[str]]:
    """Texts to learn from, and every twentieth, held out; links to the same file count once."""
    places = sorted({p.resolve() for p in manual.rglob("*.rst.txt")})
    if len(places) < 40:
        raise SystemExit(f"{manual}: no Python manual; apt-get install python3.11-doc, or --manual DIR")
    texts = [p.read_text("utf-8", "replace") for p in places]
    return [t for i, t in enumerate(texts) if i % 20], texts[::20]


def spelling(texts: list[str], folder: Path) -> None:
    """A byte-level BPE of the texts, saved as transformers loads it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=WORDS, special_tokens=["<end>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<end>").save_pretrained(folder)


def learn(model: nn.Module, ids: Tensor, steps: int, seed: int = 0) -> list[dict[str, float]]:
    """AdamW with warm-up and a cosine; the mean loss of every hundred steps."""
    optimizer = torch.optim.AdamW(model.parameters(), LR, betas=(0.9, 0.95), weight_decay=0.1)
    rng, began, told, losses = torch.Generator().manual_seed(seed), time.monotonic(), [], list[float]()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / 50, 1) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
        starts = torch.randint(0, len(ids) - LENGTH, (BATCH,), generator=rng).tolist()
        x = torch.stack([ids[s : s + LENGTH] for s in starts])
        optimizer.zero_grad()
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean = sum(losses[-100:]) / len(losses[-100:])
            told.append({"step": step + 1, "loss": mean, "minutes": (time.monotonic() - began) / 60})
            print(f"{told[-1]['minutes']:5.1f} min  step {step + 1:5}  perplexity {math.exp(mean):8.2f}", flush=True)
    return told


def train(folder: Path, manual: Path, steps: int) -> None:
    """Write the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    known, held = files_of(manual)
    folder.mkdir(parents=True)
    spelling(known, folder)
    tokenizer = load_tokenizer(folder)
    ids = torch.tensor([i for text in known for i in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)])
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **SIZES, eos_token_id=0, bos_token_id=0))
    told = learn(model, ids, steps)
    model.eval().save_pretrained(folder)
    (folder / "calibration.txt").write_text("\n\n".join(known[::7]), "utf-8")
    (folder / "heldout.txt").write_text("\n\n".join(held), "utf-8")
    size = sum(p.numel() for p in model.parameters())
    (folder / "training.json").write_text(json.dumps({"parameters": size, "tokens": len(ids), "path": told}) + "\n")


def load(folder: Path) -> Stories:
    """The trained decoder with its texts: held-out pages, half of them each as validation and as unseen."""
    tokenizer = load_tokenizer(folder)

    def pages(name: str, most: int) -> list[Tensor]:
        ids = torch.tensor(tokenizer((folder / name).read_text("utf-8"))["input_ids"])[:most]
        return list(ids.split(4096))

    held = pages("heldout.txt", 16 * 4096)
    return Stories(folder, torch.cat(pages("calibration.txt", 400_000)), held[1::2][:4], held[::2][:4])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--manual", type=Path, default=MANUAL, metavar="DIR")
    parser.add_argument("--steps", type=int, default=1000, help="of 16 windows of 256 tokens, half a second each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.out, args.manual, args.steps)
