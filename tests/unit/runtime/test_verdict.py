"""The three lines, and GPT-2's transposed linear layers."""

import pytest
import torch
from tests.unit.runtime.models import always, mlp, net
from torch import nn

import openwork as ow
from openwork.runtime import Packed, verdict


def test_the_three_lines():
    model, x = net(), torch.randn(2, 3, 12, 12)
    found = verdict(model, always(model), x, rounds=3, sizes=(1_000, 4_000))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    assert found.weights == sum(p.numel() for p in matrices)
    assert found.zeros == sum(int((p == 0).sum()) for p in matrices) / found.weights
    assert found.error < 1e-5
    assert found.batch == ((2, 3, 12, 12),)
    for times in found.times.values():
        assert 0 < times["low"] <= times["ms"] <= times["high"]
    lines = str(found).splitlines()
    assert len(lines) == 3
    assert lines[1] == "bytes   1,000 instead of 4,000 bytes on disk (0.250x)"
    assert lines[2].endswith(f"[input 2x3x12x12, 1 thread, error {found.error:.1e}]")
    ratio = found.times["dense"]["ms"] / found.times["packed"]["ms"]
    assert f"{ratio:.2f}x over dense and" in lines[2]
    assert str(verdict(mlp(), always(mlp()), torch.randn(2, 48), rounds=1)).splitlines()[1] == "bytes   no file"


def test_a_wrong_copy_shows_in_the_error_and_the_model_stays():
    one, two = mlp(), always(mlp(density=0.5))
    one.train()
    assert verdict(one, two, torch.randn(4, 48), rounds=1).error > 0.1
    assert one.training
    layer = nn.Linear(16, 16)
    assert verdict(layer, always(layer), torch.randn(4, 16), rounds=1).error < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transposed_linear_layers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=50, n_positions=16, use_cache=False)
    model = transformers.GPT2LMHeadModel(config).eval()
    result = ow.prune(model, ow.methods.magnitude(structure=ow.Element(), density=0.3))
    tokens = torch.randint(50, (2, 7))
    packed = always(model)
    layer = packed.transformer.h[0].attn.c_attn
    assert isinstance(layer, Packed)
    assert layer.transposed
    assert torch.equal(layer.dense_weight(), model.transformer.h[0].attn.c_attn.weight)
    torch.testing.assert_close(packed(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert result.counts.kept
    assert packed.lm_head.weight is packed.transformer.wte.weight
