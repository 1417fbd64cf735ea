"""Pictures that stay in their files until a batch needs them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwork.data.pixels import normalised, pillow_image
from openwork.data.views import DRAWS, Crop, check_crop, middle_view, train_view
from openwork.errors import DataError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BROKEN = 1e-4
SAMPLED = 64  # files whose bytes enter the fingerprint


class PictureSource:
    """Picture files with their class numbers, decoded for each batch anew.

    Each sample is float32 ``[3, size, size]``, normalised with the mean and the deviation of ImageNet. A picture
    that does not decode is warned about once, left out of its batch, and counted.

    Args:
        name: of the data set, for messages.
        files: the pictures, ``[N]``.
        labels: their classes, int64 ``[N]``.
        size: side of the square in pixels.
        crop: how training cuts it, see ``train_view``.
        broken: share of the files that may fail to decode; 0 refuses the first.
        workers: threads that decode; they do not change the result.

    Raises:
        DataError: pillow is missing, unknown crop, a size or a count of workers below 1; on reading, more files
            than the limit do not decode, or none of a batch does.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        labels: Tensor,
        size: int,
        crop: Crop = "resized",
        broken: float = BROKEN,
        workers: int = 4,
    ):
        self._pillow = pillow_image(name)
        check_crop(name, crop)
        if size < 1 or workers < 1:
            raise DataError(f"{name}: size and workers must be at least 1, got {size} and {workers}")
        if not 0 <= broken < 1:
            raise DataError(f"{name}: broken is the share of files that may fail, in [0, 1), got {broken}")
        self.name, self.files, self.labels, self.size, self.crop = name, files, labels, size, crop
        self.limit, self.workers = int(broken * len(files)), workers
        self.failed: dict[Path, str] = {}
        self._pool: ThreadPoolExecutor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    @property
    def chunk(self) -> int:
        """About 24 MB of float32: 40 pictures of 224 pixels, 500 of 64."""
        return max(1, min(500, 2_000_000 // self.size**2))

    def __len__(self) -> int:
        return len(self.files)

    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.files), generator=generator)

    def read(self, numbers: Tensor | slice, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        chosen = range(*numbers.indices(len(self))) if isinstance(numbers, slice) else numbers.tolist()
        draws: list[list[float] | None] = [None] * len(chosen)
        if generator is not None:
            draws = torch.rand(len(chosen), DRAWS, generator=generator, dtype=torch.float64).tolist()
        read = self._map([self.files[number] for number in chosen], draws)
        whole = [(pixels, number) for number, pixels in zip(chosen, read, strict=True) if pixels is not None]
        if not whole:
            raise DataError(f"{self.name}: no picture of a batch of {len(chosen)} decodes; see {self.files[chosen[0]]}")
        x = torch.from_numpy(np.stack([pixels for pixels, _ in whole]))
        return normalised(x, MEAN, STD), self.labels[[number for _, number in whole]]

    def fingerprint(self) -> bytes:
        """A SHA-256 over the names and classes of all files and the bytes of 64 of them, evenly spaced."""
        digest = hashlib.sha256(repr((self.size, self.crop, len(self.files))).encode())
        digest.update(self.labels.numpy().tobytes())
        for file in self.files:
            digest.update(f"{file.parent.name}/{file.name}\n".encode())
        for index in range(min(SAMPLED, len(self.files))):
            digest.update(self.files[index * len(self.files) // min(SAMPLED, len(self.files))].read_bytes())
        return digest.digest()

    def _map(
        self, files: Sequence[Path], draws: Sequence[Sequence[float] | None]
    ) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None]:
        if self.workers == 1:
            results = list(map(self._decoded, files, draws))
        else:
            self._pool = self._pool or ThreadPoolExecutor(self.workers)
            results = list(self._pool.map(self._decoded, files, draws))
        for file, result in zip(files, results, strict=True):
            if isinstance(result, str):
                self._count(file, result)
        return [None if isinstance(result, str) else result for result in results]

    def _decoded(
        self, file: Path, draws: Sequence[float] | None
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | str:
        """Bytes ``[size, size, 3]``, or what is wrong with the file."""
        try:
            with self._pillow.open(file) as image:
                picture = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, EOFError, self._pillow.DecompressionBombError) as error:
            return f"{type(error).__name__}: {error}"
        view = middle_view(picture, self.size) if draws is None else train_view(picture, self.size, self.crop, draws)
        return np.asarray(view)

    def _count(self, file: Path, reason: str) -> None:
        if file in self.failed:
            return
        self.failed[file] = reason
        if len(self.failed) > self.limit:
            raise DataError(
                f"{self.name}: {file} does not decode ({reason}); that is picture number {len(self.failed)} of "
                f"{len(self.files)} that fails and at most {self.limit} may: repair or remove it, or raise the "
                "option broken (a share)"
            )
        warnings.warn(f"{self.name}: {file} does not decode and is left out ({reason})", stacklevel=4)
