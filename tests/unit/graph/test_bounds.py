"""What operations need of the units that stay: routers pick so many, grouped products want rows of 16 bytes."""

import pytest
import torch

import openwork as ow
from openwork.graph.axes import Axis, cat, prod
from openwork.graph.groups import _multiples
from openwork.methods import magnitude, random

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
X = {"input_ids": torch.arange(12).reshape(2, 6)}


def mixtral(top_k=2):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, vocab_size=16)
    config = transformers.MixtralConfig(
        **sizes, num_hidden_layers=1, num_local_experts=8, num_experts_per_tok=top_k, use_cache=False
    )
    return transformers.MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("top_k", [2, 3])
def test_as_many_experts_stay_as_the_router_picks(top_k):
    model = mixtral(top_k)
    (group,) = ow.build_graph(model, X).of("experts")
    assert (group.at_least, group.multiple) == (top_k, 1)
    result = ow.prune(model, magnitude(density=0.125, structure=ow.experts(example=X)))
    assert int(result.units[group.name].sum()) == top_k
    small = ow.compact(model, result)
    assert small.model.layers[0].mlp.gate.weight.shape[0] == top_k
    assert ow.verify(small, model, X).max_error < 1e-5


@pytest.mark.parametrize(("structure", "kept"), [(ow.channels, (12, 16)), (ow.hidden, (16, 20))])
def test_grouped_products_keep_rows_of_16_bytes(structure, kept):
    model = mixtral()
    result = ow.prune(model, random(density=0.56, structure=structure(example=X)))  # 14 of 24, or 18 of 32, do not run
    (name,) = result.units
    assert int(result.units[name].sum()) in kept
    assert ow.verify(ow.compact(model, result), model, X).max_error < 1e-5
    wanted = {torch.float32: 4, torch.bfloat16: 8}
    for dtype, multiple in wanted.items():
        groups = ow.build_graph(mixtral().to(dtype), X).groups
        assert next(g.multiple for g in groups if g.name == name) == multiple


def test_multiples_of_reshaped_and_joined_axes():
    width, heads, half = Axis(6, "position"), Axis(4), Axis(8)
    assert [(leaf.size, of) for leaf, of in _multiples(prod(heads, width), 4)] == [(4, 2), (6, 4)]
    assert [(leaf.size, of) for leaf, of in _multiples(cat(half, half), 4)] == [(8, 4), (8, 4)]
