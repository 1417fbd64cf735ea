"""Unequal shares by outliers and by forward-only gradient norms; recovery inside the driver."""

import pytest
import torch
from tests.unit.llm import tiny

from openwork.errors import RecipeError
from openwork.llm import prune_blockwise
from openwork.llm.shares import outlier_shares, zeroth_order_shares
from openwork.methods import wanda
from openwork.recovery import Perp


def with_outliers():
    """Block 1 has a few inputs that are a hundred times larger."""
    model = tiny.build("tied")
    model.model.layers[1].input_layernorm.weight.data[::16] *= 100
    return model


def test_blocks_with_outliers_stay_denser(root, tmp_path):
    model = with_outliers()
    before = {n: p.clone() for n, p in model.named_parameters()}
    shares = outlier_shares(model, 0.5, tiny.ids(), spread=0.1)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert max(shares, key=shares.get) == "model.layers.1"
    assert sum(shares.values()) / 3 == pytest.approx(0.5, abs=1e-12)
    assert max(shares.values()) - min(shares.values()) == pytest.approx(0.2, abs=1e-12)
    model.save_pretrained(tmp_path / "m")
    folder = outlier_shares(tmp_path / "m", 0.5, tiny.ids(), spread=0.1)
    assert folder == pytest.approx(shares, abs=1e-9)
    result = prune_blockwise(model, wanda(0.5), tiny.ids(), shares=shares)
    assert result.density == pytest.approx(0.5, abs=0.02)


def test_outliers_are_counted_from_the_formula():
    model = with_outliers()
    shares = outlier_shares(model, 0.5, tiny.ids(), factor=3.0, spread=0.1)
    ratios = []
    states = {}
    for i, block in enumerate(model.model.layers):
        for name, layer in block.named_modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_pre_hook(lambda m, a, k=(i, name): states.__setitem__(k, (m, a[0])))
    with torch.no_grad():
        model(tiny.ids())
    for i in range(3):
        scores = torch.cat(
            [(m.weight.abs() * x.flatten(0, 1).norm(dim=0)).flatten() for (j, _), (m, x) in states.items() if j == i]
        )
        ratios.append(float((scores > 3 * scores.mean()).float().mean()))
    low, high = min(ratios), max(ratios)
    want = [(r - low) / (high - low) * 0.2 for r in ratios]
    mean = sum(want) / 3
    assert list(shares.values()) == pytest.approx([w - mean + 0.5 for w in want], abs=1e-4)


def test_zeroth_order_shares_add_up():
    model = tiny.build("llama")
    data = [{"input_ids": x, "labels": x} for x in tiny.ids().split(3)]
    shares = zeroth_order_shares(model, 0.5, data, batches=2)
    sizes = {n: p.numel() for n, p in model.named_parameters() if n in shares}
    assert sum(round(shares[n] * sizes[n]) for n in shares) == sum(sizes.values()) // 2
    assert min(shares.values()) >= 0.4 - 1e-3
    assert not any("lm_head" in n for n in shares)
    result = prune_blockwise(model, wanda(0.5), tiny.ids(), shares=shares)
    rows = {t["name"]: t["density"] for t in result.tensors if t["name"] in shares}
    assert all(abs(rows[n] - shares[n]) < 1 / 32 for n in shares)


@pytest.mark.parametrize("options", [{}, {"adapter": "scale_lora"}, {"norms": False}], ids=str)
def test_recovery_lowers_the_error_of_every_block_and_resumes(options, root, tmp_path):
    source, recovery = tiny.saved("llama", root), Perp(epochs=4, lr=2e-3, **options)
    plain = prune_blockwise(source, wanda(0.5), tiny.ids(), out=tmp_path / "plain", batch=2)
    repaired = prune_blockwise(source, wanda(0.5), tiny.ids(), out=tmp_path / "out", batch=2, recovery=recovery)
    assert repaired.blocks[0]["error"] < plain.blocks[0]["error"]
    for row in repaired.blocks:
        before, after = row["log"]["recovery"]["loss"]
        assert after < before
    params = dict(tiny.load(tmp_path / "out").named_parameters())
    assert sum(int((params[n] != 0).sum()) for n in repaired.kept) <= repaired.counts.kept


def test_refused():
    with pytest.raises(RecipeError, match=r"outlier_shares: density 0.1 with spread 0.08 leaves the range"):
        outlier_shares(tiny.build("llama"), 0.1, tiny.ids())
