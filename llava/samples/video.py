"""Frames of a video: from a file (PyAV or decord, an extra install) or from a folder with one picture per frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.errors import InputError, short
from llava.samples.lenient import attributes_of
from llava.samples.pictures import read_picture

FOLDER_FPS = 2
FOLDER_FRAMES = 10
INSTALL_HINT = "pip install -e '.[video]'"


@dataclass(frozen=True)
class VideoSettings:
    """Which frames of a video are used; the names of the flags.

    Raises:
        InputError: a number out of range.
    """

    video_fps: float | None = 1
    """Frames taken per second; None: 1."""
    frames_upbound: int | None = 0
    """At most so many; 0: no limit."""
    force_sample: bool = False
    """Exactly `frames_upbound` frames, if that is set."""

    def __post_init__(self) -> None:
        if self.video_fps is not None and not self.video_fps > 0:
            raise InputError(f"--video_fps {self.video_fps}: the frames taken per second must be more than 0")
        if (self.frames_upbound or 0) < 0:
            raise InputError(f"--frames_upbound {self.frames_upbound}: give a number of frames, or 0 for no limit")

    @classmethod
    def of(cls, data_args: Any) -> VideoSettings:
        """From an object with some of these attributes."""
        return cls(**attributes_of(cls, data_args))


@dataclass(frozen=True)
class Video:
    """Sampled frames: RGB pictures of one size, the time of each and the length of the video, in seconds."""

    frames: list[Image.Image]
    times: list[float]
    seconds: float

    @property
    def times_text(self) -> str:
        """Frame times as `0.00s,1.00s,...`."""
        return ",".join(f"{time:.2f}s" for time in self.times)

    def array(self) -> np.ndarray:
        """Frames as uint8 [F, H, W, 3]."""
        return np.stack([np.asarray(frame) for frame in self.frames])


def read_video(path: str | Path, settings: VideoSettings) -> Video:
    """Sample frames of a file or of a folder of frames. Raises `InputError` for a missing or unreadable video."""
    path = Path(path)
    if path.is_dir():
        return read_frames_folder(path, settings)
    if not path.is_file():
        raise InputError(f"video {short(path)} does not exist; check --video_folder and the record's path")
    return _read_file(path, settings, _decode_with_pyav)


def read_frames_folder(folder: Path, settings: VideoSettings) -> Video:
    """Frames from the pictures of a folder, in the order of their names, taken to be 2 per second.

    Ten of them are used, spread evenly, or `frames_upbound` with `force_sample`.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise InputError(f"video folder {short(folder)} cannot be read: {error.strerror}") from error
    if not files:
        raise InputError(f"video folder {short(folder)} holds no frames")
    count = (settings.frames_upbound if settings.force_sample else None) or FOLDER_FRAMES
    indices = np.linspace(0, len(files) - 1, count, dtype=int).tolist()
    frames = [_open_frame(files[index]) for index in indices]
    return Video(frames, [index / FOLDER_FPS for index in indices], len(files) / FOLDER_FPS)


def sample_indices(total: int, fps: float, settings: VideoSettings) -> list[int]:
    """Which of `total` frames are used, at `fps` frames a second, in order."""
    wanted = 1 if settings.video_fps is None else settings.video_fps
    upbound = settings.frames_upbound or 0
    indices = list(range(0, total, max(1, round(fps / wanted))))
    if upbound > 0 and (len(indices) > upbound or settings.force_sample):
        indices = np.linspace(0, total - 1, upbound, dtype=int).tolist()
    return indices


def process_video_with_pyav(video_file: str | Path, data_args: Any) -> np.ndarray:
    """Sampled frames of a video file as uint8 [F, H, W, 3], decoded by PyAV."""
    return _read_file(Path(video_file), VideoSettings.of(data_args), _decode_with_pyav).array()


def process_video_with_decord(video_file: str | Path, data_args: Any) -> tuple[np.ndarray, float, str, int]:
    """(frames uint8 [F, H, W, 3], seconds, frame times as text, F) of a video file, decoded by decord."""
    video = _read_file(Path(video_file), VideoSettings.of(data_args), _decode_with_decord)
    return video.array(), video.seconds, video.times_text, len(video.frames)


Pick = Callable[[int, float], list[int]]
Decoder = Callable[[Path, Pick], tuple[list[Image.Image], list[int], int, float]]


def _read_file(path: Path, settings: VideoSettings, decode: Decoder) -> Video:
    frames, indices, total, fps = decode(path, partial(sample_indices, settings=settings))
    return Video(frames, [index / fps for index in indices], total / fps)


def _decode_with_pyav(path: Path, pick: Pick) -> tuple[list[Image.Image], list[int], int, float]:
    try:
        import av
    except ImportError as error:
        raise InputError(f"reading the video file {path} needs PyAV: {INSTALL_HINT}") from error
    try:
        with av.open(str(path)) as container:
            fps = float(container.streams.video[0].average_rate or 0)
            total = sum(1 for _ in container.decode(video=0))  # headers often lie about the number of frames
        if total == 0 or fps <= 0:
            raise InputError(f"video {path} has no frames or no frame rate")
        indices = pick(total, fps)
        wanted = set(indices)
        with av.open(str(path)) as container:
            taken = {i: f.to_image().convert("RGB") for i, f in enumerate(container.decode(video=0)) if i in wanted}
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise InputError(f"video {path} cannot be decoded: {error}") from error
    return [taken[index] for index in indices], indices, total, fps


def _decode_with_decord(path: Path, pick: Pick) -> tuple[list[Image.Image], list[int], int, float]:
    try:
        import decord
    except ImportError as error:
        raise InputError(f"reading {path} with decord needs `pip install decord`; PyAV: {INSTALL_HINT}") from error
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        total, fps = len(reader), float(reader.get_avg_fps())
        indices = pick(total, fps)
        arrays = reader.get_batch(indices).asnumpy()
    except (OSError, RuntimeError) as error:
        raise InputError(f"video {path} cannot be decoded: {error}") from error
    return [Image.fromarray(array) for array in arrays], indices, total, fps


def _open_frame(file: Path) -> Image.Image:
    try:
        return read_picture(file)[0]
    except Exception as error:  # decoders raise errors of many kinds
        raise InputError(f"video frame {short(file)} cannot be read as an image: {short(error)}") from error
