"""Folders of drawn clips with manifests, as a sweep of the shipped model leaves them."""

import json

from PIL import Image

from oseg_video.embedded import dataset
from oseg_video.media import write_clip


def write_frames(folder, clip):
    """A clip, uint8 [F, 3, H, W], as a folder of images; `write_clip` would wait for the disk."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(clip):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{index:05d}.png")


def write_manifest(clip, **job):
    """A manifest beside a clip with the given settings."""
    stem = clip.stem if clip.is_file() else clip.name
    parts = {key: {} for key in ("model", "clip", "versions", "machine")}
    manifest = {"schema": 1, "made_by": "oseg-video", "job": job, **parts}
    clip.with_name(f"{stem}.json").write_text(json.dumps(manifest))


def write_drawn(folder, count, *, seed=0, guidance="cfg", requests=0, format="png", data=dataset, **settings):
    """`count` clips of the data set `seed`, with the prompts of the data set `requests`; their paths.

    data: a module that draws clips, of one shape or of two.

    Every clip shows its prompt if `seed` is `requests`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips, _ = data.sample_clips(seed, range(count))
    _, asked = data.sample_clips(requests, range(count))
    paths = []
    for index in range(count):
        name = f"{guidance}-{index:03d}" + "".join(f"-{value}" for value in settings.values())
        path = folder / (name if format == "png" else f"{name}.{format}")
        if format == "png":
            write_frames(path, clips[index])
        else:
            write_clip(path, clips[index], 12, format=format)
        write_manifest(
            path, prompts=[data.caption(asked[index])], seeds=[index], guidance=guidance, **settings
        )
        paths.append(path)
    return paths
