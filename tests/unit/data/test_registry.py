"""DataSet's own checks, names, and functions of the user."""

import dataclasses
import textwrap

import pytest
import torch

from openwork.data import DataSet, load_data
from openwork.errors import DataError

X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current folder; its name is unique to the test."""
    monkeypatch.chdir(tmp_path)
    name = f"factory_{abs(hash(tmp_path))}"

    def write(code):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        return name

    return write


def test_a_data_set_knows_its_shape_and_fingerprint():
    data = DataSet("own", X, Y, X, Y, classes=3)
    assert data.input_shape == (3,)
    assert data.fingerprint() == DataSet("other", X.clone(), Y, X, Y, classes=3).fingerprint()
    changed = X.clone()
    changed[3, 2] = 1e-7
    assert data.fingerprint() != dataclasses.replace(data, x_test=changed).fingerprint()
    assert data.fingerprint() != dataclasses.replace(data, y_train=Y.flip(0)).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": X.double()}, "own: x_train must be float32 and y_train int64, got torch.float64"),
        (
            {"y_test": Y.int()},
            "own: x_test must be float32 and y_test int64, got torch.float32 and torch.int32",
        ),
        ({"y_test": Y[:3]}, "own: x_test and y_test must have one length above 0, got 4 and 3"),
        (
            {"x_train": X[:0], "y_train": Y[:0]},
            "own: x_train and y_train must have one length above 0, got 0",
        ),
        ({"classes": 2}, r"own: y_train must lie in 0\.\.1, got 0\.\.2"),
        ({"x_test": torch.zeros(4, 5)}, r"train and test samples must have one shape, got \(3,\) and \(5,\)"),
        ({"augment": "flop"}, "own: unknown augment 'flop'; did you mean 'flip'"),
    ],
)
def test_a_wrong_data_set_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        dataclasses.replace(DataSet("own", X, Y, X, Y, classes=3), **change)


@pytest.mark.parametrize(
    "result",
    [
        "DataSet('own', x, y, x[:2], y[:2], 3)",
        "(x, y, x[:2], y[:2])",
        "[x.double(), y.int(), x[:2], y[:2]]",
        "(x.numpy(), y.numpy(), x[:2].numpy(), y[:2].numpy())",
        "(TensorDataset(x, y), TensorDataset(x[:2], y[:2]))",
        "(DataLoader(TensorDataset(x, y), 3), DataLoader(TensorDataset(x[:2], y[:2]), 3))",
        "([(x[:3], y[:3]), (x[3:], y[3:])], [(x[:2], y[:2])])",
    ],
)
def test_a_factory_may_return_each_form(module, result):
    name = module(f"""
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        from openwork.data import DataSet
        def make():
            x, y = torch.arange(8.0).view(4, 2), torch.tensor([0, 2, 1, 0])
            return {result}
    """)
    data = load_data(f"{name}:make")
    assert data.x_train.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert data.y_train.tolist() == [0, 2, 1, 0]
    assert data.y_test.tolist() == [0, 2]
    assert (data.classes, data.x_train.dtype) == (3, torch.float32)


def test_a_factory_gets_root_and_options(module, tmp_path):
    name = module("""
        import torch
        class Makers:
            @staticmethod
            def make(root, size=1):
                x = torch.full((size, 1), float(len(root)))
                return x, torch.zeros(size), torch.zeros(1, 1), torch.zeros(1)
    """)
    data = load_data(f"{name}:Makers.make", root="abc", size=2)
    assert data.x_train.tolist() == [[3.0], [3.0]]
    with pytest.raises(DataError, match=r"cannot be called with \['root', 'sise'\]: got an unexpected keyword"):
        load_data(f"{name}:Makers.make", root="abc", sise=2)
    with pytest.raises(DataError, match=r"cannot be called with \[\]: missing a required argument: 'root'"):
        load_data(f"{name}:Makers.make")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}:", "must read package.module:function"),
        (":make", "must read package.module:function"),
        ("{}_absent:make", "there is no module '.*_absent'; run from its folder or install it"),
        ("{}:mkae", "has no 'mkae'"),
        ("{}:number", "must be callable, got int"),
        ("{}:nothing", "must return a DataSet, .*, got NoneType"),
        ("{}:three", "must return a DataSet, .*, got tuple of 3"),
        ("{}:words", r"train and test must give pairs \(x, y\) of tensors"),
        ("{}:empty", "train and test must not be empty"),
    ],
)
def test_what_is_no_factory_is_refused(module, spec, message):
    name = module("""
        number = 3
        def nothing(): return None
        def three(): return 1, 2, 3
        def words(): return ["train", "test"]
        def empty(): return [], []
    """)
    with pytest.raises(DataError, match=message):
        load_data(spec.format(name))


def test_a_module_that_cannot_import_says_what_is_missing(module):
    name = module("import no_such_package_at_all")
    with pytest.raises(DataError, match=rf"importing {name} failed: No module named 'no_such_package_at_all'"):
        load_data(f"{name}:make")


def test_names_and_options_are_checked():
    with pytest.raises(DataError, match=r"unknown data 'digit'; did you mean 'digits'.* known: cifar10, cifar10-jpeg"):
        load_data("digit")
    with pytest.raises(DataError, match="digits has no option 'sed'; did you mean 'seed'"):
        load_data("digits", sed=1)
