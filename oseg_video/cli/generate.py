"""`oseg-video generate`."""

from __future__ import annotations

from argparse import Namespace

from oseg_video.cli.output import print_clip
from oseg_video.cli.parsing import Commands, add_command, add_run_flags
from oseg_video.cli.settings import add_setting_flags, job_of

EXAMPLES = """examples:
  oseg-video generate --prompt "a blue square moving up on a black background" --out a.mp4
  oseg-video generate --model mochi --offload model --prompt "a paper boat" --seed 1 2 3 --out clips/
  oseg-video generate --model svd --offload model --image cat.png --out cat.mp4
  oseg-video reproduce a.mp4
"""


def register(commands: Commands) -> None:
    parser = add_command(
        commands, "generate", _run, help="make clips from prompts or a picture", epilog=EXAMPLES
    )
    add_setting_flags(parser)
    add_run_flags(parser)
    parser.add_argument(
        "--explain", action="store_true", help="say what the job would do and cost, without loading weights"
    )


def _run(options: Namespace) -> int:
    job = job_of(options)
    if options.explain:
        from oseg_video.runtime.explain import explain

        print(explain(job))
        return 0
    from oseg_video.runtime.generate import generate
    from oseg_video.runtime.progress import Progress

    generate(
        job,
        overwrite=options.overwrite,
        progress=Progress(quiet=options.quiet),
        on_clip=lambda result: print_clip(result, options),
    )
    return 0
