"""Video files, decoded by PyAV (FFmpeg's libraries): the frames that can be shown, each once.

decord trusts the container's number of frames and fills what it cannot decode with copies of the nearest
frame, so it reads whole clips only where the stream shows that the number is right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from oseg_video.media.clip import (
    Clip,
    ClipShape,
    Frame,
    MediaError,
    Pixels,
    Sound,
    first_line,
    require_clip,
)
from oseg_video.media.whole import require_whole

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.filter import Graph

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in "mp4 m4v mov webm mkv avi mpg mpeg mpe ts mts m2ts vob wmv asf flv ogv 3gp mxf y4m".split()
)
"""Of files that are taken for videos in a folder; a file that is named is tried whatever its suffix."""

_LISTS = frozenset("concat dash hls image2 imf mlv rtsp sdp vobsub webm_dash_manifest".split())
"""Formats of files that name other files, which would be read."""
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers whose packets are one frame each, with the codecs below."""
_A_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1")
_EIGHT_BITS = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "gbrp")
"""Of other kinds of pixels decord makes other colours."""
_UPRIGHT = (1, 0, 0, 1)
"""The display matrix of most frames."""
# Frames as `ffmpeg` converts them, and as OpenCV 4.11 does, which ignores the colour matrix of the file; with
# these graphs they are the same to the last bit (tests/unit/media/test_reading.py, tests/unit/evaluation).
_RGB = ("flags=bicubic", "rgb24")
_OPENCV = ("flags=bicubic:in_color_matrix=bt601", "bgr24")


def stream_video(path: Path) -> Generator[Frame, None, None]:
    """The frames of a video file one by one. Raises MediaError, at the latest where the damage is."""
    rgb, opencv = _Converter(*_RGB), _Converter(*_OPENCV)
    with contextlib.closing(_frames(path)) as frames:
        for index, frame in enumerate(frames):
            yield Frame(index, partial(_pixels, path, rgb, frame), partial(_pixels, path, opencv, frame))


def _frames(path: Path) -> Generator[Any, None, None]:
    """PyAV's frames of a file, whole and all of one size. Raises MediaError."""
    require_whole(path)
    with _reading(path), _open(path) as (container, stream):
        size = None
        for index, frame in enumerate(_decoded(container, stream)):
            if frame.is_corrupt:
                raise MediaError(f"cannot read {path}: frame {index} is damaged")
            if size not in (None, (frame.width, frame.height)):
                raise MediaError(f"cannot read {path}: it has frames of different sizes")
            size = (frame.width, frame.height)
            yield frame


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames in the order in which they are shown; what comes before the first whole one cannot be."""
    import av

    begun = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if begun:
                raise
            continue  # a stream that was cut between key frames
        for frame in frames:
            begun = True
            yield frame


def probe_video(path: Path) -> ClipShape:
    """How many frames can be shown, of what size; decodes all only where packets do not tell.

    Raises MediaError.
    """
    return _probe(path)[0]


def read_video(path: Path) -> Clip:
    """All frames of a video file. Raises MediaError."""
    shape, plain = _probe(path)
    if plain and (clip := _read_decord(path, shape)):
        return clip
    frames = [frame.rgb_HWC for frame in stream_video(path)]
    if not frames:
        raise MediaError(f"cannot read {path}: it has no frame that can be shown")
    return Clip(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous(), shape.fps, "pyav")


def read_comment(path: Path) -> str:
    """The `comment` that `write_clip` stored in an mp4; "" if there is none. Raises MediaError."""
    with _reading(path), _open(path) as (container, _):
        return str(container.metadata.get("comment", ""))


def has_sound(path: Path) -> bool:
    """Whether a video file has a sound track. Raises MediaError."""
    with _reading(path), _open(path) as (container, _):
        return bool(container.streams.audio)


def read_sound(path: Path) -> Sound | None:
    """The sound of a video file; None if it has none. Lossy as AAC is. Raises MediaError."""
    import av

    require_whole(path)
    with _reading(path), _open(path) as (container, _):
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        # The decoder leaves out what an encoder puts before the first sample, as the file says.
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        parts = [
            part.to_ndarray()
            for frame in [*container.decode(stream), None]
            for part in resampler.resample(frame)
        ]
        rate = stream.rate
        # What fills the last packet is no part of it.
        seconds = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        length = None if seconds is None else round(seconds * rate)
    if not parts:
        raise MediaError(f"cannot read {path}: its sound track is empty")
    return Sound(torch.from_numpy(np.concatenate(parts, axis=1)[:, :length]).contiguous(), rate)


def _probe(path: Path) -> tuple[ClipShape, bool]:
    """Shape of the clip, and whether every packet is a frame of 8 bits that is shown as it is."""
    require_whole(path)
    with _reading(path), _open(path) as (container, stream):
        plain = container.format.name in _INDEXED and stream.codec.name in _A_FRAME_A_PACKET
        eight_bits = stream.codec_context.pix_fmt in _EIGHT_BITS
        frames = 0
        for packet in container.demux(stream):
            if packet.size:
                plain = plain and not packet.is_discard and (frames > 0 or packet.is_keyframe)
                frames += 1
        rate = stream.average_rate or stream.guessed_rate
    with contextlib.closing(_frames(path)) as decoded:
        first = next(decoded, None)
        if first is None:
            raise MediaError(f"cannot read {path}: it has no frame that can be shown")
        height, width, _ = _pixels(path, _Converter(*_RGB), first).shape
        upright = _display_matrix(first) == _UPRIGHT
        if not plain:
            frames = 1 + sum(1 for _ in decoded)
    shape = ClipShape(frames, height, width, float(rate) if rate else None, "pyav")
    return shape, plain and eight_bits and upright


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn PyAV's errors into one line that names the file."""
    import av

    try:
        yield
    except MediaError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MediaError(f"cannot read {path}: {reason}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Container and video stream. A file is read, and nothing else that it may name."""
    import av

    formats = ",".join(sorted(av.formats_available - _LISTS))
    options = {"protocol_whitelist": "file", "format_whitelist": formats}
    try:
        container = av.open(f"file:{path}", options=options)
    except av.error.ArgumentError:
        raise MediaError(f"cannot read {path}: it is no video, or a list of other files") from None
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise MediaError(f"cannot read {path}: it has no video")
        stream.thread_type = "AUTO"
        yield container, stream


def _pixels(path: Path, converter: _Converter, frame: VideoFrame) -> Pixels:
    with _reading(path):
        return converter(frame)


class _Converter:
    """Frames of one stream to pixels; FFmpeg's own filter, since PyAV's reformatter differs for 10 bits."""

    def __init__(self, scaling: str, pixels: str) -> None:
        self._scaling = scaling
        self._pixels = pixels
        self._made_for: Any = None
        self._graph: Any = None

    def __call__(self, frame: VideoFrame) -> Pixels:
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._made_for:
            self._graph, self._made_for = self._make(frame), kind
        self._graph.push(frame)
        return _as_displayed(frame, self._graph.pull().to_ndarray())

    def _make(self, frame: VideoFrame) -> Graph:
        from av.filter import Graph

        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        graph.link_nodes(
            source,
            graph.add("scale", self._scaling),
            graph.add("format", self._pixels),
            graph.add("buffersink"),
        ).configure()
        return graph


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Signs of a, b, c, d of the matrix by which a frame is displayed: x' = ax + cy, y' = bx + dy.

    To the nearest quarter turn, mirrored or not; cameras and phones say so beside the pixels.
    """
    from av.sidedata.sidedata import Type

    found = frame.side_data.get(Type.DISPLAYMATRIX)
    if found is None:
        return _UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(bytes(found), np.int32).tolist()
    if abs(a) >= abs(b):
        b = c = 0
    else:
        a = d = 0
    return tuple(np.sign((a, b, c, d)).tolist())


def _as_displayed(frame: VideoFrame, pixels_HWC: Pixels) -> Pixels:
    a, b, c, d = _display_matrix(frame)
    if (a, b, c, d) == _UPRIGHT:
        return pixels_HWC
    if b:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    if a + c < 0:
        pixels_HWC = pixels_HWC[:, ::-1]
    if b + d < 0:
        pixels_HWC = pixels_HWC[::-1]
    return np.ascontiguousarray(pixels_HWC)


def _read_decord(path: Path, shape: ClipShape) -> Clip | None:
    """The clip as decord reads it; None where that is missing, fails, or finds other frames."""
    try:  # decord has no wheel on some platforms, and errors of many types
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # ffmpeg's messages; an error says enough
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != shape.frames:
            return None
        pixels = reader.get_batch(range(len(reader))).asnumpy()
        frames = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        require_clip(frames)
    except Exception:
        return None
    if frames.shape[2:] != (shape.height, shape.width):
        return None
    return Clip(frames, float(reader.get_avg_fps()), "decord")
