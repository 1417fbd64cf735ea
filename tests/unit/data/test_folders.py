"""Folders of pictures: generated JPEGs in the real layouts, and everything that can be wrong with them."""

import sys

import numpy as np
import pytest
import torch

from openwork.data import Batches, load_data
from openwork.data.pictures import PictureSource
from openwork.data.views import DRAWS, middle_view, train_view
from openwork.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
COLOURS = {"n01": (250, 10, 10), "n02": (10, 250, 10), "n03": (10, 10, 250)}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def picture(path, colour, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "jpeg", quality=95)


def layout(root, sides=("train", "val"), each=4):
    """``each`` one-coloured pictures a class and side; the colour tells the class."""
    for side in sides:
        for wnid, colour in COLOURS.items():
            for index in range(each):
                picture(root / side / wnid / f"{wnid}_{index}.JPEG", colour, (40 + index, 30))
    return root


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENWORK_DATA", "")
    return layout(tmp_path / "data")


def colours(x):
    """The class that each picture shows."""
    return ((x * STD[:, None, None] + MEAN[:, None, None]).mean((2, 3))).argmax(1)


@pytest.mark.parametrize("name", ["imagenet", "imagefolder"])
def test_pictures_get_the_class_of_their_folder(folder, name):
    data = load_data(name, root=folder, size=24)
    assert (data.input_shape, data.classes, len(data.train), len(data.test)) == ((3, 24, 24), 3, 12, 12)
    for source in (data.train, data.test):
        x, y = source.read(slice(0, 12))
        assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (12, 3, 24, 24))
        assert y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert torch.equal(colours(x), y)
    expected = (torch.tensor(COLOURS["n01"]) / 255 - MEAN) / STD
    torch.testing.assert_close(x[0, :, 5, 5], expected, rtol=0, atol=0.05)  # JPEG moves a colour by a step or two


def test_a_test_folder_serves_and_other_files_do_not_count(tmp_path):
    layout(tmp_path, ("train", "test"), each=2)
    (tmp_path / "train" / "n01" / "notes.txt").write_text("no picture")
    data = load_data("imagefolder", root=tmp_path, size=16)
    assert (len(data.train), len(data.test)) == (6, 6)


def test_any_batch_of_training_is_the_same_again(folder):
    generator = np.random.default_rng(0)
    for file in folder.glob("train/*/*"):
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file, "jpeg")
    first = Batches.over(load_data("imagefolder", root=folder, size=16, workers=1).train, 5, seed=3)
    again = Batches.over(load_data("imagefolder", root=folder, size=16, workers=3).train, 5, seed=3)
    seen = [batch for _ in range(2) for batch in first]
    assert [len(y) for _, y in seen] == [5, 5, 2, 5, 5, 2]
    for step in (5, 0, 3):
        for a, b in zip(seen[step], again.batch(step), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(seen[0][1], seen[3][1])  # another order in the next epoch


def test_nothing_is_decoded_before_it_is_read(folder, monkeypatch):
    data = load_data("imagefolder", root=folder, size=16, workers=1)
    opened = []
    real = data.train._pillow.open
    monkeypatch.setattr(data.train._pillow, "open", lambda file: opened.append(file) or real(file))
    data.train.read(torch.tensor([7, 2]))
    assert [file.name for file in opened] == ["n02_3.JPEG", "n01_2.JPEG"]


def test_training_changes_pictures_and_testing_does_not(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "noise.png")
    for crop in ("resized", "shift"):
        source = PictureSource("own", [tmp_path / "a" / "noise.png"] * 8, torch.zeros(8).long(), 32, crop)
        plain = source.read(slice(0, 8))[0]
        assert all(torch.equal(x, plain[0]) for x in plain)
        views = source.read(slice(0, 8), torch.Generator().manual_seed(0))[0]
        assert len({tuple(x.flatten().tolist()) for x in views}) == 8


def test_the_middle_is_cut_out():
    rows = np.arange(300, dtype=np.uint16)[:, None].repeat(500, 1) // 2
    columns = np.arange(500, dtype=np.uint16)[None].repeat(300, 0) // 2
    image = Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8))
    out = np.asarray(middle_view(image, 64)).astype(float)
    assert out.shape == (64, 64, 3)
    assert abs(out[..., 0].mean() - 74.75) < 1
    assert abs(out[..., 1].mean() - 124.75) < 2  # half a pixel of the small picture is 1.2
    scale = 300 / 64 / 2  # grey levels a pixel of the small picture
    assert abs((out[-1, 0, 0] - out[0, 0, 0]) / 63 - scale) < 0.1


def test_shift_moves_whole_pixels_and_flips():
    noise = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draws = [0.5] * DRAWS
    assert (np.asarray(train_view(image, 32, "shift", draws)) == noise).all()
    draws[-1] = 0.4
    assert (np.asarray(train_view(image, 32, "shift", draws)) == noise[:, ::-1]).all()
    moved = np.asarray(train_view(image, 32, "shift", [0.99, 0.0, *[0.5] * (DRAWS - 2)]))
    assert (moved[4:, :-4] == noise[:-4, 4:]).all()
    assert not moved[:4].any()


def test_a_part_of_a_narrow_picture_stays_inside():
    generator = torch.Generator().manual_seed(1)
    image = Image.new("RGB", (3, 90), (9, 9, 9))
    for draws in torch.rand(50, DRAWS, generator=generator).tolist():
        assert train_view(image, 8, "resized", draws).getpixel((4, 4)) == (9, 9, 9)


def test_every_mode_becomes_three_channels(tmp_path):
    for mode in ("L", "CMYK", "P", "RGBA"):
        path = tmp_path / f"{mode}.{'jpg' if mode in ('L', 'CMYK') else 'png'}"
        Image.new(mode, (20, 20)).save(path)
        assert PictureSource("own", [path], torch.zeros(1).long(), 16).read(slice(0, 1))[0].shape == (1, 3, 16, 16)


def broken_files(folder, count):
    for index in range(count):
        path = folder / "train" / "n02" / f"n02_{index}.JPEG"
        path.write_bytes((path.read_bytes()[:200], b"", b"not a picture")[index])


def test_the_first_broken_picture_is_refused_by_name(folder):
    broken_files(folder, 1)
    data = load_data("imagefolder", root=folder, size=16)
    with pytest.raises(
        DataError,
        match=r"imagefolder: .*n02_0\.JPEG does not decode \(.*\); that is picture number 1 of 12 .* at most 0 may",
    ):
        data.train.read(slice(0, 12))


def test_broken_pictures_are_left_out_up_to_the_limit(folder):
    broken_files(folder, 2)
    source = load_data("imagefolder", root=folder, size=16, broken=0.2).train
    with pytest.warns(UserWarning, match=r"n02_\d\.JPEG does not decode and is left out"):
        x, y = source.read(slice(0, 12))
    assert (len(x), y.tolist()) == (10, [0] * 4 + [1] * 2 + [2] * 4)
    assert torch.equal(colours(x), y)
    assert len(source.read(slice(0, 12))[1]) == 10  # no second warning, no second count
    assert sorted(file.name for file in source.failed) == ["n02_0.JPEG", "n02_1.JPEG"]
    with pytest.raises(DataError, match="imagefolder: no picture of a batch of 2 decodes; see .*n02_0"):
        source.read(torch.tensor([4, 5]))
    broken_files(folder, 3)
    with pytest.raises(DataError, match="picture number 3 of 12 that fails and at most 2 may: repair or remove it"):
        source.read(slice(0, 12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: [p.unlink() for p in (root / "train" / "n02").iterdir()],
         r"1 of 3 classes have no picture for train in .*, the first is 'n02'"),
        (lambda root: picture(root / "train" / "n04" / "x.jpg", (0, 0, 0)),
         r"train and val must hold the same class folders, but 1 lie on one side only \('n04' in train\)"),
        (lambda root: picture(root / "val" / "n04" / "x.jpg", (0, 0, 0)), r"\('n04' in val\); complete or remove"),
        (lambda root: [(root / "val" / n).rename(root / n) for n in COLOURS],
         "val must hold one folder a class, got none; sort the pictures into folders"),
        (lambda root: (root / "val").rename(root / "valid"), "imagenet was not found. Searched: .*train with .*val or test. .*ILSVRC2012"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_refused(folder, change, message):
    change(folder)
    with pytest.raises(DataError, match=message):
        load_data("imagenet", root=folder)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": 0}, "imagefolder: size and workers must be at least 1, got 0 and 4"),
        ({"workers": 0}, "imagefolder: size and workers must be at least 1, got 224 and 0"),
        ({"broken": 1.0}, r"imagefolder: broken is the share of files that may fail, in \[0, 1\), got 1.0"),
        ({"crop": "shft"}, "imagefolder: unknown crop 'shft'; did you mean 'shift'"),
    ],
)
def test_refused_options(folder, option, message):
    with pytest.raises(DataError, match=message):
        load_data("imagefolder", root=folder, **option)


def test_no_folder_and_no_pillow(folder, monkeypatch):
    with pytest.raises(DataError, match="imagefolder was not found. Searched: no folder was named"):
        load_data("imagefolder")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"imagefolder needs pillow; install it: pip install 'openwork\[data\]'"):
        load_data("imagefolder", root=folder)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENWORK_DATA", "")
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for wnid, colour in COLOURS.items():
        for index in range(3):
            picture(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", colour, (64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
    for index, wnid in enumerate(["n03", "n01", "n02", "n01"]):
        picture(root / "val" / "images" / f"val_{index}.JPEG", COLOURS[wnid], (64, 64))
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n02\nn03\nn01\n")
    return root


def test_tiny_imagenet_reads_its_own_layout(tiny):
    for root in (tiny, tiny.parent):
        data = load_data("tiny-imagenet", root=root)
        assert (data.input_shape, data.classes, len(data.train)) == ((3, 64, 64), 3, 9)
        x, y = data.test.read(slice(0, 4))
        assert y.tolist() == [0, 0, 1, 2]
        assert torch.equal(colours(x), y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "wnids.txt").unlink(), r"tiny-imagenet was not found. Searched: .*wnids\.txt.*tiny-imagenet-200\.zip"),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), r"val_annotations\.txt is missing; unpack the archive again"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\n"),
         "line 1 must name a picture and a class of wnids.txt, got 'val_0.JPEG.tn09'"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\nval_1.JPEG\n"), "line 2 must name"),
        (lambda root: [p.unlink() for p in (root / "train" / "n01" / "images").iterdir()], "1 of 3 classes have no picture for train"),
    ],
)  # fmt: skip
def test_a_wrong_tiny_imagenet_is_refused(tiny, change, message):
    change(tiny)
    with pytest.raises(DataError, match=message):
        load_data("tiny-imagenet", root=tiny)


def test_the_fingerprint_sees_names_classes_and_bytes(folder):
    def found():
        return load_data("imagefolder", root=folder, size=16).fingerprint()

    first = found()
    assert first == found()
    (folder / "train" / "n01" / "n01_0.JPEG").rename(folder / "train" / "n01" / "n00_0.JPEG")
    second = found()
    picture(folder / "val" / "n03" / "n03_1.JPEG", (1, 2, 3))
    assert len({first, second, found()}) == 3


def test_chunks_are_small_for_large_pictures():
    def chunk(size):
        return PictureSource("own", [], torch.zeros(0).long(), size).chunk

    assert (chunk(32), chunk(64), chunk(224), chunk(5000)) == (500, 488, 39, 1)
