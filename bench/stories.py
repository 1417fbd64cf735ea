"""The small real language model of several benches: a 260,032-parameter Llama trained on TinyStories, and its texts."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from openwork.data.places import assets_folder
from openwork.llm.calibration import documents_of, load_tokenizer
from openwork.llm.evaluation import load_model
from openwork.llm.llama2c import convert_llama2c
from openwork.metrics import perplexity

BEGIN = r"(Once upon a time|One day|Once there was|There was once|Once, )"


def stories_of(text: str) -> list[str]:
    """Paragraphs put together to stories; a story begins with one of the usual words."""
    found: list[str] = []
    for paragraph in filter(None, map(str.strip, text.split("\n"))):
        if not found or re.match(BEGIN, paragraph):
            found.append(paragraph)
        else:
            found[-1] += "\n" + paragraph
    return found


@dataclass
class Stories:
    """``calibration`` [tokens]; ``unseen`` stories of the same excerpt; the 5 ``validation`` stories."""

    folder: Path
    calibration: Tensor
    unseen: list[Tensor]
    validation: list[Tensor]

    def model(self) -> nn.Module:
        """The dense model, fresh."""
        return load_model(self.folder)

    def both(self, model: nn.Module) -> dict[str, float]:
        """Perplexity on the validation stories and on the unseen ones."""
        return {name: perplexity(model, getattr(self, name), 512).value for name in ("validation", "unseen")}

    def batches(self, count: int, size: int, length: int, seed: int) -> list[dict[str, Tensor]]:
        """Random windows of the calibration text, with themselves as labels."""
        rng = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, len(self.calibration) - length, (count * size,), generator=rng).tolist()
        windows = torch.stack([self.calibration[s : s + length] for s in starts])
        return [{"input_ids": x, "labels": x} for x in windows.split(size)]


def load(scratch: str | Path | None = None) -> Stories:
    """Three quarters of the excerpt calibrate.

    The folder of the model goes under ``scratch``, or to a temporary one that stays until the process ends.
    """
    assets = assets_folder()
    if assets is None or not (assets / "stories260K.bin").is_file():
        raise SystemExit("needs stories260K.bin; set OPENWORK_ASSETS to the folder that holds it")
    if scratch is None:
        keep = tempfile.TemporaryDirectory()
        _ALIVE.append(keep)
        scratch = keep.name
    folder = convert_llama2c(assets / "stories260K.bin", assets / "tok512.bin", Path(scratch) / "stories")
    tokenizer = load_tokenizer(folder)
    ids = [torch.tensor(tokenizer(s)["input_ids"]) for s in stories_of(
        (assets / "tinystories_train_excerpt.txt").read_text())]  # fmt: skip
    cut = len(ids) * 3 // 4
    validation = documents_of(assets / "tinystories_sample.txt", tokenizer)
    return Stories(folder, torch.cat(ids[:cut]), ids[cut:], validation)


_ALIVE: list[tempfile.TemporaryDirectory[str]] = []
