"""Hand-made ONNX models: the right groups, and a smaller file that computes what the masked one does."""

import numpy as np
import pytest
import torch
from tests.unit.onnx.made import MADE, Maker, build, onnx

import openwork as ow
from openwork.onnx import onnx_graph, read_onnx
from openwork.onnx.cutting import masked, small
from openwork.onnx.prune import KINDS
from openwork.onnx.running import inputs_of, run


def read(model, folder):
    onnx.save(model, folder / "made.onnx")
    return read_onnx(folder / "made.onnx")


def some(graph, seed):
    """Half of the units of every group at random, at least one."""
    rng = torch.Generator().manual_seed(seed)
    groups = [g for g in graph.groups if g.kind in KINDS]
    return {g.name: torch.randperm(g.n_units, generator=rng) < max(1, g.n_units // 2) for g in groups}


@pytest.mark.parametrize("name", MADE)
def test_groups_and_equality(name, tmp_path):
    model, sizes = build(name)
    model = read(model, tmp_path)
    graph = onnx_graph(model)
    assert sorted(g.n_units for g in graph.groups if g.kind in KINDS) == sorted(sizes)
    assert len(graph.unknown) == (name in ("an operator without a rule", "a branch on data"))
    for seed in range(3):
        alive = some(graph, seed)
        shrunk, zeroed = small(model, graph, alive), masked(model, graph, alive)
        onnx.checker.check_model(shrunk)
        assert shrunk.ByteSize() < zeroed.ByteSize()
        inputs = inputs_of(model, {}, seed)
        (found,), (wanted,), (dense,) = (run(m, inputs) for m in (shrunk, zeroed, model))
        assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
        assert np.abs(dense - wanted).max() > 1e-3


@pytest.mark.parametrize("name", ["attention with computed sizes", "transposed convolution and resize", "residual"])
def test_open_dimensions_stay_open(name, tmp_path):
    model = read(build(name)[0], tmp_path)
    graph = onnx_graph(model, dims={"n": 3})
    alive = some(graph, 0)
    inputs = inputs_of(model, {"n": 5})
    (found,), (wanted,) = (run(m, inputs) for m in (small(model, graph, alive), masked(model, graph, alive)))
    assert found.shape[0] == 5
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_stays_has_a_reason(tmp_path):
    graph = onnx_graph(read(build("an operator without a rule")[0], tmp_path))
    reasons = {row.reason for row in graph.frozen}
    assert {"input of the model", "output of the model", "kernel position"} <= reasons
    assert any("operation without a rule: LRN" in r for r in reasons)


def test_weights_that_nothing_reads_and_old_files(tmp_path):
    m = Maker(13, x=("n", 3, 8, 8))
    y = m("Split", m.conv("x", 3, 8), m.i(5, 3), n=2, axis=1)[0]
    m.w(7, 7)
    model = m.model(m.head(m("Softmax", m("Squeeze", m("Unsqueeze", y, m.i(0)), m.i(0)), axis=2), 5))
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    graph = onnx_graph(read(model, tmp_path))
    assert [g.n_units for g in graph.groups] == [5]
    assert any(row.reason == "no operator reads it" for row in graph.frozen)


def test_constants_as_nodes_and_functions(tmp_path):
    nodes = [
        onnx.helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(np.ones((4, 6), np.float32))),
        onnx.helper.make_node("Constant", [], ["half"], value_float=0.5),
        onnx.helper.make_node("twice", ["x", "w", "half"], ["y"], domain="mine"),
        onnx.helper.make_node("Constant", [], ["v"], value=onnx.numpy_helper.from_array(np.ones((6, 2), np.float32))),
        onnx.helper.make_node("MatMul", ["y", "v"], ["z"]),
    ]
    inner = [onnx.helper.make_node("MatMul", ["a", "b"], ["c"]), onnx.helper.make_node("Mul", ["c", "d"], ["e"])]
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("mine", 1)]
    function = onnx.helper.make_function("mine", "twice", ["a", "b", "d"], ["e"], inner, opsets[:1])
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(n, kind, ["n", k]) for n, k in (("x", 4), ("z", 2))]
    graph = onnx.helper.make_graph(nodes, "made", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    found = onnx_graph(read(model, tmp_path))
    assert [(g.n_units, {s.tensor for s in g.sites}) for g in found.groups] == [(6, {"w", "v"})]


@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_a_budget_is_met_on_a_file(unit, multiple, tmp_path):
    m = Maker(18, x=("n", 3, 8, 8))
    y = m("Relu", m.conv(m("Relu", m.conv("x", 3, 64)), 64, 64))
    onnx.save(m.model(m.head(y, 64)), tmp_path / "made.onnx")
    report = ow.prune_onnx(
        tmp_path / "made.onnx", tmp_path / "sub" / "small.onnx", target={unit: 0.6}, multiple=multiple
    )
    before, after = getattr(report, unit)
    assert abs(after / before - 0.6) <= 0.006
    assert all(kept % multiple == 0 for kept, _ in report.units.values())
    again = read_onnx(tmp_path / "sub" / "small.onnx")
    assert sum(np.prod(t.dims) for t in again.graph.initializer) == report.params[1]
    assert report.error <= 1e-5
    assert "multiply-accumulates became" in str(report)
    assert report.to_dict()["units"] == report.units


def test_the_smallest_units_go(tmp_path):
    m = Maker(18, x=("n", 4))
    first = np.ones((4, 10), np.float32)
    first[:, ::2] *= 0.01
    onnx.save(m.model(m("MatMul", m("Relu", m("MatMul", "x", m.add(first))), m.add(np.ones((10, 3), np.float32)))), tmp_path / "made.onnx")  # fmt: skip
    graph = read_onnx(tmp_path / "made.onnx")
    report = ow.prune_onnx(tmp_path / "made.onnx", tmp_path / "small.onnx", target={"params": 0.5})
    assert report.units == {"w0": (5, 10)}
    kept = onnx.numpy_helper.to_array(read_onnx(tmp_path / "small.onnx").graph.initializer[0])
    np.testing.assert_array_equal(kept, first[:, 1::2])
    assert graph.graph.initializer[0].dims == [4, 10]


@pytest.mark.parametrize("share", [0.07, 0.19, 0.31, 0.53])
def test_a_small_file_meets_a_budget_wherever_some_choice_does(share, tmp_path):
    m = Maker(18, x=("n", 3, 8, 8))
    y = m("Flatten", m.conv(m("Relu", m.conv("x", 3, 16)), 16, 24))
    onnx.save(m.model(m("Gemm", y, m.w(24 * 64, 5), m.w(5))), tmp_path / "made.onnx")
    costs = [a * 27 * 64 + a * b * 9 * 64 + b * 64 * 5 for a in range(1, 17) for b in range(1, 25)]
    nearest = min((c / max(costs) for c in costs), key=lambda c: abs(c - share))
    if abs(nearest - share) <= 0.01 * share:
        before, after = ow.prune_onnx(tmp_path / "made.onnx", None, target={"macs": share}).macs
        assert abs(after / before - share) <= 0.01 * share
    else:
        with pytest.raises(ow.DensityMissed, match=f"the closest reachable is {nearest:.4f}"):
            ow.prune_onnx(tmp_path / "made.onnx", None, target={"macs": share})
