"""Clips in and out of files. A clip in memory is uint8, [F, C, H, W], RGB."""

from oseg_video.media.clip import (
    Clip,
    ClipShape,
    Frame,
    MediaError,
    Pixels,
    Sound,
    frames_sha256,
    to_uint8,
)
from oseg_video.media.images import FRAME_SUFFIXES, frame_files, is_animated, natural_order
from oseg_video.media.reading import probe_clip, read_clip, stream_clip, stream_frames
from oseg_video.media.video import VIDEO_SUFFIXES, has_sound, read_comment, read_sound
from oseg_video.media.writing import write_clip

__all__ = [
    "FRAME_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Clip",
    "ClipShape",
    "Frame",
    "MediaError",
    "Pixels",
    "Sound",
    "frame_files",
    "frames_sha256",
    "has_sound",
    "is_animated",
    "natural_order",
    "probe_clip",
    "read_clip",
    "read_comment",
    "read_sound",
    "stream_clip",
    "stream_frames",
    "to_uint8",
    "write_clip",
]
