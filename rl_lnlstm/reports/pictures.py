"""The pictures of episodes, small enough for a report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image

SIDE = 320  # pixels of the longer side
QUALITY = 75
SMALLEST = 32  # pixels; smaller pictures are of no use
FEW_COLORS = 256


class PictureRecorder:
    """Keeps pictures of episodes as WebP files in memory; a `FrameRecorder`.

    Args:
        wanted: for each episode, by its number, which of its pictures to keep. There is a picture before each step, and
            one at the end.

    Attributes:
        pictures: the files of each episode.
    """

    captioned = False

    def __init__(self, wanted: Sequence[Collection[int]]) -> None:
        self._wanted, self._seen = wanted, [0] * len(wanted)
        self.pictures: list[list[bytes]] = [[] for _ in wanted]

    def add(self, number: int, seed: int | None, picture: np.ndarray, caption: list[str]) -> None:
        """Takes the next picture of an episode, RGB `[height, width, 3]` uint8."""
        if self._seen[number] in self._wanted[number]:
            self.pictures[number].append(_encoded(Image.fromarray(picture), SIDE))
        self._seen[number] += 1

    def end(self, number: int, episode_return: float) -> None:
        """Does nothing, because all pictures are there."""

    def drop(self, number: int) -> None:
        """Forgets the pictures of an episode that does not count."""
        self._seen[number], self.pictures[number] = 0, []


def fitting(pictures: list[bytes], budget: int) -> list[bytes]:
    """Pictures that take at most `budget` bytes together. They are made smaller as often as necessary."""
    while pictures and (total := sum(map(len, pictures))) > budget:
        images = [Image.open(io.BytesIO(picture)) for picture in pictures]
        side = max(max(image.size) for image in images)
        if side <= SMALLEST:
            return []
        side = max(SMALLEST, int(0.9 * side * math.sqrt(budget / total)))
        pictures = [_encoded(image, side) for image in images]
    return pictures


def data_uri(picture: bytes) -> str:
    """The picture as an address that holds its content."""
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def is_small(picture: bytes) -> bool:
    """Whether the picture must be enlarged to be seen."""
    return max(Image.open(io.BytesIO(picture)).size) < SIDE


def _encoded(image: Image.Image, side: int) -> bytes:
    file = io.BytesIO()
    image.thumbnail((side, side))
    drawn = image.getcolors(FEW_COLORS) is not None  # such pictures are small without loss, and stay sharp
    image.save(file, "webp", quality=QUALITY, lossless=drawn)
    return file.getvalue()
