"""Models without the head of a causal language model, and decoders that listen to an encoder."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.llm import tiny
from torch import nn

import openwork as ow
from openwork.cli import main
from openwork.errors import DataError, FileError
from openwork.llm.evaluation import evaluate
from openwork.methods import sparsegpt, wanda

HEADS = {"num_attention_heads": 4, "intermediate_size": 48}
CONFIGS = {
    "BertModel": ("BertConfig", {**tiny.SHARED, **HEADS}),
    "BertForMaskedLM": ("BertConfig", {**tiny.SHARED, **HEADS}),
    "DistilBertModel": ("DistilBertConfig", {"vocab_size": 64, "max_position_embeddings": 64, "n_layers": 2, "dim": 32,
                                             "hidden_dim": 48, "n_heads": 4}),
    "GPT2Model": tiny.CONFIGS["gpt2"],
}  # fmt: skip


def folder_of(kind, root):
    import transformers

    config, options = CONFIGS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    model.save_pretrained(f"{root}/{kind}")
    return f"{root}/{kind}", model


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_folder_and_the_model_in_memory_are_pruned_alike(kind, root, tmp_path):
    source, model = folder_of(kind, root)
    stored = load_file(f"{source}/model.safetensors")
    table = "embeddings.position_ids"  # a table of integers, as folders of older releases hold it
    save_file({**stored, table: torch.arange(64)[None]}, f"{source}/model.safetensors", metadata={"format": "pt"})
    result = ow.prune_blockwise(source, sparsegpt(0.5), tiny.ids(), out=tmp_path / "out")
    ow.prune_blockwise(model, sparsegpt(0.5), tiny.ids())
    loaded, again = ow.load(tmp_path / "out")
    assert type(loaded).__name__ == kind
    assert result.density == again.density == 0.5
    for (name, a), b in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert load_file(tmp_path / "out" / index[table])[table].dtype == torch.int64


def test_an_encoder_has_no_perplexity(root, tmp_path, capsys):
    ids = tmp_path / "ids.npy"
    with pytest.raises(
        FileError, match="absent: is no folder; models are never downloaded, pass the folder of a model"
    ):
        evaluate(tmp_path / "absent", ids)
    for kind in ("BertModel", "BertForMaskedLM"):
        source, _ = folder_of(kind, root)
        with pytest.raises(DataError, match=f"{kind} predicts no next token, so it has no perplexity and no tasks of"):
            evaluate(source, ids)
        out = tmp_path / "out"
        assert main(["prune-llm", source, "--method", "magnitude", "--density", "0.5", "--out", str(out),
                     "--evaluate", str(ids)]) == 2  # fmt: skip
        assert "predicts no next token" in capsys.readouterr().err
        assert not out.exists()


class Listener(nn.Module):
    """A decoder whose every row of tokens belongs to another sound."""

    def __init__(self, ids):
        from transformers import WhisperConfig, WhisperModel

        super().__init__()
        torch.manual_seed(0)
        self.config = WhisperConfig(
            vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, pad_token_id=0,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1,
        )  # fmt: skip
        self.decoder = WhisperModel(self.config).decoder.double().eval()
        sounds = torch.randn(len(ids), 10, 32, dtype=torch.float64) * torch.arange(1, 1 + len(ids))[:, None, None] ** 2
        self.sounds = {tuple(row): sound for row, sound in zip(ids.tolist(), sounds, strict=True)}

    def forward(self, tokens, use_cache=False):
        heard = torch.stack([self.sounds[tuple(row)] for row in tokens.tolist()])
        return self.decoder(input_ids=tokens, encoder_hidden_states=heard, use_cache=use_cache).last_hidden_state


def test_every_batch_goes_with_what_its_encoder_said():
    ids = tiny.ids(4)
    one, all_at_once = Listener(ids), Listener(ids)
    apart = ow.prune_blockwise(one, wanda(0.5), ids, batch=1)
    together = ow.prune_blockwise(all_at_once, wanda(0.5), ids, batch=4)
    assert any("encoder_attn.k_proj" in name for name in apart.masks)
    assert all(torch.equal(apart.masks[n], m) for n, m in together.masks.items())
    with torch.no_grad():
        torch.testing.assert_close(one(ids), all_at_once(ids), rtol=1e-9, atol=1e-12)
