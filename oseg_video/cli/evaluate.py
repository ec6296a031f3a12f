"""`oseg-video evaluate`."""

from __future__ import annotations

from argparse import Action, Namespace, _ArgumentGroup
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from oseg_video import console
from oseg_video.cli.output import announce_loading
from oseg_video.cli.parsing import (
    Commands,
    UsageError,
    add_batch,
    add_command,
    add_quiet_flags,
    names,
    require_there,
)
from oseg_video.files import check_file, write_text

if TYPE_CHECKING:
    from oseg_video.evaluation.metrics.base import MetricOptions
    from oseg_video.evaluation.results import Evaluation

EXAMPLES = """examples:
  oseg-video evaluate clips/ --metrics alignment:embedded,fvd:embedded --baseline cfg --out a.json a.md
  oseg-video evaluate cfg/ oseg/ --metrics temporal_flickering,frame_difference --baseline cfg
  oseg-video evaluate clips/ --metrics fvd:fvd2048_16f --reference real/ --save-reference real.safetensors
  oseg-video evaluate clips/ --metrics is:c3d --weights is:c3d=c3d_ucf101.pt --trust-weights --device cuda
"""


def register(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        _run,
        help="measure clips and compare methods",
        description="Metric values of the clips in folders, with intervals. A folder of several methods (by "
        "their manifests) or several folders give a row each. Exit code 1: something had to be left out.",
        epilog=EXAMPLES,
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="clips: videos, GIFs, folders of images")
    parser.add_argument(
        "--metrics",
        required=True,
        metavar="A,B",
        type=names,
        help="exact names; --list-metrics shows all of them",
    )
    parser.add_argument("--list-metrics", action=_ListMetrics, nargs=0, help="print all metrics and exit")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="compare the other methods with this one, paired"
    )
    read = parser.add_argument_group("what metrics read (--list-metrics says which)")
    add_metric_flags(read)
    read.add_argument("--save-reference", metavar="FILE", help="keep their statistics in a .safetensors file")
    read.add_argument("--device", default="auto", metavar="TEXT", help="default: a GPU if there is one")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", nargs="+", default=[], metavar="FILE", help="results as .json (all), .csv, .md or .tex"
    )
    output.add_argument(
        "--format", default="markdown", metavar="TEXT", help="printed: markdown (default), latex, csv, json"
    )
    output.add_argument("--overwrite", action="store_true", help="replace results and statistics that exist")
    add_quiet_flags(output)


def add_metric_flags(group: _ArgumentGroup, besides: str = "") -> None:
    """The flags that `metric_options` reads. besides: what the command takes real clips for, too."""
    group.add_argument(
        "--reference",
        metavar="PATH",
        help=f"a folder of real clips, or a .safetensors file of their statistics{besides}",
    )
    group.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="METRIC=PATH",
        help="weights of a metric: a file, a folder or a hub repository (default: from the hub)",
    )
    group.add_argument(
        "--trust-weights",
        action="store_true",
        help="load torchscript files whose checksum is not known; they can run any code",
    )
    add_batch(group)


def metric_options(options: Namespace) -> MetricOptions:
    """What these flags say; networks run on the command's device, or that of its clips. Raises UsageError."""
    from oseg_video.evaluation.metrics.base import MetricOptions

    return MetricOptions(
        device=usable_device(getattr(options, "device", getattr(options, "setting_device", "auto"))),
        weights=read_weights(options.weights),
        trust_weights=options.trust_weights,
        reference=Path(options.reference) if options.reference else None,
        batch=options.batch,
    )


_FLAGS = {
    "reference": "--reference",
    "save_reference": "--save-reference",
    "weights": "--weights",
    "trust_weights": "--trust-weights",
    "device": "--device",
    "batch": "--batch",
}
"""What a metric may read -> its flag."""


class _ListMetrics(Action):
    def __call__(self, *_: Any) -> NoReturn:
        from oseg_video.evaluation.metrics.base import known_metrics

        known = known_metrics()
        width = max(map(len, known))
        for name, declared in known.items():
            flags = [flag for option, flag in _FLAGS.items() if option in declared.reads]
            needs = "needs --reference; " if declared.needs_reference else ""
            print(
                f"{name:{width}}  {declared.summary}"
                + (f" ({needs}reads {', '.join(flags)})" if flags else "")
            )
        raise SystemExit(0)


def _run(options: Namespace) -> int:
    require_there("folder", *options.folders)
    from oseg_video.evaluation.tables import FORMATS, format_of

    outputs = {Path(out): format_of(Path(out)) for out in options.out}
    for path in outputs:
        check_file(path, overwrite=options.overwrite)
    if options.format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {options.format!r}")
    announce_loading()
    from oseg_video.evaluation.evaluate import evaluate

    work = next((out.with_name(f".{out.name}.unfinished") for out in outputs), None)
    try:
        evaluation = evaluate(
            [Path(folder) for folder in options.folders],
            options.metrics,
            options=replace(
                metric_options(options),
                save_reference=Path(options.save_reference) if options.save_reference else None,
                overwrite=options.overwrite,
            ),
            baseline=options.baseline,
            work=work,
        )
    except KeyboardInterrupt:
        kept = "the same command goes on from here" if work else "nothing is kept without --out"
        raise KeyboardInterrupt(kept) from None
    for path, form in outputs.items():
        write_text(path, FORMATS[form](evaluation))
    if work is not None and evaluation.complete:  # otherwise clips may be fixed, and the rest is not lost
        import shutil

        shutil.rmtree(work, ignore_errors=True)
    print(FORMATS[options.format](evaluation), end="")
    return _verdict(evaluation)


def _verdict(evaluation: Evaluation) -> int:
    for name, reason in evaluation.skipped.items():
        console.logger.warning("skipped %s: %s", name, reason)
    for what, reason in evaluation.failed.items():
        console.logger.warning("no value for %s: %s", what, reason)
    for name, reason in evaluation.left_out.items():
        console.logger.info("not measured: %s: %s", name, reason)
    return 0 if evaluation.complete else 1


def read_weights(texts: Sequence[str]) -> dict[str, str]:
    """The values of `--weights`: metric -> path. Raises UsageError."""
    weights = {}
    for given in texts:
        metric, equals, path = given.partition("=")
        if not (metric and equals and path):
            raise UsageError(f"--weights must be METRIC=PATH, got {given!r}")
        weights[metric] = path
    return weights


def usable_device(device: str) -> str:
    """The value of `--device` for the networks of metrics; auto: a GPU if there is one. Raises UsageError."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
