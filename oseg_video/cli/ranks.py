"""Commands that several ranks carry out together: `--gpus` and `--parallel`."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from oseg_video.cli.parsing import UsageError
from oseg_video.parallel.degrees import Degrees, started_as


def is_rank() -> bool:
    """Whether this process is one of several ranks, whoever has started them."""
    return started_as()[1] > 1


def rank_count(options: Namespace, free: str) -> int:
    """How many ranks the flags ask for. Raises OsegVideoError where the two contradict each other.

    free: the value of `--parallel` that leaves the axes open.
    """
    if options.parallel == free:
        return options.gpus or 1
    degrees = Degrees.parse(options.parallel)
    ranks: int = options.gpus or degrees.ranks
    degrees.require(ranks)
    return ranks


def ran_on_ranks(options: Namespace, device: str) -> bool:
    """Whether ranks were started for `--gpus`; then they have run this command with the same arguments."""
    if options.gpus is None:
        return False
    _, ranks, _ = started_as()
    if ranks > 1:
        if options.gpus != ranks:
            raise UsageError(f"--gpus {options.gpus}: this process is one of {ranks} ranks already")
        return False
    from oseg_video.cli import main
    from oseg_video.jobs.launch import launch

    launch(partial(main, options.arguments), options.gpus, device)
    return True
