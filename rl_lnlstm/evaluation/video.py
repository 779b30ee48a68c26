"""Videos of episodes, with a caption on every picture."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image, ImageDraw, ImageFont

from rl_lnlstm.errors import UserError, missing_package
from rl_lnlstm.evaluation.environments import seeded_one_by_one

LINES = 3  # of every caption, because all pictures of a video must have the same size
MARGIN = 4  # pixels around the lines of a caption
FPS = 30  # pictures per second, if the environment does not specify it
SMALLEST = 320  # pixels; smaller pictures are enlarged, or the caption would not fit


class FrameRecorder(Protocol):
    """Takes the pictures of episodes; see `VideoRecorder`.

    Attributes:
        captioned: whether it uses all lines of the captions; the policy's opinions take time.
    """

    captioned: bool

    def add(self, number: int, seed: int | None, picture: np.ndarray, caption: list[str]) -> None:
        """Takes the next picture of an episode."""

    def end(self, number: int, episode_return: float) -> None:
        """The episode has ended; all its pictures were added."""

    def drop(self, number: int) -> None:
        """The episode does not count."""


class _Film(NamedTuple):
    path: Path
    seed: int | None
    writer: Any


class VideoRecorder:
    """Writes a video of each episode, named by its number, seed and return.

    Pictures are written at once, so that long episodes need no memory.

    Args:
        folder: the folder for the videos.
        fps: pictures per second.

    Raises:
        UserError: moviepy is not installed, or the folder cannot be written.
    """

    captioned = True

    def __init__(self, folder: Path, fps: float) -> None:
        try:
            from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter  # an extra that few need
        except ImportError as error:
            raise missing_package("a video", error, "rl-lnlstm[video]") from error
        self._writer = FFMPEG_VideoWriter
        self.folder, self._fps = folder, fps
        self._films: dict[int, _Film] = {}
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def for_envs(cls, envs: VectorEnv, folder: Path) -> Self:
        """A recorder with the frame rate of the environments.

        Raises:
            UserError: the environments cannot be seeded one by one; or as for the constructor.
        """
        if not seeded_one_by_one(envs):
            raise UserError("videos need environments that can be seeded one by one, and these cannot")
        return cls(folder, float(envs.metadata.get("render_fps", FPS)))

    def add(self, number: int, seed: int | None, picture: np.ndarray, caption: list[str]) -> None:
        """Adds a picture to the video of an episode.

        Args:
            number: number of the episode.
            seed: seed of the episode.
            picture: RGB, `[height, width, 3]` uint8.
            caption: lines of text below the picture, at most 3.
        """
        picture = captioned(picture, caption)
        with self._writing():
            if number not in self._films:
                path = self.folder / f".episode-{number:05d}.mp4"
                height, width, _ = picture.shape
                self._films[number] = _Film(path, seed, self._writer(str(path), (width, height), self._fps))
            self._films[number].writer.write_frame(picture)

    def end(self, number: int, episode_return: float) -> None:
        """Ends the video of an episode, and gives the file its name."""
        film = self._films.pop(number)
        film.writer.close()
        seed = "" if film.seed is None else f"-seed-{film.seed}"
        score = re.sub(r"[^\d.e+-]", "", f"{episode_return:.6g}")
        with self._writing():
            film.path.rename(self.folder / f"episode-{number:05d}{seed}-return-{score}.mp4")

    def drop(self, number: int) -> None:
        """Deletes the video of an episode that does not count."""
        film = self._films.pop(number, None)
        if film is not None:
            film.writer.close()
            film.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Deletes the videos of episodes that have not ended."""
        for number in list(self._films):
            self.drop(number)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"videos cannot be written to {self.folder}: {error}") from error


def rgb(picture: Any) -> np.ndarray:
    """A picture of an environment as RGB, `[height, width, 3]` uint8. Transparency is left out.

    Raises:
        UserError: it is no picture: another shape, fractions, or numbers outside 0 to 255.
    """
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise UserError(f"render() must return RGB [height, width, 3], got shape {list(array.shape)}")
    with np.errstate(invalid="ignore"):
        pixels = array[..., :3].astype(np.uint8)
    if not np.array_equal(pixels, array[..., :3]):
        raise UserError(f"render() must return whole numbers from 0 to 255, got others in an array of {array.dtype}")
    return pixels


def captioned(picture: np.ndarray, lines: list[str]) -> np.ndarray:
    """A picture with lines of text in a strip below it.

    Args:
        picture: RGB, `[height, width, 3]` uint8.
        lines: the text, at most 3 lines.

    Returns:
        A picture with an even height and width, as video codecs need.
    """
    scale = max(1, -(-SMALLEST // picture.shape[1]))
    picture = np.kron(picture, np.ones((scale, scale, 1), np.uint8)) if scale > 1 else picture
    font = ImageFont.load_default(size=14)
    line_height = 18
    height, width, _ = picture.shape
    total = height + line_height * LINES + 2 * MARGIN
    image = Image.new("RGB", (width + width % 2, total + total % 2))
    image.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines[:LINES]):
        draw.text((MARGIN, height + MARGIN + index * line_height), line, font=font, fill="white")
    return np.asarray(image)
