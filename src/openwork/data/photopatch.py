"""PhotoPatch-27: 32x32 colour patches of 27 photographs; the class is the photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwork.data.dataset import DataSet
from openwork.data.pixels import normalised, pillow_image
from openwork.data.places import Root, not_found, roots
from openwork.data.seeds import stream
from openwork.errors import DataError

LOMIRI = """
    Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace
    Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi analogpattern_by_Peter_Nerlich free_by_Peter_Nerlich
    friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi
    picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi
    umang_by_Abhishek_Mudgal
"""
MATE = "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower"
PHOTOS = sorted([f"{n}.jpg" for n in LOMIRI.split()] + [f"mate/nature/{n}.jpg" for n in MATE.split()],
                key=lambda photo: Path(photo).name)  # fmt: skip
SYSTEM = Path("/")  # where packages install
BACKGROUNDS = "usr/share/backgrounds"
LONG_SIDE, TILE, PATCH = 960, 96, 32
MEAN, STD = [0.45, 0.45, 0.45], [0.25, 0.25, 0.25]


def photopatch27(root: Root = None, train: int = 40_000, test: int = 5_400, seed: int = 0) -> DataSet:
    """Draw patches from the photographs of two Debian packages; no pixel is shared between train and test.

    Each photograph is scaled to 960 pixels on its long side and cut into tiles of 96. Tile (i, j) belongs to
    the test split when (i + j) % 4 == 0, and each patch lies inside one tile. The classes take turns.

    Args:
        root: the folder into which the packages were unpacked; ``OPENWORK_DATA`` and ``/`` are searched next.
        train: number of training patches.
        test: number of test patches.
        seed: chooses the patches.

    Raises:
        DataError: a photograph or pillow is missing, or a count is below 1.
    """
    if min(train, test) < 1:
        raise DataError(f"photopatch-27: train and test must be at least 1, got {train} and {test}")
    Image = pillow_image("photopatch-27")
    folder = _find(root)
    pictures = []
    for photo in PHOTOS:
        with Image.open(folder / photo) as image:
            size = [round(side * LONG_SIDE / max(image.size)) for side in image.size]
            small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        pictures.append(torch.from_numpy(np.array(small)))  # [H, W, 3]
    parts = [_patches(pictures, count, seed, split) for split, count in (("train", train), ("test", test))]
    return DataSet("photopatch-27", *parts[0], *parts[1], classes=len(PHOTOS), augment="flip")


def _find(root: Root) -> Path:
    places = [place / inner for place in (*roots(root), SYSTEM) for inner in (BACKGROUNDS, "")]
    missing = {place: [photo for photo in PHOTOS if not (place / photo).is_file()] for place in places}
    for place, names in missing.items():
        if not names:
            return place
    raise not_found(
        "photopatch-27",
        [f"{place} ({len(names)} of {len(PHOTOS)} photographs missing)" for place, names in missing.items()],
        "Install the Debian packages lomiri-wallpapers-16.04 and mate-backgrounds, or unpack them "
        "(apt-get download, dpkg-deb -x) into one folder and pass it as root=.",
    )


def _patches(pictures: list[Tensor], count: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """``count`` patches of one split and the number of the photograph of each."""
    generator = stream(seed, "photopatch", split)
    labels = torch.arange(count) % len(pictures)
    tiles = [_tiles(picture, split) for picture in pictures]
    drawn = torch.rand(count, generator=generator)
    offsets = torch.randint(TILE - PATCH + 1, (count, 2), generator=generator)
    patches = torch.empty(count, PATCH, PATCH, 3, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        corners = tiles[label]
        top, left = (corners[int(drawn[index] * len(corners))] + offsets[index]).tolist()
        patches[index] = pictures[label][top : top + PATCH, left : left + PATCH]
    return normalised(patches, MEAN, STD), labels


def _tiles(picture: Tensor, split: str) -> Tensor:
    """The upper left corners of the tiles of a split, ``[tiles, 2]``."""
    rows, columns = (side // TILE for side in picture.shape[:2])
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return grid[(grid.sum(dim=1) % 4 == 0) == (split == "test")] * TILE
