"""Whisper of a CTranslate2 folder as a model of transformers, and spoken sentences for it."""

from __future__ import annotations

import struct
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")
_PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_FUSED = {"self_attention/linear_0": ("self_attn", "qkv"), "attention/linear_1": ("encoder_attn", "kv")}
START, NO_TIMES, END = 50257, 50362, 50256
"""Tokens of the English models: start of a transcript, no time stamps, end of text."""


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    """Every variable of a ``model.bin``: names and shapes stand before the values of each, little endian."""
    data, at = file.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return value

    def word() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    version, spec, _ = number("I"), word(), number("I")
    if version != 6 or spec != "WhisperSpec":
        raise SystemExit(f"{file}: not a Whisper model of format 6 ({spec}, {version})")
    found = {}
    for _ in range(number("I")):
        name = word()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(_DTYPES[number("B")]), number("I")
        found[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return found


def whisper(folder: Path) -> Any:
    """``WhisperForConditionalGeneration`` with the weights of ``model.bin``, float32."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    stored = {n: torch.from_numpy(a.astype("float32")) for n, a in arrays_of(folder / "model.bin").items()}
    tokens, width = stored["decoder/embeddings/weight"].shape
    depth = sum(n.startswith("decoder/") and n.endswith("ffn/linear_0/weight") for n in stored)
    heads = int(stored["decoder/num_heads"])
    config = WhisperConfig(
        vocab_size=tokens, d_model=width, encoder_layers=depth, decoder_layers=depth, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    weights = {
        "model.decoder.embed_tokens.weight": stored["decoder/embeddings/weight"],
        "proj_out.weight": stored["decoder/embeddings/weight"],
    }
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = stored[f"{side}/position_encodings/encodings"]
        weights |= _pair(stored, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(depth):
            here, there = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            for part, name in _PARTS.items():
                if f"{here}/{part}/weight" in stored or f"{here}/{part}/gamma" in stored:
                    weights |= _pair(stored, f"{here}/{part}", f"{there}.{name}")
            for part, (name, letters) in _FUSED.items():
                if f"{here}/{part}/weight" not in stored:
                    continue
                pieces = (stored[f"{here}/{part}/{kind}"].chunk(len(letters)) for kind in ("weight", "bias"))
                for letter, weight, bias in zip(letters, *pieces, strict=True):
                    weights[f"{there}.{name}.{letter}_proj.weight"] = weight
                    if letter != "k":  # keys have no bias; the file holds zeros
                        weights[f"{there}.{name}.{letter}_proj.bias"] = bias
    for i in (1, 2):
        weights |= _pair(stored, f"encoder/conv{i}", f"model.encoder.conv{i}")
    model.load_state_dict(weights, strict=True)
    return model


def _pair(stored: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Weight and bias of one layer; norms call them gamma and beta."""
    weight, bias = ("weight", "bias") if f"{old}/weight" in stored else ("gamma", "beta")
    return {f"{new}.weight": stored[f"{old}/{weight}"], f"{new}.bias": stored[f"{old}/{bias}"]}


def spoken(sentence: str) -> np.ndarray:
    """A sentence spoken by espeak-ng, 16,000 samples a second."""
    from scipy.signal import resample_poly

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(file), sentence], check=True)
        with wave.open(str(file)) as sound:
            rate, samples = sound.getframerate(), np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    common = np.gcd(rate, 16_000)
    return resample_poly(samples / 32_768, 16_000 // common, rate // common).astype("float32")


class Dictation(nn.Module):
    """The decoder of Whisper as a language model: each row of tokens is heard together with its own recording.

    Args:
        model: a Whisper model; its decoder is shared, not copied.
        tokens: ``[sentences, length]``.
        heard: what the encoder made of the recordings, ``[sentences, frames, width]``.
    """

    def __init__(self, model: Any, tokens: Tensor, heard: Tensor):
        super().__init__()
        self.decoder, self.head, self.config = model.model.decoder, model.proj_out, model.config
        self._heard = {tuple(row): sound for row, sound in zip(tokens.tolist(), heard, strict=True)}

    def forward(self, tokens: Tensor, use_cache: bool = False) -> Tensor:
        """Logits ``[sentences, length, vocabulary]``."""
        heard = torch.stack([self._heard[tuple(row)] for row in tokens.tolist()])
        hidden = self.decoder(input_ids=tokens, encoder_hidden_states=heard, use_cache=use_cache).last_hidden_state
        return self.head(hidden)


@torch.no_grad()
def dictate(model: Any, folder: Path, sentences: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Tokens ``[sentences, length]`` and what the encoder hears; sentences that are too short are left out."""
    from tokenizers import Tokenizer
    from transformers import WhisperFeatureExtractor

    speller, ears = Tokenizer.from_file(str(folder / "tokenizer.json")), WhisperFeatureExtractor()
    tokens, heard = [], []
    for sentence in sentences:
        ids = [START, NO_TIMES, *speller.encode(f" {sentence}", add_special_tokens=False).ids, END]
        if len(ids) >= length:
            sound = ears(spoken(sentence), sampling_rate=16_000, return_tensors="pt").input_features
            tokens.append(torch.tensor(ids[:length]))
            heard.append(model.model.encoder(sound).last_hidden_state[0])
    return torch.stack(tokens), torch.stack(heard)
