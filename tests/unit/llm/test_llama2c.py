"""Checkpoints of llama2.c: the real one against its known perplexity, its tokenizer against a plain encoder, bad files."""

import shutil
import struct

import pytest
import torch
from tests.unit.llm import tiny

from openwork.cli import main
from openwork.errors import FileError, RecipeError
from openwork.llm.calibration import documents_of, load_tokenizer
from openwork.llm.evaluation import evaluate
from openwork.llm.llama2c import convert_llama2c, read_pieces, read_weights
from openwork.metrics import perplexity


@pytest.fixture(scope="module")
def stories(assets, tmp_path_factory):
    """The 260,032-parameter Llama trained on TinyStories, as a Hugging Face folder."""
    if not (assets / "stories260K.bin").is_file():
        pytest.skip("the asset folder has no stories260K.bin")
    return convert_llama2c(assets / "stories260K.bin", assets / "tok512.bin", tmp_path_factory.mktemp("s") / "stories")


def encode(text, pieces):
    """llama2.c's own encoder: characters (or bytes), then the best-scoring neighbours are merged, again and again."""
    ids = {text: i for i, (text, _) in reversed(list(enumerate(pieces)))}
    tokens = []
    for character in " " + text:
        tokens += [ids[character]] if character in ids else [b + 3 for b in character.encode()]
    while True:
        best = (-1e10, None, None)
        for i in range(len(tokens) - 1):
            both = pieces[tokens[i]][0] + pieces[tokens[i + 1]][0]
            if both in ids and pieces[ids[both]][1] > best[0]:
                best = (pieces[ids[both]][1], i, ids[both])
        if best[1] is None:
            return [1, *tokens]
        tokens[best[1] : best[1] + 2] = [best[2]]


def test_the_tokenizer_is_that_of_llama2c(stories, assets):
    tokenizer, pieces = load_tokenizer(stories), read_pieces(assets / "tok512.bin", 512)
    text = (assets / "tinystories_sample.txt").read_text()[:1500]
    for piece in (text, "Lily's cat — “naïve” 🐈 ran.", " two  spaces", "aaaa zzz"):
        assert tokenizer(piece)["input_ids"] == encode(piece, pieces)
    assert tokenizer.decode(tokenizer("Once upon a time")["input_ids"], skip_special_tokens=True) == "Once upon a time"


def test_the_converted_model_has_its_known_perplexity(stories, assets):
    documents = documents_of(assets / "tinystories_sample.txt", load_tokenizer(stories))
    found = perplexity(tiny.load(stories), documents, 512)
    assert (found.targets, found.tokens) == (1804, 1809)
    assert found.value == pytest.approx(3.5482, abs=1e-3)


def test_the_commands_prune_and_evaluate_it(stories, assets, tmp_path, capsys):
    text, sample = str(assets / "tinystories_train_excerpt.txt"), str(assets / "tinystories_sample.txt")
    common = ["--calibration", text, "--samples", "16", "--length", "128", "--structure", "element"]
    values = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        out = tmp_path / method
        assert (
            main(["prune-llm", str(stories), "--method", method, "--density", "0.5", "--out", str(out), *common]) == 0
        )
        assert f"{method}: density 0.5000" in capsys.readouterr().out
        values[method] = evaluate(out, sample, length=512)["perplexity"]["value"]
    assert values["magnitude"] == pytest.approx(43.45, abs=0.05)  # known: 50 % of every matrix by magnitude
    assert 3.55 < max(values["sparsegpt"], values["wanda"]) < 30
    assert main(["perplexity", str(tmp_path / "wanda"), "--text", sample, "--against", str(stories)]) == 0
    assert f"perplexity {values['wanda']:.4f} over 1,804 targets" in capsys.readouterr().out


def header(*values):
    return struct.pack("<7i", *values)


def test_own_output_heads_and_bad_files(tmp_path):
    path, tokens = tmp_path / "w.bin", tmp_path / "t.bin"
    sizes = 8 * 5 + 2 * 8 * 1 + 8 + 8 * 8 * 2 + 4 * 8 * 2 + 3 * 12 * 8 + 2 * 6 * 2 // 1
    numbers = torch.arange(sizes + 5 * 8, dtype=torch.float32)
    path.write_bytes(header(8, 12, 1, 2, 1, -5, 6) + numbers.numpy().tobytes())
    config, tensors = read_weights(path)
    assert not config["tie_word_embeddings"]
    assert torch.equal(tensors["lm_head.weight"].flatten(), numbers[-40:])
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    at = 5 * 8 + 8
    raw = numbers[at : at + 64].view(2, 2, 2, 8)  # heads, pairs, 2
    assert torch.equal(q.view(2, 2, 2, 8), raw.transpose(1, 2))
    good = path.read_bytes()
    for content, message in (
        (b"abc", "too short to be a llama2.c checkpoint"),
        (header(8, 12, 1, 3, 1, 5, 6), "not the header of a version-0 llama2.c checkpoint"),
        (good[:-4], r"its header asks for 608 numbers, the file holds 607; truncated\?"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=message):
            read_weights(path)
    with pytest.raises(FileError, match="gone.bin: the checkpoint cannot be read"):
        read_weights(tmp_path / "gone.bin")
    with pytest.raises(FileError, match="gone.bin: the tokenizer cannot be read"):
        read_pieces(tmp_path / "gone.bin", 5)
    tokens.write_bytes(struct.pack("<i", 3) + struct.pack("<fi", 0.0, 3) + b"ab")
    with pytest.raises(FileError, match="truncated after 0 of 2 tokens"):
        read_pieces(tokens, 2)
    tokens.write_bytes(struct.pack("<i", 3) + struct.pack("<fi", 0.0, 1) + b"a")
    with pytest.raises(FileError, match="not a llama2.c tokenizer of 2 tokens"):
        read_pieces(tokens, 2)


def test_folders_that_cannot_be_evaluated(stories, assets, tmp_path):
    copy = shutil.copytree(stories, tmp_path / "copy")
    text = assets / "tinystories_sample.txt"
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"num_hidden_layers": 5', '"num_hidden_layers": 6'))
    with pytest.raises(FileError, match=r"copy: model.layers.5.* is in none of the files"):
        evaluate(copy, text)
    (copy / "config.json").write_text(config.replace('"model_type": "llama"', '"model_type": "nonesuch"'))
    with pytest.raises(RecipeError, match="copy: transformers does not know this architecture"):
        evaluate(copy, text, tokenizer=stories)
