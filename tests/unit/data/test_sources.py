"""The readers: generated files for what can go wrong, the real data for counts and known facts."""

import gzip
import hashlib
import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.data import fashion_mnist as fashion
from openwork.data import load_data, photopatch
from openwork.data.digits import digits
from openwork.data.fashion_mnist import fashion_mnist
from openwork.data.idx import parse_idx, unpacked
from openwork.data.photopatch import PHOTOS, photopatch27
from openwork.data.places import assets_folder
from openwork.errors import DataError


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No data of this machine is in reach."""
    for name in ("OPENWORK_DATA", "OPENWORK_ASSETS"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    return tmp_path


@pytest.fixture
def small_fashion(nowhere, monkeypatch):
    """Four small files of the right form, published as if they were the real ones; returns their bytes."""
    generator = np.random.default_rng(0)
    contents = {}
    for part, count in (("train", 6), ("t10k", 4)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_bytes(np.arange(count, dtype=np.uint8))
    monkeypatch.setattr(fashion, "MD5", {name: hashlib.md5(c).hexdigest() for name, c in contents.items()})
    return contents


def write(folder, contents, zipped):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        target = folder / (f"{name}.gz" if zipped else name)
        target.write_bytes(gzip.compress(content) if zipped else content)
    return folder


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**32 - 1))
def test_idx_round_trip(shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = parse_idx(idx_bytes(array), "array")
    assert found.shape == array.shape
    assert (found == array).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x is not an IDX file: it starts with nothing"),
        (b"\x89PNG1234", "x is not an IDX file: it starts with 89504e47"),
        (b"\0\0\x08\x02\0\0\0\x01", "x is not an IDX file: it starts with 00000802"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", r"x must hold bytes \(IDX type 8\), got type 13"),
        (b"\0\0\x08\x01\0\0\0\x03ab", r"x must hold 3 values for \(3,\), got 2"),
    ],
)
def test_what_is_not_idx_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        parse_idx(content, "x")


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: b"not gzip", lambda c: c[:12] + b"zzz" + c[15:]])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    path = tmp_path / "labels.gz"
    path.write_bytes(damage(gzip.compress(bytes(range(256)) * 9)))
    with pytest.raises(DataError, match=r"labels\.gz is not a whole gzip file \(.+\); fetch it again"):
        unpacked(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inner", ["", "FashionMNIST/raw", "fashion-mnist"])
@pytest.mark.parametrize("named", ["root", "variable", "debian"])
def test_fashion_mnist_is_found_in_each_place(small_fashion, nowhere, monkeypatch, zipped, inner, named):
    root = nowhere / "data"
    write(root / ("" if named == "debian" else inner), small_fashion, zipped)
    monkeypatch.setenv("OPENWORK_DATA", str(root if named == "variable" else nowhere / "absent"))
    monkeypatch.setattr(fashion, "DEBIAN", root if named == "debian" else nowhere / "debian")
    data = fashion_mnist(root=root if named == "root" else None)
    assert data.x_train.shape == (6, 1, 28, 28)
    assert data.y_test.tolist() == [0, 1, 2, 3]
    pixels = np.frombuffer(small_fashion["t10k-images-idx3-ubyte"][16:], dtype=np.uint8).reshape(4, 1, 28, 28)
    expected = (torch.from_numpy(pixels.astype("float64")) / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(data.x_test.double(), expected, rtol=0, atol=1e-6)  # float32 of values below 3


def test_fashion_mnist_refuses_other_bytes(small_fashion, nowhere):
    name = "t10k-labels-idx1-ubyte"
    wrong = {**small_fashion, name: small_fashion[name][:-1] + b"\x07"}
    root = write(nowhere / "data", wrong, zipped=True)
    with pytest.raises(DataError, match=rf"{name}\.gz is not the published file: md5 .* must be \w+, got \w+"):
        fashion_mnist(root)


def test_fashion_mnist_names_every_place_and_the_package(nowhere):
    with pytest.raises(DataError) as caught:
        fashion_mnist(nowhere)
    message = str(caught.value)
    for place in (nowhere, nowhere / "FashionMNIST/raw", nowhere / "absent", nowhere / "debian"):
        assert str(place) in message
    assert "Debian package dataset-fashion-mnist" in message
    assert "download=True" in message


def test_download_is_verified_and_reused(small_fashion, nowhere, monkeypatch):
    upstream = write(nowhere / "upstream", small_fashion, zipped=True)
    monkeypatch.setattr(fashion, "UPSTREAM", upstream.as_uri())
    root = nowhere / "root"
    root.mkdir()
    first = fashion_mnist(root, download=True)
    monkeypatch.setattr(fashion, "UPSTREAM", "file:///absent")
    assert fashion_mnist(root, download=True).fingerprint() == first.fingerprint()
    assert sorted(p.name for p in (root / "FashionMNIST/raw").iterdir()) == sorted(f"{n}.gz" for n in fashion.MD5)


def test_a_failed_download_leaves_nothing_behind(small_fashion, nowhere, monkeypatch):
    monkeypatch.setattr(fashion, "UPSTREAM", (nowhere / "absent").as_uri())
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz could not be fetched \(.*\); Install"):
        fashion_mnist(nowhere, download=True)
    assert list((nowhere / "FashionMNIST/raw").iterdir()) == []


def test_download_needs_a_folder(nowhere, monkeypatch):
    monkeypatch.delenv("OPENWORK_DATA")
    with pytest.raises(DataError, match="download=True needs a folder to write to; pass root="):
        fashion_mnist(download=True)


def test_a_root_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="root must be an existing folder, got '/no/such/folder'"):
        fashion_mnist("/no/such/folder")


def test_real_fashion_mnist():
    if not fashion.DEBIAN.is_dir():
        pytest.skip("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
    data = fashion_mnist()
    assert (data.input_shape, data.classes) == ((1, 28, 28), 10)
    assert data.y_train.bincount().tolist() == [6000] * 10
    assert data.y_test.bincount().tolist() == [1000] * 10
    assert abs(float(data.x_train.mean())) < 0.001
    assert abs(float(data.x_train.std()) - 1) < 0.001


def test_digits_are_split_by_class():
    data = digits()
    assert (len(data.x_train), len(data.x_test), data.input_shape) == (1437, 360, (1, 8, 8))
    assert (float(data.x_train.min()), float(data.x_train.max())) == (0.0, 1.0)
    whole = torch.cat([data.y_train, data.y_test]).bincount()
    assert (data.y_test.bincount() - whole * 360 / 1797).abs().max() < 1
    rows = {tuple(row) for row in torch.cat([data.x_train, data.x_test]).flatten(1).tolist()}
    assert len(rows) == 1797  # every picture on one side only


def test_digits_split_depends_on_the_seed_only():
    assert digits(seed=1).fingerprint() == digits(seed=1).fingerprint()
    assert digits(seed=1).fingerprint() != digits(seed=2).fingerprint()


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("digits", "sklearn", "scikit-learn"),
        ("photopatch-27", "PIL", "pillow"),
        ("cifar10-jpeg", "PIL", "pillow"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{name} needs {package}; install it: pip install 'openwork\[data\]'"):
        load_data(name)


def test_digits_are_those_that_scikit_learn_loads(monkeypatch):
    module = sys.modules["openwork.data.digits"]
    read = digits()
    monkeypatch.setattr(module, "INSIDE", "moved/elsewhere.csv.gz")
    assert digits().fingerprint() == read.fingerprint()


def test_digits_do_not_import_scikit_learn():
    code = "import sys; from openwork.data import load_data; load_data('digits'); print('sklearn' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """27 pictures of one colour each: red is the number of the photograph, green and blue its tile."""
    Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    folder = tmp_path / photopatch.BACKGROUNDS
    monkeypatch.setenv("OPENWORK_DATA", "")
    for number, photo in enumerate(PHOTOS):
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((480, 960, 3), 9 * number, dtype=np.uint8)
        pixels[..., 1] = (np.arange(480) // 96 * 40)[:, None]
        pixels[..., 2] = np.arange(960) // 96 * 20
        Image.fromarray(pixels).save(folder / photo, format="png")
    return tmp_path


def test_photopatch_patches_lie_in_one_tile_of_their_split(photos):
    data = photopatch27(photos, train=540, test=270)
    assert data.input_shape == (3, 32, 32)
    for x, y, split in ((data.x_train, data.y_train, False), (data.x_test, data.y_test, True)):
        assert y.bincount().tolist() == [len(y) // 27] * 27
        colours = ((x * 0.25 + 0.45) * 255).round().long().flatten(2)
        assert (colours == colours[..., :1]).all(), "a patch crosses the border of a tile"
        red, green, blue = colours[..., 0].unbind(1)
        assert (red == 9 * y).all()
        assert (((green // 40 + blue // 20) % 4 == 0) == split).all()
    assert photopatch27(photos, 27, 27, seed=3).fingerprint() == photopatch27(photos, 27, 27, seed=3).fingerprint()
    assert photopatch27(photos, 27, 27, seed=3).fingerprint() != photopatch27(photos, 27, 27, seed=4).fingerprint()


def test_photopatch_labels_follow_the_file_names():
    names = [photo.rsplit("/", 1)[-1] for photo in PHOTOS]
    assert len(names) == 27
    assert names == sorted(names)


def test_photopatch_counts_what_is_missing(photos, monkeypatch):
    monkeypatch.setattr(photopatch, "SYSTEM", photos / "nothing")  # this machine may have the packages
    (photos / photopatch.BACKGROUNDS / PHOTOS[3]).unlink()
    with pytest.raises(DataError, match=r"backgrounds \(1 of 27 photographs missing\).*lomiri-wallpapers-16\.04"):
        photopatch27(photos)
    with pytest.raises(DataError, match="photopatch-27: train and test must be at least 1, got 0 and 5"):
        photopatch27(photos, train=0, test=5)


@pytest.fixture
def small_cifar(tmp_path):
    """Twenty one-coloured pictures, sorted by class, half of them for testing."""
    Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    blobs = []
    for index in range(20):
        stream = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), 10 * index, dtype=np.uint8)).save(stream, format="jpeg")
        blobs.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, blobs)])
    path = tmp_path / "cifar10_jpeg_10k10k.npz"
    blob = np.frombuffer(b"".join(blobs), dtype=np.uint8)
    labels, is_test = np.arange(20, dtype=np.uint8) % 10, np.arange(20) < 10
    np.savez(path, blob=blob, offsets=offsets, labels=labels, is_test=is_test)
    return path


def test_cifar10_jpeg_reads_the_file_or_its_folder(small_cifar):
    data = load_data("cifar10-jpeg", root=small_cifar)
    assert load_data("cifar10-jpeg", root=small_cifar.parent).fingerprint() == data.fingerprint()
    assert data.y_train.tolist() == data.y_test.tolist() == list(range(10))
    expected = (torch.arange(10, 20) * 10 / 255 - 0.485) / 0.229
    torch.testing.assert_close(data.x_train[:, 0, 5, 5], expected, rtol=0, atol=1e-6)


def test_cifar10_jpeg_takes_a_part_evenly(small_cifar):
    assert load_data("cifar10-jpeg", root=small_cifar, train=5, test=2).y_train.tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(DataError, match=r"cifar10-jpeg: test must lie in 1\.\.10, got 11"):
        load_data("cifar10-jpeg", root=small_cifar, test=11)


def test_cifar10_jpeg_refuses_another_file(small_cifar, nowhere):
    small_cifar.write_bytes(small_cifar.read_bytes()[:300])
    with pytest.raises(DataError, match=r"npz must be an \.npz file with blob, offsets, labels, is_test"):
        load_data("cifar10-jpeg", root=small_cifar)
    np.savez(small_cifar, blob=np.zeros(1))
    with pytest.raises(DataError, match="offsets"):
        load_data("cifar10-jpeg", root=small_cifar)
    with pytest.raises(DataError, match=r"cifar10-jpeg was not found. Searched: .*absent.*OPENWORK_ASSETS"):
        load_data("cifar10-jpeg")


def test_real_cifar10_jpeg(assets):
    data = load_data("cifar10-jpeg", train=100, test=200)
    assert (data.input_shape, data.classes) == ((3, 32, 32), 10)
    assert data.y_train.bincount().tolist() == [10] * 10
    assert data.y_test.bincount().tolist() == [20] * 10


def test_assets_folder_follows_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENWORK_ASSETS", str(tmp_path))
    assert assets_folder() == tmp_path
    monkeypatch.setenv("OPENWORK_ASSETS", str(tmp_path / "absent"))
    assert assets_folder() is None
