"""The chest X-rays: a file of the same form, and the real one where it is."""

import numpy as np
import pytest

from openwork.data import load_data
from openwork.data.registry import LOADERS
from openwork.errors import DataError, RecipeError


@pytest.fixture
def small(tmp_path):
    """Six training pictures, two of them normal."""
    arrays = {}
    for part, labels in (("train", [1, 0, 1, 1, 0, 1]), ("val", [0, 1]), ("test", [1, 1, 0])):
        arrays[f"{part}_images"] = (
            np.full((len(labels), 28, 28), 10, np.uint8) * np.arange(len(labels), dtype=np.uint8)[:, None, None]
        )
        arrays[f"{part}_labels"] = np.array(labels, np.uint8)[:, None]
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    return tmp_path


def test_pictures_labels_and_parts(small):
    data = load_data("pneumonia-mnist", root=small)
    assert data.input_shape == (1, 28, 28)
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([1, 0, 1, 1, 0, 1], [1, 1, 0])
    assert float(data.x_train[2, 0, 0, 0]) == pytest.approx((20 / 255 - 0.57) / 0.17, rel=1e-5)
    assert load_data("pneumonia-mnist", root=small, validation=True).y_test.tolist() == [0, 1]
    fewer = load_data("pneumonia-mnist", root=small / "pneumoniamnist.npz", normal=1)
    assert fewer.y_train.tolist() == [1, 0, 1, 1, 1]
    assert float(fewer.x_train[1, 0, 0, 0]) == float(data.x_train[1, 0, 0, 0])


def test_bad_files_and_counts_are_refused(small, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"pneumonia-mnist: normal must lie in 1\.\.2, got 3"):
        load_data("pneumonia-mnist", root=small, normal=3)
    monkeypatch.setenv("OPENWORK_ASSETS", str(tmp_path / "none"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="pneumonia-mnist was not found"):
        load_data("pneumonia-mnist", root=empty)
    np.savez(empty / "pneumoniamnist.npz", train_images=np.zeros(3))
    with pytest.raises(DataError, match="must be an .npz file with train_images, train_labels, test_images"):
        load_data("pneumonia-mnist", root=empty)
    wrong = {
        f"{p}_{k}": np.zeros((2, 8, 8) if k == "images" else 2) for p in ("train", "test") for k in ("images", "labels")
    }
    np.savez(empty / "pneumoniamnist.npz", **wrong)
    with pytest.raises(DataError, match="pictures must be bytes of 28x28 with a label each, got float64"):
        load_data("pneumonia-mnist", root=empty)


def test_the_real_file(assets):
    if not (assets / "pneumoniamnist.npz").is_file():
        pytest.skip("the asset folder has no pneumoniamnist.npz")
    data = load_data("pneumonia-mnist", root=assets)
    assert (len(data.x_train), len(data.x_test)) == (4708, 624)
    assert float(data.y_train.float().mean()) == pytest.approx(0.742, abs=1e-3)
    assert abs(float(data.x_train.mean())) < 0.1
    assert float(data.x_train.std()) == pytest.approx(1, abs=0.1)


def test_words_for_booleans_mean_what_they_say(monkeypatch):
    seen = {}

    def reader(root=None, validation: bool = False):
        seen["validation"] = validation
        return "read"

    monkeypatch.setitem(LOADERS, "pneumonia-mnist", reader)
    for word, meant in (("no", False), ("Yes", True), (True, True)):
        assert load_data("pneumonia-mnist", validation=word) == "read"
        assert seen["validation"] is meant
    with pytest.raises(RecipeError, match="pneumonia-mnist: option validation must be true or false, got 'maybe'"):
        load_data("pneumonia-mnist", validation="maybe")
