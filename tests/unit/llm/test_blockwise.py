"""Block-wise pruning of real architectures: against a loop written by hand, from folders and in memory."""

import copy
import json

import numpy as np
import pytest
import torch
from tests.unit.llm import tiny
from tests.unit.rules import plain_sparsegpt as plain
from torch import nn

import openwork as ow
from openwork.llm import prune_blockwise
from openwork.methods import magnitude, sparsegpt, wanda

FAMILIES = ["llama", "gpt2", "opt", "qwen2", "mixtral", "neox"]


def by_hand(model, ids, method, density):
    """The sequential driver in plain code: whole forward passes, hooks on the layers of one block at a time."""
    model, masks = copy.deepcopy(model).double(), {}
    for i, block in enumerate(model.model.layers):
        seen, handles = {}, []
        layers = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        for name, layer in layers.items():
            rows = seen.setdefault(name, [])

            def hook(m, a, rows=rows):
                rows.append(a[0].reshape(-1, a[0].shape[-1]))

            handles.append(layer.register_forward_pre_hook(hook))
        with torch.no_grad():
            model(ids)
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            w, x = layer.weight.detach().numpy().copy(), torch.cat(seen[name]).numpy()
            if method == "wanda":
                mask, new = plain.wanda(w, x, density), None
                new = w * mask
            else:
                mask, new, _ = plain.sparsegpt(w, x, density, 16)
            masks[f"model.layers.{i}.{name}.weight"] = mask
            layer.weight.data.copy_(torch.as_tensor(new))
    return model, masks


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_loop_written_by_hand_finds_the_same(method):
    model, ids = tiny.build("llama").double(), tiny.ids(2)
    want, masks = by_hand(model, ids, method, 0.5)
    recipe = wanda(0.5) if method == "wanda" else sparsegpt(0.5, block=16, double=True)
    result = prune_blockwise(model, recipe, ids, batch=1)
    assert set(result.masks) == set(masks)
    agree = [np.mean(result.masks[n].numpy() == m) for n, m in masks.items()]
    assert min(agree) == 1.0
    for a, b in zip(model.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_from_a_folder_and_in_memory(family, root, tmp_path):
    source, out = tiny.saved(family, root), tmp_path / "out"
    recipe = sparsegpt(0.5)
    result = prune_blockwise(source, recipe, tiny.ids(), out=out, batch=4)
    assert result.density == 0.5
    model, dense = tiny.load(out), tiny.load(source)
    in_memory = prune_blockwise(dense, recipe, tiny.ids(), batch=4)
    for (name, a), b in zip(model.state_dict().items(), dense.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    params = dict(model.named_parameters())
    assert not result.masks
    assert not result.units  # nothing of the size of the model stays behind
    for name, mask in in_memory.masks.items():
        assert (params[name][~mask] == 0).all()
        assert result.kept[name] == int(mask.sum()) >= int((params[name] != 0).sum())
    original = tiny.load(source)
    for name, value in original.named_parameters():
        if name not in in_memory.masks:
            assert torch.equal(params[name], value), name
            row = next(c for c in result.coverage if c.name == name)
            assert row.skipped
    targeted = set(in_memory.masks)
    inside = {n for n, p in original.named_parameters() if p.ndim > 1 and (".layers." in n or ".h." in n)}
    assert targeted == {n for n in inside if not n.endswith("mlp.gate.weight")}  # the router of experts stays


def test_experts_have_tokens_and_errors_of_their_own(root, tmp_path):
    result = prune_blockwise(tiny.saved("mixtral", root), sparsegpt(0.5), tiny.ids(), out=tmp_path / "out")
    rows = {t["name"]: t for t in result.tensors}
    assert rows["model.layers.0.mlp.experts.gate_up_proj"]["tokens"] == 2 * 6 * tiny.LENGTH  # two experts a token
    assert 0 < rows["model.layers.0.mlp.experts.down_proj"]["error"] < 1
    reasons = {c.name: c.skipped for c in result.coverage}
    assert "router" in reasons["model.layers.0.mlp.gate.weight"].lower()


def test_tied_embeddings_are_left_alone_with_a_reason(root, tmp_path):
    result = prune_blockwise(tiny.saved("tied", root), wanda(0.5), tiny.ids(), out=tmp_path / "out")
    reason = next(c.skipped for c in result.coverage if c.name == "model.embed_tokens.weight")
    assert reason.endswith("tied to lm_head.weight")
    assert "lm_head.weight" not in result.kept


@pytest.mark.parametrize(
    ("structure", "density"),
    [(ow.NM(2, 4), 0.5), (ow.NM(4, 8), 0.5), (ow.Block(4, 1), 0.5), (ow.Block(16, 16), 0.25), (ow.Element("row"), 0.3)],
    ids=repr,
)
@pytest.mark.parametrize("method", [magnitude, wanda, sparsegpt], ids=lambda m: m.__name__)
def test_structures(method, structure, density, root, tmp_path):
    source, out = tiny.saved("llama", root), tmp_path / "out"
    result = prune_blockwise(source, method(density, structure), tiny.ids(), out=out)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = tiny.load(out).get_parameter(name).detach()
    if isinstance(structure, ow.NM):
        assert ((weight != 0).reshape(-1, structure.of).sum(1) <= structure.keep).all()
        assert result.kept[name] == weight.numel() // 2
    elif isinstance(structure, ow.Block):
        tiles = (weight != 0).reshape(32 // structure.rows, structure.rows, 48 // structure.cols, structure.cols)
        assert set(tiles.sum((1, 3)).unique().tolist()) <= {0, structure.rows * structure.cols}
    else:
        assert ((weight != 0).sum(1) <= 15).all()


def test_magnitude_needs_no_calibration_and_equals_one_shot(root, tmp_path):
    source, out = tiny.saved("llama", root), tmp_path / "out"
    prune_blockwise(source, magnitude(0.4), out=out)
    model = tiny.load(source)
    ow.prune(model, magnitude(0.4, where=ow.Select(include=("model.layers",))))
    for a, b in zip(tiny.load(out).parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stored_dtypes_stay_and_results_are_those_of_the_rounded_weights(dtype, root, tmp_path):
    source, out = tiny.saved("llama", root, dtype), tmp_path / "out"
    result = prune_blockwise(source, sparsegpt(0.5), tiny.ids(), out=out, dtype=torch.float32)
    model = tiny.load(out, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {dtype}
    zeros = sum(int((p == 0).sum()) for n, p in model.named_parameters() if n in result.kept)
    assert zeros >= result.counts.targeted_numel - result.counts.kept
    assert result.density == 0.5


def test_activations_on_disk_change_nothing(root, tmp_path):
    source = tiny.saved("llama", root)
    kept = prune_blockwise(source, sparsegpt(0.5), tiny.ids(), out=tmp_path / "a", batch=4)
    disk = prune_blockwise(source, sparsegpt(0.5), tiny.ids(), out=tmp_path / "b", batch=4, memory=0)
    assert (kept.plan.cached, disk.plan.cached) == ("memory", "disk")
    for a, b in zip(tiny.load(tmp_path / "a").parameters(), tiny.load(tmp_path / "b").parameters(), strict=True):
        assert torch.equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_shares_make_layers_unequal(root, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    shares = {"model.layers.0": 0.75, "model.layers.1": 0.25, name: 1.0}
    result = prune_blockwise(tiny.saved("llama", root), sparsegpt(0.5), tiny.ids(), out=tmp_path / "o", shares=shares)
    rows = {t["name"]: t["density"] for t in result.tensors if t["name"] in result.kept}
    assert rows.pop(name) == 1.0
    assert {round(d, 2) for n, d in rows.items() if ".0." in n} == {0.75}
    assert {round(d, 2) for n, d in rows.items() if ".1." in n} == {0.25}


def test_the_source_and_everything_outside_the_blocks_stay_as_they_are(root, tmp_path):
    source = tiny.saved("llama", root)
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    prune_blockwise(source, wanda(0.5), tiny.ids(), out=tmp_path / "out")
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert (tmp_path / "out" / "config.json").read_bytes() == before["config.json"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tiny.load(source).state_dict())


def test_a_dry_run_plans_and_writes_nothing(root, tmp_path):
    told = []
    result = prune_blockwise(
        tiny.saved("llama", root), sparsegpt(0.5), tiny.ids(), out=tmp_path / "out", dry_run=True, tell=told.append
    )
    assert not list(tmp_path.iterdir())
    assert result.density == 1.0
    assert "14 tensors in 2 blocks" in told[0]
    assert result.plan.activations == 2 * 6 * tiny.LENGTH * 32 * 4
    assert result.plan.peak >= result.plan.block + result.plan.activations


@pytest.mark.parametrize(
    ("dtype", "has", "told"),
    [
        (torch.bfloat16, False, "bfloat16, which this processor emulates"),
        (torch.float16, False, "float16, which this processor emulates"),
        (torch.bfloat16, True, "bfloat16"),
        (None, False, "float32"),
    ],
)
def test_the_plan_says_where_a_kind_of_number_is_slow(dtype, has, told, root, tmp_path, monkeypatch):
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: has)
    plan = prune_blockwise(
        tiny.saved("llama", root), sparsegpt(0.5), tiny.ids(), out=tmp_path / "out", dry_run=True, dtype=dtype
    ).plan
    assert plan.computed.startswith(told)
    assert ("--dtype float32" in plan.computed) == ("emulates" in told) == ("--dtype float32" in plan.text())


def test_reports_count_what_was_written(root, tmp_path):
    result = prune_blockwise(tiny.saved("llama", root), sparsegpt(0.5), tiny.ids(), out=tmp_path / "out")
    data = json.loads((tmp_path / "out" / "openwork.json").read_text())
    assert data["density"]["kept"] == result.counts.kept == sum(result.kept.values())
    assert [b["name"] for b in data["blocks"]] == ["model.layers.0", "model.layers.1"]
    assert all(b["error"] > 0 and b["seconds"] > 0 and b["resident"] > 0 for b in data["blocks"])
    assert all(t["error"] > 0 for t in data["tensors"] if t["units"])
    assert f"{result.counts.kept:,}" in result.report()
    assert "model.layers.1" in result.summary()
    kept = sum(int((p != 0).sum()) for n, p in tiny.load(tmp_path / "out").named_parameters() if n in result.kept)
    assert kept <= result.counts.kept


def test_a_model_in_memory_keeps_its_form_and_can_be_saved(tmp_path):
    model = tiny.build("llama").train()
    names, modes = [n for n, _ in model.named_parameters()], [m.training for m in model.modules()]
    result = prune_blockwise(model, wanda(0.5), tiny.ids())
    assert [n for n, _ in model.named_parameters()] == names
    assert [m.training for m in model.modules()] == modes
    assert not any("forward" in vars(m) for m in model.modules())
    ow.save(model, result, tmp_path / "saved")
    assert ow.load(tmp_path / "saved", model)[1].density == 0.5


def test_a_model_pruned_in_blocks_runs_packed():
    model = tiny.build("llama")
    prune_blockwise(model, sparsegpt(0.25, ow.Block(16, 16)), tiny.ids())
    packed = ow.pack(model, ow.Block(16, 16), plan="always")
    kinds = [type(m).__name__ for m in packed.modules()]
    assert kinds.count("PackedLinear") >= 14
    with torch.no_grad():
        torch.testing.assert_close(packed(tiny.ids()).logits, model(tiny.ids()).logits, rtol=1e-4, atol=1e-4)
