"""`oseg-video info`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oseg_video.cli.parsing import Commands, UsageError, add_command, add_debug_flag
from oseg_video.console import visible_json

if TYPE_CHECKING:
    from oseg_video.config.manifest import Manifest

_LONGEST_VALUE = 500


def register(commands: Commands) -> None:
    parser = add_command(commands, "info", _run, help="print how a clip was made")
    parser.add_argument("file", metavar="FILE", help="a clip or its .json manifest")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the whole manifest, for scripts")
    form.add_argument("--yaml", action="store_true", help="print its settings as a file for --config")
    add_debug_flag(parser)


def _run(options: Namespace) -> int:
    from oseg_video.config import dump_yaml

    manifest = _read(options.file)
    if options.json:
        print(visible_json(manifest.text), end="")
    elif options.yaml:
        print(dump_yaml(manifest.read_job()), end="")
    else:
        for name, value in _summary(manifest):
            print(f"{name:9}{_shown(value)}")
    return 0


def _read(file: str) -> Manifest:
    from oseg_video.config.manifest import manifest_path, read_manifest

    if not file:
        raise UsageError("FILE must name a clip or its manifest, got ''")
    path = Path(file)
    if path.is_dir() and not (path.resolve().name and manifest_path(path.resolve()).is_file()):
        raise UsageError(f"{file} is a folder without a manifest beside it; name one of the clips in it")
    return read_manifest(path)


def _summary(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """What one asks first, as (name, value); what the manifest does not know is left out."""
    settings = {name: value for name, value in manifest.settings.items() if value is not None}
    clip, model, machine = manifest.clip, manifest.model, manifest.machine
    settings.pop("prompts", None)
    yield "prompt", manifest.prompt
    yield "image", settings.pop("image", None)
    yield "seed", manifest.seed
    yield "model", _joined(" ", model.get("name"), model.get("pipeline"), model.get("commit"))
    yield "method", manifest.method
    size = f"{clip.get('frames')} frames of {clip.get('height')} x {clip.get('width')}"
    yield "clip", _joined(", ", size, clip.get("fps") and f"{clip.get('fps')} a second")
    if isinstance(sound := clip.get("sound"), Mapping):
        channels, samples, rate = (sound.get(name) for name in ("channels", "samples", "rate"))
        yield "sound", f"{channels} channels, {samples} samples at {rate} Hz"
    for name in ("seeds", "guidance", "model", "revision", "frames", "height", "width", "fps"):
        settings.pop(name, None)
    yield "settings", _joined(", ", *(f"{name} {_plain(value)}" for name, value in settings.items()))
    seconds = manifest.seconds if isinstance(manifest.seconds, Mapping) else {}
    step = seconds.get("step") and f"{seconds.get('step')} a step"
    yield "seconds", _joined(", ", seconds.get("generate"), step)
    yield "machine", _joined(", ", machine.get("device"), machine.get("name"), machine.get("parallel"))
    versions = {name: manifest.versions.get(name) for name in ("oseg-video", "torch", "diffusers")}
    made = [f"{name} {version}" for name, version in versions.items() if version]
    yield "made", _joined(", ", manifest.created, *made)


def _joined(between: str, *parts: Any) -> str:
    return between.join(str(part) for part in parts if part not in (None, ""))


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _shown(value: Any) -> str:
    """On one line, and nothing in it that a terminal would take for a command."""
    text = "-" if value in (None, "") else str(value)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}[...]"
