"""CIFAR's Python batches: small files in the real form, cut short, with other content, and with code inside."""

import os
import pickle

import numpy as np
import pytest
import torch

from openwork.data import cifar as module
from openwork.data import load_data
from openwork.data.unpickle import plain_pickle
from openwork.errors import DataError

ROWS = 6


def python2(data, **lists):
    """The bytes of a pickle as Python 2 with numpy of that time wrote the official files (protocol 2)."""
    raw = data.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    shape = b"".join(b"M" + size.to_bytes(2, "little") for size in data.shape)
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(" + shape + b"t" + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    content = b"\x80\x02}(U\x04data" + array
    for key, values in lists.items():
        content += b"U" + bytes([len(key)]) + key.encode() + b"](" + b"".join(b"K" + bytes([v]) for v in values) + b"e"
    return content + b"u."


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (ROWS, 3072), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("OPENWORK_DATA", "")
    for table in (module.ROWS_10, module.ROWS_100):
        for side in table:
            monkeypatch.setitem(table, side, ROWS)


@pytest.fixture
def ten(tmp_path):
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for number, name in enumerate(["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]):
        labels = [(number + i) % 10 for i in range(ROWS)]
        content = python2(pixels(number), labels=labels)
        if number % 2:  # half of the files as Python 3 would write them
            content = pickle.dumps({b"data": pixels(number), b"labels": labels, b"batch_label": b"x"}, protocol=2)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def hundred(tmp_path):
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    for seed, side in enumerate(["train", "test"]):
        labels = {"fine_labels": [99, 0, 5, 6, 7, 8], "coarse_labels": [19, 0, 1, 1, 1, 2]}
        (root / side).write_bytes(python2(pixels(seed), **labels))
    return root


def test_the_batches_are_read_in_order(ten):
    for root in (ten, ten.parent):
        data = load_data("cifar10", root=root)
        assert (data.x_train.shape, data.x_test.shape, data.classes) == ((30, 3, 32, 32), (6, 3, 32, 32), 10)
        assert data.y_test.tolist() == [0, 1, 2, 3, 4, 5]
        assert data.y_train[:8].tolist() == [1, 2, 3, 4, 5, 6, 2, 3]
        raw = torch.from_numpy(pixels(5)[2]).double().view(3, 32, 32) / 255  # red, green and blue planes, row by row
        expected = (raw - torch.tensor(module.MEAN_10)[:, None, None]) / torch.tensor(module.STD_10)[:, None, None]
        torch.testing.assert_close(data.x_train[26].double(), expected, rtol=0, atol=1e-5)


def test_cifar100_has_two_kinds_of_labels(hundred):
    fine, coarse = (load_data("cifar100", root=hundred, labels=kind) for kind in ("fine", "coarse"))
    assert (fine.classes, fine.y_train.tolist()) == (100, [99, 0, 5, 6, 7, 8])
    assert (coarse.classes, coarse.y_test.tolist()) == (20, [19, 0, 1, 1, 1, 2])
    with pytest.raises(DataError, match="cifar100: unknown labels 'corse'; did you mean 'coarse'"):
        load_data("cifar100", root=hundred, labels="corse")


def test_a_missing_file_says_where_to_get_it(ten):
    (ten / "data_batch_4").unlink()
    with pytest.raises(
        DataError,
        match=r"cifar10 was not found\. Searched: .*cifar-10-batches-py.*Unpack the Python version from https",
    ):
        load_data("cifar10", root=ten)
    with pytest.raises(DataError, match="cifar100 was not found. Searched: no folder was named"):
        load_data("cifar100")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9999])
def test_a_truncated_batch_is_refused(ten, share):
    path = ten / "data_batch_2"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        DataError, match=r"data_batch_2 must be a whole pickle of numpy arrays, .*unpack the archive again"
    ):
        load_data("cifar10", root=ten)


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil(os.mkdir, "made-by-a-pickle")), "it names (posix|nt).mkdir, which plain data does not need"),
        (pickle.dumps(Evil(eval, "1")), "it names builtins.eval, which plain data"),
        (pickle.dumps(Evil(np.load, "x")), r"it names numpy\.load, which plain data"),
        (b"cos\nsystem\n(S'touch made-by-a-pickle'\ntR.", "it names os.system, which plain data"),
        (b"cnumpy\nndarray.tofile\n.", r"it names numpy\.ndarray\.tofile, which plain data"),
        (b"Pfile\n.", "it refers to an object outside of the file"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "an array must be numpy.ndarray, got"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L9999999999999L\ntS'b'\ntR.", "an array must be made empty, got shape"),
        (b"cnumpy\ndtype\n(S'O'\ntR.", "an array must hold numbers, got dtype"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "bytes must come as latin1 text, got 'rot13'"),
    ],
)  # fmt: skip
def test_code_and_foreign_objects_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(DataError, match=message):
        plain_pickle(tmp_path / "batch")
    assert [p.name for p in tmp_path.iterdir()] == ["batch"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_data_of_any_protocol_is_read(tmp_path, protocol):
    content = {"a": [1, 2.5, None, True], b"b": np.arange(6, dtype=np.int32).reshape(2, 3), "c": (b"\xff\x00", "é")}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=protocol))
    found = plain_pickle(tmp_path / "x")
    assert (found["a"], found["c"]) == (content["a"], content["c"])
    assert (found[b"b"] == content[b"b"]).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"test_batch must be a dict with an array data and a list labels, got list"),
        ({b"data": [1], b"labels": [1]}, "a dict with an array data and a list labels, got"),
        ({b"data": pixels(0), b"fine_labels": [0] * 6}, r"a list labels, got .*fine_labels"),
        ({b"data": pixels(0)[:5], b"labels": [0] * 6}, r"must hold 6 rows of 3072 bytes and as many labels, got uint8 \(5, 3072\) and 6 labels"),
        ({b"data": pixels(0).astype("int64"), b"labels": [0] * 6}, "as many labels, got int64"),
        ({b"data": pixels(0), b"labels": [0] * 5}, "and 5 labels; unpack the archive again"),
        ({b"data": pixels(0), b"labels": [0] * 5 + [10]}, r"test_batch: labels must be integers in 0\.\.9, got 10"),
        ({b"data": pixels(0), b"labels": [0] * 5 + ["cat"]}, r"labels must be integers in 0\.\.9, got 'cat'"),
    ],
)  # fmt: skip
def test_wrong_content_is_refused(ten, content, message):
    (ten / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=message):
        load_data("cifar10", root=ten)
