"""Sweeps over sparsities: what is pruned and measured, what is refused, and the verb with its page."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tests.unit.llm import tiny

import openwork as ow
from openwork.cli import main
from openwork.errors import DataError, FileError, MissingStatistic, OpenworkError, RecipeError
from openwork.llm import Sweep, prune_blockwise, sparsity_sweep
from openwork.llm.evaluation import load_model
from openwork.llm.sweep import global_magnitude
from openwork.methods import imp, magnitude, snip, wanda
from openwork.metrics import Curve, essential_sparsity, perplexity

LEVELS = (0.2, 0.5, 0.8)
IDS = tiny.ids(8).flatten()


@pytest.fixture
def npy(tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, tiny.ids().numpy())
    return str(path)


def content(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_every_level_is_what_pruning_by_hand_gives(root):
    folder = tiny.saved("tied", root)
    before = content(folder)
    found = sparsity_sweep(folder, IDS, levels=LEVELS, length=16, agree=True)
    assert [r["sparsity"] for r in found.rows] == [0.0, *LEVELS]
    for row in found.rows[1:]:
        model = load_model(folder)
        result = ow.prune(
            model, magnitude(1 - row["sparsity"], where=ow.Select(include=("model.layers.*",)), scope="global")
        )
        assert row["loss"] == math.log(perplexity(model, IDS, 16).value)
        assert row["reached"] == 1 - result.density == pytest.approx(row["sparsity"], abs=1e-4)
        assert len(set(row["layers"].values())) > 1  # one ranking over all
        assert row["layers"].keys() == {n for n in result.masks if n.startswith("model.layers.")} == set(result.masks)
    assert found.rows[0]["top1"] == 1 > found.rows[3]["top1"]
    assert content(folder) == before
    assert found.to_dict()["recipe"]["rule"]["allocation"]["kind"] == "Global"


def test_methods_with_data_go_block_by_block_and_seeds_draw_their_windows(root):
    folder = tiny.saved("llama", root)
    found = sparsity_sweep(folder, IDS, wanda, IDS, levels=LEVELS, length=16, samples=3, seeds=2)
    for seed in (0, 1):
        model = load_model(folder)
        prune_blockwise(model, wanda(0.5), IDS, samples=3, length=16, seed=seed)
        assert found.rows[2]["seeds"][seed] == math.log(perplexity(model, IDS, 16).value)
    assert found.rows[2]["std"] > 0
    assert (len(found.rows[0]["seeds"]), found.ranked) == (1, "each row of each matrix")


@torch.no_grad()
def spoken(folder, count=64):
    """Tokens drawn from the model, so that the dense one knows them best."""
    model, rng = load_model(folder), torch.Generator().manual_seed(0)
    said = torch.tensor([[1]])
    while said.shape[1] < count:
        chances = model(said[:, -16:]).logits[0, -1].softmax(0)
        said = torch.cat([said, torch.multinomial(chances, 1, generator=rng)[None]], dim=1)
    return said[0]


def test_refining_adds_levels_where_the_drop_is(root):
    folder = tiny.saved("llama", root)
    found = sparsity_sweep(folder, spoken(folder), levels=LEVELS, length=16, refine=2, tolerance=0.05)
    assert len(found.rows) == 6
    free = found.essential.tolerance
    assert found.next is not None
    assert found.next - free <= 0.3 / 4 + 1e-9
    assert any(f"between {free:g} and {found.next:g}" in c for c in found.caveats)
    assert found.essential.chord in (0.0, *LEVELS)  # knees are those of the levels that were asked for


def test_caveats_follow_from_the_numbers():
    settings = {"tolerance": 0.01, "calibration": {"source": "x"}, "seeds": 1, "vocabulary": 8}
    rows = [{"sparsity": s, "empty": ["a"] if s > 0.5 else []} for s in (0.0, 0.2, 0.6, 0.8)]

    def told(scores, std=()):
        curve = Curve((0.0, 0.2, 0.6, 0.8), scores, std)
        return "\n".join(Sweep(rows, curve, essential_sparsity(curve), "", settings).caveats)

    steep = told((-1.0, -1.0, -1.2, -3.0))
    for words in ("between 0.2 and 0.6", "one draw of the calibration", "from 0.6 on: the ranking empties layers",
                  "worse than guessing from 0.8 on"):  # fmt: skip
        assert words in steep
    assert "no knee" not in steep
    assert "every level is free, up to 0.8" in told((-1.0,) * 4)
    assert "no knee" in told((-1.0, -1.5, -1.8, -1.9))
    assert "widened to 0.4, two standard deviations" in told((-1.0, -1.1, -1.8, -3.0), (0.0, 0.2, 0.0, 0.0))
    assert "some level is better than the dense model" in told((-1.0, -0.9, -1.8, -3.0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"levels": (0.1, 30, 0.5)}, DataError, r"levels must be sparsities in \[0, 1\), got 30; 30 % is 0.3"),
        ({"levels": (0.0, 0.1, 0.5)}, DataError, "a sweep needs at least three levels above 0"),
        ({"refine": -1}, DataError, "refine must be at least 0 and seeds at least 1, got -1 and 1"),
        ({"seeds": 0}, DataError, "refine must be at least 0 and seeds at least 1, got 0 and 0"),
        ({"tolerance": math.nan}, DataError, "tolerance must be at least 0 nats per token, got nan"),
        ({"recipe": wanda}, MissingStatistic, r"wanda is calibrated at every level; pass calibration"),
        ({"recipe": snip}, RecipeError, "snip cannot be swept: it trains, or needs the loss"),
        ({"recipe": imp}, RecipeError, "imp cannot be swept: it trains"),
        ({"recipe": lambda d: magnitude(0.5, ow.NM(2, 4))}, RecipeError, "fixes the density, so there is nothing to"),
        ({"recipe": wanda, "calibration": IDS[:10]}, DataError, "calibration has 10 tokens, one window needs 16"),
        ({"length": 65}, DataError, "windows of 65 tokens are longer than the model's context of 64"),
    ],
)
def test_refused(options, error, message, root):
    with pytest.raises(error, match=message):
        sparsity_sweep(tiny.saved("llama", root), IDS, **{"levels": LEVELS, "length": 16, **options})


def test_a_level_that_cannot_be_pruned_is_named(root):
    broken = lambda density: global_magnitude(density) if density > 0.4 else magnitude(density, ow.NM(2, 4))  # noqa: E731
    with pytest.raises(OpenworkError, match=r"at sparsity 0.8: .*keeps 0.5 by definition"):
        sparsity_sweep(tiny.saved("llama", root), IDS, broken, levels=LEVELS, length=16)


def test_a_packed_folder_is_refused(tmp_path):
    (tmp_path / "model.openwork").write_bytes(b"")
    from openwork.ship.export import PACKED

    (tmp_path / PACKED).write_bytes(b"")
    with pytest.raises(FileError, match="holds a packed model, which cannot be pruned again"):
        sparsity_sweep(tmp_path, IDS, levels=LEVELS)


def test_the_verb_prints_writes_and_tells(root, npy, tmp_path, capsys):
    source, out, told = str(tiny.saved("llama", root)), tmp_path / "made", tmp_path / "told.json"
    argv = ["sweep", source, "--text", npy, "--levels", "0.2:0.8:0.3", "--length", "16", "--threads", "1"]
    assert main([*argv, "--out", str(out), "--json", str(told)]) == 0
    said = capsys.readouterr().out
    for words in ("magnitude, ranked over all 14 matrices of the blocks together", "Knee by two lines", "80.00 %"):
        assert words in said
    data = json.loads(told.read_text())
    assert data == json.loads((out / "openwork.json").read_text())
    assert [r["sparsity"] for r in data["rows"]] == [0.0, 0.2, 0.5, 0.8]
    assert "model.layers.1.mlp.down_proj.weight" in (out / "index.html").read_text()
    words = " ".join(ElementTree.parse(out / "curve.svg").getroot().itertext())
    assert "free: " in words
    assert "knee by the chord" in words
    page = tmp_path / "page.html"
    assert (
        main([*argv, "--method", "random", "--set", "scope=layer", "--seeds", "2", "--quiet", "--out", str(page)]) == 0
    )
    assert capsys.readouterr().out.startswith("random: sparsity ")
    assert "each matrix by itself" in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "a,b"], "--levels must read 0.1,0.3,0.5 or FROM:TO:STEP such as 0:0.9:0.1, got 'a,b'"),
        (["--levels", "0.9:0.1:0.1"], "--levels must read"),
        (["--levels", "0:0.9:0"], "--levels must read"),
        (["--out", "missing/page.html"], "must be a file in a folder that exists"),
        (["--out", "there.html"], "there.html: exists already; choose another name or --overwrite"),
        (["--out", "full"], "exists already; choose another folder"),
        (["--set", "scop=layer"], "unexpected keyword argument 'scop'"),
        (["--structure", "nm:2:4"], "keeps 0.5 by definition"),
        (["--text", "nothing.txt"], "nothing.txt: the text does not exist"),
    ],
)
def test_the_verb_refuses_in_one_line(options, message, root, npy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["sweep", str(tiny.saved("llama", root)), "--text", npy, "--length", "16", *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_trained_model_has_free_weights_and_a_drop(assets, tmp_path):
    if not (assets / "stories260K.bin").is_file():
        pytest.skip("the asset folder has no stories260K.bin")
    from openwork.llm.llama2c import convert_llama2c

    folder = convert_llama2c(assets / "stories260K.bin", assets / "tok512.bin", tmp_path / "stories")
    found = sparsity_sweep(folder, assets / "tinystories_sample.txt", levels=(0.1, 0.3, 0.5), length=256)
    losses = [r["loss"] for r in found.rows]
    assert losses == sorted(losses)
    assert (found.essential.tolerance, found.next, found.essential.knee) == (0.1, 0.3, True)
    torch.testing.assert_close(found.rows[0]["perplexity"], 3.743, rtol=1e-3, atol=0)
