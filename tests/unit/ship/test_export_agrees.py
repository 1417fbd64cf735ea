"""The parts of a packed folder agree with each other, with the result and with the model, or nothing is loaded."""

import copy
import json
import shutil

import pytest
import torch
from tests.unit.runtime.models import always
from tests.unit.ship.packing import forge, parts_of
from tests.unit.ship.test_export import edit
from torch import nn

import openwork as ow
from openwork.errors import FileError, VerificationFailed
from openwork.methods import group_importance, magnitude
from openwork.ship import export, read_packed
from openwork.ship.export import PACKED


def net():
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 8), nn.Softmax(-1))


def pruned(seed=0, model=None, density=0.3):
    torch.manual_seed(seed)
    model = (model or net()).eval()
    return model, ow.prune(model, magnitude(density=density))


@pytest.fixture
def shipped(tmp_path):
    model, result = pruned()
    packed = always(model)
    assert packed.openwork_gone == ("1", "3")
    return packed, result, export(packed, result, tmp_path / "p")


def test_one_changed_character_is_noticed(shipped):
    _, _, folder = shipped
    place = folder / "openwork.json"
    text = place.read_text()
    for old, new in (('"relu"', '"silu"'), ('"gone": [', '"gone": ["5", '), ('"kept": ', '"kept": 1')):
        assert old in text
        place.write_text(text.replace(old, new, 1))
        with pytest.raises(FileError, match=r"openwork.json: the checksum of the index differs; it was changed or is"):
            ow.load(folder, net())
    place.write_text(text)
    ow.load(folder, net())


def test_weights_of_another_export_are_refused(shipped, tmp_path):
    _, _, folder = shipped
    model, result = pruned(seed=1)
    other = export(always(model), result, tmp_path / "q")
    shutil.copyfile(other / PACKED, folder / PACKED)
    with pytest.raises(FileError, match=r"model.packed.safetensors: is not the file that openwork.json was written"):
        ow.load(folder, net())


def test_folders_of_older_versions_are_read(shipped):
    packed, result, folder = shipped
    edit(folder, lambda d: None, old=True)
    again, read = ow.load(folder, net())
    x = torch.randn(5, 16)
    assert torch.equal(again(x), packed(x))
    assert read.counts == result.counts


def test_an_older_index_that_was_changed_is_noticed_by_what_it_says(shipped):
    _, _, folder = shipped
    text = (folder / "openwork.json").read_text()
    for change, message in (
        (lambda d: d["gone"].append("5"), "gone names 5, a Softmax; packing takes away nothing but norms"),
        (lambda d: d["layers"]["0"].update(activation="silu"), "gone names 1, but no packed layer computes its relu"),
        (lambda d: d["layers"].pop("0"), "gone names 1, but no packed layer computes its relu"),
    ):
        (folder / "openwork.json").write_text(text)
        edit(folder, change, old=True)
        with pytest.raises(FileError, match=message):
            ow.load(folder, net())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["density"].update(kept="xx"), r"kept of the density must be a whole number .*, got 'xx'"),
        (lambda r: r["density"].update(kept=-7), "must be a whole number from 0 on, got -7"),
        (lambda r: r["density"].update(kept=True), "must be a whole number from 0 on, got True"),
        (lambda r: r["density"].update(kept=10**9), "the counts of the density must not fall"),
        (lambda r: r["density"].update(total_numel=3), "the counts of the density must not fall"),
        (lambda r: r["density"].update(kept=5), r"promises 5 kept weights in all, but the model holds \d+"),
        (lambda r: r["density"].pop("kept"), "incomplete or damaged"),
        (lambda r: r["tensors"][0].update(kept=1.5), "kept of 0.weight must be a whole number from 0 on, got 1.5"),
        (lambda r: r["tensors"][0].update(kept=3), r"0.weight holds \d+ weights that are not zero, but 3 were kept"),
        (lambda r: r["tensors"][0].update(kept=10**6), "the counts of 0.weight must not fall"),
    ],
)
def test_counts_that_cannot_be(shipped, change, message):
    _, _, folder = shipped
    edit(folder, lambda d: change(d["result"]))
    with pytest.raises(FileError, match=message):
        ow.load(folder, net())


def test_counts_of_a_saved_folder_are_checked_too(tmp_path):
    model, result = pruned()
    folder = ow.save(model, result, tmp_path / "r")
    data = json.loads((folder / "openwork.json").read_text())
    data["density"]["total_numel"] = "all"
    (folder / "openwork.json").write_text(json.dumps(data))
    with pytest.raises(FileError, match="total_numel of the density must be a whole number from 0 on, got 'all'"):
        ow.load(folder, net())


def test_a_bias_that_is_packed_is_refused(shipped):
    _, _, folder = shipped
    stored, _ = read_packed(folder / PACKED)
    stored["0.bias"] = stored["0.weight"]
    forge(folder / PACKED, *parts_of(stored))
    edit(folder, lambda d: None, old=True)
    with pytest.raises(FileError, match=r"incomplete or damaged \(TypeError: 0.bias is packed\)"):
        ow.load(folder, net())


def test_the_result_of_another_model_is_not_exported(tmp_path):
    model, result = pruned()
    packed = always(model)
    cases = [
        (
            pruned(seed=1)[1],
            r"export: 0.weight: \d+ entries that the mask prunes are not zero in the packed model; pass",
        ),
        (
            pruned(model=nn.Sequential(nn.Linear(16, 25)))[1],
            r"export: 0.weight: the packed model has no such weight of",
        ),
        (
            pruned(model=nn.Sequential(nn.ReLU(), nn.Linear(9, 9)))[1],
            r"1.weight: the packed model has no such weight of",
        ),
    ]
    for other, message in cases:
        for copied in (packed, always(model, override=dict.fromkeys("024", "dense"))):
            with pytest.raises(VerificationFailed, match=message):
                export(copied, other, tmp_path / "p")
            assert not list(tmp_path.iterdir())
    export(packed, result, tmp_path / "p")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_loaded_model_is_exported_again(shipped, tmp_path, dtype):
    model, result = pruned()
    folder = export(always(model, dtype=dtype), result, tmp_path / "a")
    for n in range(2):
        again, read = ow.load(folder, net())
        folder = export(again, read, tmp_path / f"again{n}")
    assert ow.load(folder, net())[1].counts == result.counts


def test_a_compacted_model_is_packed_and_exported(tmp_path):
    x = torch.randn(2, 1, 8, 8)
    model = ow.build_model("mlp", (1, 8, 8), 10).eval()
    result = ow.prune(model, group_importance(density=0.5, structure=ow.channels(example=x)))
    small = ow.compact(model, result)
    folder = export(always(small), result, tmp_path / "p")
    again, _ = ow.load(folder, copy.deepcopy(small))
    torch.testing.assert_close(again(x), small(x))


class Inside(nn.Module):
    """One layer under a name."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x):
        return self.first(x)


def folder_of(model, folder):
    result = ow.prune(model.eval(), magnitude(density=0.3))
    return export(always(model), result, folder)


@pytest.mark.filterwarnings("ignore")  # those of torch.compile
def test_a_model_that_does_not_fit_is_blamed_and_not_the_file(tmp_path):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    folder = folder_of(Inside(nn.Linear(16, 16)), tmp_path / "p")
    tied = nn.Module()
    tied.other, tied.first = nn.Linear(16, 16), nn.Linear(16, 16)
    tied.first.weight = tied.other.weight
    for given, message in (
        (
            Inside(nn.Conv2d(4, 4, 2)),
            "Inside: first must be a Linear, got Conv2d; pass the dense model that was packed",
        ),
        (Inside(nn.ReLU()), "Inside: .*Inside has no parameters"),
        (Inside(conv1d(16, 16)), "Inside: first must be a Linear, got Conv1D"),
        (nn.Sequential(nn.Linear(16, 16)), r"Sequential: it has no module first; pass .* packed \(a .*Inside\)"),
        (torch.compile(Inside(nn.Linear(16, 16))), "OptimizedModule: model= is compiled, load first and compile what"),
        (nn.DataParallel(Inside(nn.Linear(16, 16))), "DataParallel: model= wraps another module, take its .module"),
        (
            ow.load(folder, Inside(nn.Linear(16, 16)))[0],
            "Inside: model= is packed already; pass the dense model that was",
        ),
        (tied, "Module: first.weight must be a weight of its own, it has the name of another one"),
    ):
        with pytest.raises(FileError, match=message) as caught:
            ow.load(folder, given)
        assert str(caught.value).startswith(f"{folder}: does not fit ")
        assert "damaged" not in str(caught.value)
    image = folder_of(Inside(nn.Conv2d(4, 4, 2)), tmp_path / "q")
    with pytest.raises(FileError, match="first must be a Conv2d, got Linear"):
        ow.load(image, Inside(nn.Linear(16, 16)))
    turned = folder_of(Inside(conv1d(16, 16)), tmp_path / "t")
    with pytest.raises(FileError, match=r"first must be a Linear that holds its weight as \(in, out\), got Linear"):
        ow.load(turned, Inside(nn.Linear(16, 16)))
    ow.load(turned, Inside(conv1d(16, 16)))
