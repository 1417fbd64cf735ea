"""What other tools do without a word on language models is refused or done here: one test for each case."""

import pytest
import torch
from tests.unit.llm import tiny

import openwork as ow
from openwork.errors import RecipeError, StructureError
from openwork.llm import prune_blockwise
from openwork.methods import magnitude, sparsegpt, wanda
from openwork.recovery import merge_low_rank

METHODS = pytest.mark.parametrize("method", [magnitude, wanda, sparsegpt], ids=lambda m: m.__name__)


@METHODS
def test_a_pattern_that_matches_nothing_is_an_error(method):
    with pytest.raises(StructureError, match="matches no parameter"):
        prune_blockwise(tiny.build("llama"), method(0.5, where=ow.Select(include=("re.*ghost",))), tiny.ids())


def test_magnitude_really_prunes(root, tmp_path):
    result = prune_blockwise(tiny.saved("llama", root), magnitude(0.5), out=tmp_path / "out")
    model = tiny.load(tmp_path / "out")
    for name, kept in result.kept.items():
        assert kept == int((model.get_parameter(name) != 0).sum()) == model.get_parameter(name).numel() // 2


@METHODS
def test_a_percentage_is_refused(method):
    with pytest.raises(RecipeError, match="density must be a kept share in"):
        method(50)


@METHODS
def test_a_density_that_contradicts_n_of_m_is_refused(method):
    with pytest.raises(RecipeError, match="keeps 0.5 by definition, but density 0.3 was asked"):
        method(0.3, ow.NM(2, 4))


@METHODS
def test_the_transposed_layers_of_gpt2_are_pruned_and_its_embeddings_are_not(method):
    model = tiny.build("gpt2")
    embeddings = {n: p.detach().clone() for n, p in model.named_parameters() if "wte" in n or "wpe" in n}
    result = prune_blockwise(model, method(0.5), tiny.ids())
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        weight = model.get_parameter(f"transformer.h.0.{name}.weight")
        assert float((weight == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert all(torch.equal(model.get_parameter(n), v) for n, v in embeddings.items())
    assert all(row.skipped for row in result.coverage if row.name in embeddings)


@METHODS
def test_fused_experts_are_pruned_one_by_one(method):
    model = tiny.build("mixtral")
    prune_blockwise(model, method(0.5), tiny.ids())
    for name in ("gate_up_proj", "down_proj"):
        for expert in model.get_parameter(f"model.layers.1.mlp.experts.{name}"):
            assert 0.2 < float((expert == 0).double().mean()) < 0.8


@METHODS
def test_n_of_m_on_widths_that_do_not_fit_is_refused_with_the_name(method):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(30, 6)

        def forward(self, x):
            return self.fc(x)

    with pytest.raises(StructureError, match=r"fc.weight"):
        ow.prune(Odd(), method(structure=ow.NM(2, 4)), data=[torch.randn(4, 30)])
    model = torch.nn.Sequential(torch.nn.Linear(64, 10))  # ten outputs are no obstacle
    assert ow.prune(model, method(structure=ow.NM(2, 4)), data=[torch.randn(4, 64)]).density == 0.5


def adam_steps(model, masks):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with ow.hold(model, masks):
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=tiny.ids(), labels=tiny.ids()).loss.backward()
            optimizer.step()


def test_adam_steps_keep_the_zeros_and_move_the_rest():
    model = tiny.build("llama")
    masks = prune_blockwise(model, wanda(0.5), tiny.ids()).masks
    name = "model.layers.0.mlp.up_proj.weight"
    before = model.get_parameter(name).detach().clone()
    adam_steps(model, masks)
    after = model.get_parameter(name)
    assert bool((after[~masks[name]] == 0).all())
    assert not torch.equal(after, before)


def test_a_merged_adapter_keeps_the_zeros():
    model = tiny.build("llama")
    masks = prune_blockwise(model, wanda(0.5), tiny.ids()).masks
    name = "model.layers.0.self_attn.q_proj.weight"
    merge_low_rank(model, masks, {name: (torch.randn(2, 32), torch.randn(32, 2))})
    assert float((model.get_parameter(name) == 0).double().mean()) == 0.5


def test_the_density_is_told_with_all_three_denominators(root, tmp_path):
    result = prune_blockwise(tiny.saved("llama", root), wanda(0.5), tiny.ids(), out=tmp_path / "out")
    counts, model = result.counts, tiny.load(tmp_path / "out")
    assert counts.targeted == 0.5
    whole = sum(p.numel() for p in model.parameters())
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert counts.total == pytest.approx(1 - zeros / whole)
    assert counts.targeted < counts.prunable <= counts.total < 1
