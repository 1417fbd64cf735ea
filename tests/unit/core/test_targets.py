"""Selections: who is pruned, who is left out, and with what reason."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from openwork.core import views
from openwork.core.targets import Select, find_targets, matches, prunable_numel
from openwork.errors import StructureError, did_you_mean


class Mixed(nn.Module):
    """One of everything that has weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose1d(4, 6, 3)
        self.norm = nn.LayerNorm(4)
        self.attend = nn.MultiheadAttention(4, 2)
        self.cell = nn.LSTM(4, 3)
        self.table = nn.Parameter(torch.ones(3, 4))
        self.experts = nn.Parameter(torch.ones(2, 4, 3))
        self.block = nn.ModuleDict({"fc1": nn.Linear(4, 5), "fc10": nn.Linear(5, 4, bias=False)})
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embed.weight


def found(where=None, model=None):
    targets, skipped = find_targets(model or Mixed(), where or Select())
    return {t.name: t for t in targets}, skipped


def test_the_default_takes_known_matrices_and_says_why_not_the_others():
    targets, skipped = found()
    assert list(targets) == [
        "experts", "conv.weight", "up.weight", "attend.in_proj_weight", "attend.out_proj.weight",
        "cell.weight_ih_l0", "cell.weight_hh_l0", "block.fc1.weight", "block.fc10.weight",
    ]  # fmt: skip
    assert skipped["norm.weight"] == "norm"
    assert skipped["head.bias"].startswith("bias or scale")
    assert skipped["embed.weight"].startswith("embedding")
    assert skipped["table"].startswith("table of Mixed, not a known matrix")
    assert set(targets) | set(skipped) == {n for n, _ in Mixed().named_parameters()}
    assert targets["conv.weight"].view == views.conv_view((6, 2, 3, 3))
    assert targets["conv.weight"].groups == 2
    assert targets["experts"].view.folded == (2, 4, 3)


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (("block",), (), ["block.fc1.weight", "block.fc10.weight"]),
        (("fc1",), (), None),
        (("block.fc1",), (), ["block.fc1.weight"]),
        (("*.fc*",), ("*.fc10",), ["block.fc1.weight"]),
        ((r"re:block\.fc\d\.weight",), (), ["block.fc1.weight"]),
        ((r"re:block",), (), None),
        (("head.weight",), (), ["embed.weight"]),
        (("embed",), (), ["embed.weight"]),
        (("table",), (), ["table"]),
    ],
)
def test_patterns(include, exclude, names):
    where = Select(include, exclude)
    if names is None:
        with pytest.raises(StructureError, match="include pattern .* matches no parameter; "):
            found(where)
    else:
        assert list(found(where)[0]) == names


def test_a_misspelt_module_is_suggested():
    with pytest.raises(StructureError, match="did you mean 'block.fc1"):
        found(Select(("block.fc2",)))


def test_tied_weights_are_excluded_by_either_name():
    for name in ("head.weight", "embed.weight"):
        targets, skipped = found(Select(("head", "block"), (name,)))
        assert "embed.weight" not in targets
        assert skipped["embed.weight"] == "excluded"


def test_an_include_pattern_that_selects_nothing_prunable_is_refused():
    # a pattern that hits only frozen or one-dimensional parameters would prune nothing without a word
    model = Mixed()
    model.block["fc1"].weight.requires_grad_(False)
    with pytest.raises(StructureError, match=r"block.fc1.weight: cannot be pruned: frozen .*take 'block.fc1' out of"):
        found(Select(("block.fc1", "conv")), model)
    with pytest.raises(StructureError, match="norm.weight: cannot be pruned: norm; take 'norm' out of"):
        found(Select(("norm", "conv")))
    assert list(found(Select(("conv", "up"), ("conv",)))[0]) == ["up.weight"]  # said by the user, so no error


def test_models_without_values_are_refused():
    with pytest.raises(StructureError, match=r"0.weight: the layer is lazy and has no weights yet"):
        found(model=nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(StructureError, match=r"parameters must hold values, got the meta device \(2 of 2"):
        found(model=nn.Linear(3, 3, device="meta"))
    with pytest.raises(StructureError, match=r"nothing to prune in LayerNorm: all 2 parameters were left out \(norm\)"):
        found(model=nn.LayerNorm(3))


@pytest.mark.filterwarnings("ignore")
def test_reparametrised_layers_are_not_taken_for_plain_ones():
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    targets, skipped = found(model=old)
    assert list(targets) == ["1.weight"]  # pruning weight_g would remove whole rows
    assert "weight_g of Linear" in skipped["0.weight_g"]
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    targets, skipped = found(model=new)
    assert list(targets) == ["1.weight"]
    assert "already under a torch parametrisation" in skipped["0.parametrizations.weight.original1"]


def test_shared_modules_and_their_second_name():
    layer = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": layer, "b": layer})
    assert list(found(Select(("b",)), model)[0]) == ["a.weight"]
    assert prunable_numel(model) == 9


def test_prunable_entries_include_what_was_asked_for():
    model = Mixed()
    plain = prunable_numel(model)
    assert plain == sum(t.numel for t in found(model=model)[0].values())
    assert prunable_numel(model, ["embed.weight"]) == plain + 24
    for p in model.parameters():
        p.requires_grad_(False)
    assert prunable_numel(model) == plain  # frozen weights stay prunable in principle


def test_conv1d_of_transformers_is_read_transposed(monkeypatch):
    class Conv1D(nn.Module):
        def __init__(self, out, inn):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(inn, out)), nn.Parameter(torch.ones(out))

    model = nn.Sequential(Conv1D(6, 4))
    monkeypatch.delitem(sys.modules, "transformers.pytorch_utils", raising=False)
    with pytest.raises(StructureError, match="weight of Conv1D, not a known matrix"):
        found(model=model)
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", SimpleNamespace(Conv1D=Conv1D))
    targets, _ = found(model=model)
    assert targets["0.weight"].view == views.transposed_view((4, 6))


def test_bad_selections():
    for bad in (5, None, {"a"}, ("a", 1)):
        with pytest.raises(StructureError, match="include must be a tuple of patterns"):
            Select(include=bad)
    with pytest.raises(StructureError, match=r"Select: 're:\(' is not a regular expression"):
        Select(exclude=("re:(",))
    with pytest.raises(StructureError, match="min_units must be at least 1, got '3'"):
        Select(min_units="3")
    assert matches("a.*", "a.b.c")
    assert not matches("b", "a.b")


def test_long_lists_of_names_are_cut():
    text = did_you_mean("n7", [f"n{i:03}" for i in range(100)])
    assert text.endswith("and 40 more")
