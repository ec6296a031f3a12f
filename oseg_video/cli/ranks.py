"""Commands that several ranks carry out together: `--gpus` and `--parallel`."""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial

from oseg_video.cli.parsing import UsageError
from oseg_video.parallel.degrees import Degrees


def is_rank() -> bool:
    """Whether this process is one of several ranks, whoever has started them."""
    return _world() > 1


def _world() -> int:
    """As `Ranks.started` reads it; here nothing heavy is imported."""
    read = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    return int(read[1]) if all(value.isdecimal() for value in read) else 1


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
    if is_rank():
        if options.gpus != _world():
            raise UsageError(f"--gpus {options.gpus}: this process is one of {_world()} ranks already")
        return False
    from oseg_video.cli import main
    from oseg_video.jobs.launch import launch

    launch(partial(main, options.arguments), options.gpus, device)
    return True
