"""ONNX files of strangers: corrupt, quantised, reaching out of their folder; budgets that cannot be met. Nothing is written."""

import sys

import numpy as np
import pytest
from tests.unit.onnx.made import Maker, build, onnx

import openwork as ow
from openwork.cli import main
from openwork.onnx import file as files
from openwork.onnx import prune as pruning
from openwork.onnx import read_onnx

HALF = {"params": 0.5}


@pytest.fixture
def path(tmp_path):
    m = Maker(18, x=("n", 3, 8, 8))
    onnx.save(m.model(m.head(m("Relu", m.conv(m("Relu", m.conv("x", 3, 48)), 48, 48)), 48)), tmp_path / "made.onnx")
    return tmp_path / "made.onnx"


def saved(model, path):
    onnx.save(model, path)
    return path


def test_files_that_are_no_models(path):
    with pytest.raises(ow.FileError, match="no such file; pass the path"):
        read_onnx(path.with_name("other.onnx"))
    content = path.read_bytes()
    for bad in (content[: len(content) // 2], b"\x00" * 100, b"hello", b""):
        path.write_bytes(bad)
        with pytest.raises(
            ow.FileError, match="is no ONNX file or is truncated|has no nodes or no outputs|not a valid"
        ):
            read_onnx(path)


def test_random_damage_is_an_error_or_harmless(path):
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = content.copy()
        for at in rng.integers(0, 700, 2):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            ow.prune_onnx(path, None, target={"params": 0.6})
        except ow.OpenworkError:
            refused += 1
    assert refused > 10


def outside(path, **said):
    model = build("residual")[0]
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_other_files(path, tmp_path):
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert ow.prune_onnx(path, tmp_path / "small.onnx", target={"macs": 0.6}).error <= 1e-5
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(ow.FileError, match="which holds the weights of"):
        read_onnx(path)


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", ""])
def test_weights_outside_the_folder(place, path):
    (path.parent.parent / "secret").write_bytes(b"0" * 4000)
    with pytest.raises(ow.FileError, match="which leaves the folder of the model"):
        read_onnx(outside(path, location=place))


def test_links_lengths_and_sizes_of_weights(path, tmp_path, monkeypatch):
    (tmp_path.parent / "secret").write_bytes(b"0" * 4000)
    (tmp_path / "link").symlink_to(tmp_path.parent / "secret")
    with pytest.raises(ow.FileError, match="is a link that leads out of the folder"):
        read_onnx(outside(path, location="link"))
    (tmp_path / "short").write_bytes(b"0" * 10)
    with pytest.raises(ow.FileError, match="has 10 bytes, .* wants"):
        read_onnx(outside(path, location="short", offset="4", length="7"))
    with pytest.raises(ow.FileError, match="must be numbers, got"):
        read_onnx(outside(path, location="short", offset="four"))
    with pytest.raises(ow.FileError, match="is not a valid ONNX model"):
        read_onnx(outside(path, location="short"))
    monkeypatch.setattr(files, "LIMIT", 5)
    with pytest.raises(ow.FileError, match="bytes of weights cannot be held in one ONNX model"):
        read_onnx(outside(path, location="short"))


def test_kinds_of_models_that_are_refused(path):
    m = Maker(18, x=("n", 4))
    scale, zero = m.add(np.float32(0.1)), m.add(np.int8(0))
    y = m("DequantizeLinear", m("QuantizeLinear", "x", scale, zero), scale, zero)
    with pytest.raises(ow.StructureError, match="is quantised .QuantizeLinear.; prune the model before"):
        read_onnx(saved(m.model(m("MatMul", y, m.w(4, 3))), path))
    model = build("residual")[0]
    model.opset_import[0].version = 9
    with pytest.raises(ow.StructureError, match="operator set 9 is older than 11"):
        read_onnx(saved(model, path))
    model = build("residual")[0]
    entries = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [1.0])
    places = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(entries, places, [4]))
    with pytest.raises(ow.StructureError, match="has sparse weights; make them dense"):
        read_onnx(saved(model, path))
    m = Maker(21, x=("n", 4))
    m.weights.append(onnx.helper.make_tensor("few", onnx.TensorProto.INT4, [2], [1, 2]))
    with pytest.raises(ow.StructureError, match="few is quantised; prune the model before"):
        read_onnx(saved(m.model(m("Relu", "x")), path))


def test_inputs_that_cannot_be_made(path):
    with pytest.raises(ow.RecipeError, match="no input has a dimension 'batch'; open dimensions: n"):
        ow.prune_onnx(path, None, target=HALF, dims={"batch": 3})
    with pytest.raises(ow.RecipeError, match="its dimensions must be at least 1"):
        ow.prune_onnx(path, None, target=HALF, dims={"n": 0})
    model = build("residual")[0]
    model.graph.input[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(model.graph.input[0].type))
    with pytest.raises(ow.OpenworkError, match="must be a tensor whose rank is known|not a valid"):
        ow.prune_onnx(saved(model, path), None, target=HALF)
    m = Maker(18, x=("n", 4))
    with pytest.raises(ow.FileError, match="ONNX Runtime cannot run the model"):
        ow.prune_onnx(saved(m.model(m("Reshape", m("MatMul", "x", m.w(4, 3)), m.i(7, 3))), path), None, target=HALF)


def test_budgets_and_bounds(path, tmp_path):
    def refused(error, match, **options):
        with pytest.raises(error, match=match):
            ow.prune_onnx(path, tmp_path / "small.onnx", **{"target": HALF, **options})

    refused(ow.RecipeError, "target must name one unit", target={})
    refused(ow.RecipeError, "unknown unit of a target 'mac'; did you mean 'macs'", target={"mac": 0.5})
    refused(ow.RecipeError, "target must be the share of params that stays, .*; 50 % is 0.5", target={"params": 50})
    refused(ow.RecipeError, "unknown kind of units 'head'; did you mean 'heads'", kinds=("head",))
    refused(ow.RecipeError, "needs a kind of units, and multiple", multiple=0)
    refused(ow.StructureError, "pattern 'conv' matches no initializer", where=ow.Select(exclude=("conv",)))
    refused(ow.StructureError, r"finds nothing to prune \(channels are not asked for; ", kinds=("heads",))
    refused(ow.StructureError, "finds nothing to prune .all groups are left out", where=ow.Select(exclude=("w0", "w2")))
    refused(ow.DensityMissed, "cannot be met within 1 %; the closest reachable", target={"params": 0.001})
    refused(ow.DensityMissed, "floors, multiples and axes that stay", at_least=40)
    (tmp_path / "small.onnx").write_bytes(b"mine")
    refused(ow.FileError, "exists already; choose another file")
    assert (tmp_path / "small.onnx").read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.onnx", "small.onnx"]


def test_a_wrong_smaller_model_is_never_written(path, tmp_path, monkeypatch):
    def spoil(change):
        def made(model, graph, alive):
            wrong = right(model, graph, alive)
            change(wrong.graph)
            return wrong

        return made

    right = pruning.small
    out = tmp_path / "small.onnx"
    for change, match in (
        (lambda g: g.node[0].input.__setitem__(0, "nobody"), "does not run, so nothing was written"),
        (lambda g: g.node[-1].CopyFrom(onnx.helper.make_node("Shape", g.node[-1].input[:1], g.node[-1].output)), "has shape|does not run"),
        (lambda g: setattr(g.node[-1], "op_type", "Identity") or g.node[-1].input.__delitem__(slice(1, None)), "output 0 has shape|does not run"),
        (lambda g: g.initializer[0].CopyFrom(onnx.numpy_helper.from_array(9 * onnx.numpy_helper.to_array(g.initializer[0]), g.initializer[0].name)), "of the smaller model differs from the masked one"),
    ):  # fmt: skip
        monkeypatch.setattr(pruning, "small", spoil(change))
        with pytest.raises(ow.VerificationFailed, match=match):
            ow.prune_onnx(path, out, target={"params": 0.6})
        assert not out.exists()
    monkeypatch.setattr(pruning, "small", right)
    monkeypatch.setattr(pruning, "LIMIT", 10)
    with pytest.raises(ow.FileError, match="bytes are too many for one ONNX file"):
        ow.prune_onnx(path, out, target={"params": 0.6})


def test_without_the_package(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ow.RecipeError, match="ONNX files need the package onnx; install it"):
        ow.prune_onnx(path, None, target=HALF)


def test_the_command(path, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    options = ["prune-onnx", str(path), "--macs", "0.6", "--dim", "n=1"]
    assert main([*options, "--dry-run"]) == 0
    assert not out.exists()
    assert main([*options, "--out", str(out), "--json", str(tmp_path / "report.json")]) == 0
    assert "saved as" in capsys.readouterr().out
    assert out.stat().st_size < path.stat().st_size
    assert main([*options, "--out", str(out)]) == 2
    assert main([*options, "--out", str(out), "--overwrite", "--exclude", "w0"]) in (0, 1)
    for bad, match in (
        ([*options, "--params", "0.5", "--out", "x"], "needs one budget, for instance"),
        (options, "needs --out, the file to write"),
        ([*options, "--dim", "n=two", "--out", "x"], "--dim must read NAME=SIZE"),
    ):
        assert main(bad) == 2
        assert match in capsys.readouterr().err
