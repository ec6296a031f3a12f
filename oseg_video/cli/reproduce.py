"""`oseg-video reproduce`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from oseg_video.cli.output import announce_loading, print_clip, say
from oseg_video.cli.parsing import Commands, add_command, add_run_flags, require_there


def register(commands: Commands) -> None:
    parser = add_command(commands, "reproduce", _run, help="make a clip again and compare its frames")
    parser.add_argument("file", metavar="FILE", help="a clip or its .json manifest")
    parser.add_argument("--out", metavar="TEXT", help="default: beside FILE, as NAME-reproduced")
    parser.add_argument("--device", metavar="TEXT", help="default: as in the manifest")
    add_run_flags(parser)


def _run(options: Namespace) -> int:
    require_there("file", options.file)
    announce_loading()
    from oseg_video.jobs.reproduce import reproduce

    done = reproduce(
        Path(options.file),
        out=options.out,
        device=options.device,
        overwrite=options.overwrite,
    )
    print_clip(done.result, options, identical=done.identical, differences=list(done.differences))
    if done.identical:
        if not (options.quiet or options.json):
            parts = "frame and every sample" if "sound" in done.result.manifest.clip else "frame"
            print(f"identical: every {parts} equals those of {options.file}")
        return 0
    changed = ", ".join(done.differences) or "nothing that the manifest records"
    parts = "frames or samples" if "sound" in done.result.manifest.clip else "frames"
    say(f"the {parts} differ from those of {options.file}; {len(done.differences)} differences: {changed}")
    return 1
