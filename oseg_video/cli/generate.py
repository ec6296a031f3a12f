"""`oseg-video generate`."""

from __future__ import annotations

from argparse import Namespace

from oseg_video.cli.output import announce_loading, print_clip
from oseg_video.cli.parsing import (
    Commands,
    Parser,
    UsageError,
    add_command,
    add_run_flags,
    seconds,
    whole_number,
)
from oseg_video.cli.ranks import is_rank, ran_on_ranks, rank_count
from oseg_video.cli.settings import add_config_flag, add_setting_flags, job_of
from oseg_video.config import GenerateJob
from oseg_video.files import expanded

EXAMPLES = """examples:
  oseg-video generate --prompt "a blue square moving up on a black background" --out a.mp4
  oseg-video generate --model mochi --offload model --prompt "a paper boat" --seed 1 2 3 --out clips/
  oseg-video generate --model svd --offload model --image cat.png --out cat.mp4
  oseg-video generate --model mochi --gpus 4 --prompt "a paper boat" --out boat.mp4
  oseg-video reproduce a.mp4
"""


def register(commands: Commands) -> None:
    parser = add_command(
        commands, "generate", _run, help="make clips from prompts or an image", epilog=EXAMPLES
    )
    add_setting_flags(parser)
    add_config_flag(parser)
    add_run_flags(parser)
    _add_parallel_flags(parser)
    parser.add_argument(
        "--explain", action="store_true", help="say what the job would do and cost, without loading weights"
    )


def _add_parallel_flags(parser: Parser) -> None:
    group = parser.add_argument_group("several GPUs")
    group.add_argument(
        "--gpus",
        metavar="N",
        type=whole_number,
        help="run on N GPUs of this machine; with --device cpu on N processes (several machines: torchrun)",
    )
    group.add_argument(
        "--parallel",
        metavar="TEXT",
        default="auto",
        help="auto, or ranks per axis: data (clips), branch (branches of a step), ulysses and ring (tokens), "
        "such as ulysses=2,branch=2 (default: auto)",
    )
    group.add_argument(
        "--shard-weights",
        action="store_true",
        help="each GPU of ulysses and ring holds a part of the denoiser only: for models larger than one GPU",
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=600.0,
        help="when ranks wait for each other longer than this, it is an error (default: 600)",
    )


def _run(options: Namespace) -> int:
    if options.explain and options.json:
        raise UsageError("--json has no effect with --explain")
    job = job_of(options)
    ranks = rank_count(options, free="auto")
    if not is_rank():
        _check_files(job, overwrite=options.overwrite or options.explain)
        announce_loading()
    if options.explain:
        from oseg_video.jobs.explain import explain

        print(explain(job, ranks, options.parallel))
        return 0
    if ran_on_ranks(options, job.device):
        return 0
    from oseg_video.jobs.generate import generate

    generate(
        job,
        overwrite=options.overwrite,
        on_clip=lambda result: print_clip(result, options),
        parallel=options.parallel,
        shard_weights=options.shard_weights,
        timeout=options.timeout,
    )
    return 0


def _check_files(job: GenerateJob, *, overwrite: bool) -> None:
    """What of the checks before any work needs no library: they take seconds to import."""
    from oseg_video.jobs.outputs import check_outputs, plan_clips

    if job.image is not None and not expanded(job.image).exists():
        raise UsageError(f"cannot read {job.image}: No such file or directory")
    if not job.out.lower().endswith(".png"):  # a file or a folder of frames, as the model has it
        check_outputs(plan_clips(job), overwrite=overwrite)
