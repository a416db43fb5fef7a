"""Frames of video files and of folders of frames: which ones, at what times, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from llava.errors import InputError
from llava.samples.video import VideoSettings, read_video, sample_indices
from llava.utils import process_video_with_decord, process_video_with_pyav

FRAMES, FPS = 24, 8


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds whose brightness grows by ten from frame to frame."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def flags(**values):
    return SimpleNamespace(**values)


def chosen(**values):
    return VideoSettings.of(flags(**values))


@pytest.mark.parametrize(
    ("settings", "indices"),
    [
        ({}, [0, 8, 16]),
        ({"video_fps": 2}, [0, 4, 8, 12, 16, 20]),
        ({"video_fps": 100}, list(range(24))),  # the step would round to 0
        ({"video_fps": 4, "frames_upbound": 3}, [0, 11, 23]),
        ({"frames_upbound": 5}, [0, 8, 16]),
        ({"frames_upbound": 5, "force_sample": True}, [0, 5, 11, 17, 23]),
    ],
)
def test_frames_of_a_file(clip, settings, indices):
    assert sample_indices(FRAMES, FPS, chosen(**settings)) == indices
    video = read_video(clip, chosen(**settings))
    assert video.times == [index / FPS for index in indices]
    assert video.seconds == 3.0
    brightness = video.array().mean((1, 2, 3))
    np.testing.assert_allclose(brightness, [10 * index for index in indices], atol=6)


def test_public_name(clip):
    frames = process_video_with_pyav(str(clip), flags())
    assert (frames.shape, frames.dtype) == ((3, 32, 64, 3), np.uint8)


def test_decord_gives_frames_length_times_and_count(monkeypatch, clip):
    class Reader:
        def __init__(self, path, num_threads):
            self.path = path

        def __len__(self):
            return FRAMES

        def get_avg_fps(self):
            return FPS

        def get_batch(self, indices):
            batch = np.stack([np.full((2, 4, 3), index, np.uint8) for index in indices])
            return SimpleNamespace(asnumpy=lambda: batch)

    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=Reader))
    frames, seconds, times, count = process_video_with_decord(str(clip), flags(video_fps=2))
    assert frames[:, 0, 0, 0].tolist() == [0, 4, 8, 12, 16, 20]
    assert (seconds, times, count) == (3.0, "0.00s,0.50s,1.00s,1.50s,2.00s,2.50s", 6)


@pytest.mark.parametrize(
    ("module", "function", "message"),
    [
        ("av", process_video_with_pyav, r"clip\.mp4 needs PyAV: pip install -e '.\[video\]'"),
        ("decord", process_video_with_decord, r"clip\.mp4 with decord needs"),
    ],
)
def test_missing_reader_names_the_extra(monkeypatch, clip, module, function, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=message):
        function(str(clip), flags())


def test_folder_of_frames(tmp_path):
    for number in range(4):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    video = read_video(tmp_path, chosen(force_sample=True, frames_upbound=2))
    assert [frame.getpixel((0, 0))[0] for frame in video.frames] == [0, 3]
    assert (video.times_text, video.seconds) == ("0.00s,1.50s", 2.0)


def test_what_is_refused(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(InputError, match=r"none\.mp4 does not exist; check --video_folder"):
        read_video(tmp_path / "none.mp4", chosen())
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(InputError, match=r"text\.mp4 cannot be decoded"):
        read_video(tmp_path / "text.mp4", chosen())
    with pytest.raises(InputError, match=r"--frames_upbound -1: give a number of frames"):
        chosen(frames_upbound=-1)
    with pytest.raises(InputError, match=r"--video_fps 0: .* more than 0"):
        chosen(video_fps=0)
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(InputError, match="frames holds no frames"):
        read_video(folder, chosen())
    (folder / "0.png").write_text("no picture")
    with pytest.raises(InputError, match=r"0\.png cannot be read as an image"):
        read_video(folder, chosen())
