"""Degrees for a number of ranks, and why. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from oseg_video.parallel.degrees import Degrees
from oseg_video.types import SettingError

# Branches are shared where that wastes at most this part of the ranks' time.
_WASTE = 0.05


@dataclass(frozen=True)
class Work:
    """What ranks could share."""

    clips: int
    """Clips of the job."""
    branch_costs: Mapping[int, float]
    """Number of branch ranks -> work of the busiest one in a step, counted in passes; from 1 up."""
    heads: int
    """Attention heads; 0 where no sequence of tokens can be shared."""
    tokens: int
    """Video tokens of a clip; 0 where no sequence of tokens can be shared."""


def choose_degrees(ranks: int, work: Work) -> tuple[Degrees, str]:
    """The degrees for `ranks` ranks, and the reasons in one line. Raises SettingError if there are none.

    Clips come first, because ranks that make different clips never wait for each other. Then branches, if
    they share the work of a step evenly, because they speak once a step. Then ulysses, as far as the heads
    divide, because it moves less than the ring.
    """
    for data in reversed(_divisors(ranks, work.clips)):
        rest = ranks // data
        branch = _branch_degree(rest, work)
        if branch is not None:
            break
    else:
        most = max(work.branch_costs)
        raise SettingError(
            f"parallel auto cannot use {ranks} ranks: this model has no sequence of tokens that ranks could "
            f"share, and {work.clips} clips of {most} branches occupy at most {work.clips * most} ranks"
        )
    sequence = rest // branch
    ulysses = math.gcd(sequence, work.heads) if work.heads else 1
    degrees = Degrees(data=data, branch=branch, ring=sequence // ulysses, ulysses=ulysses)
    _check_tokens(degrees, work)
    reasons = []
    if data > 1:
        reasons.append(f"data={data} of {work.clips} clips")
    if branch > 1:
        share = work.branch_costs[branch]
        reasons.append(f"branch={branch}: {work.branch_costs[1]:.2f} passes a step become {share:.2f} a rank")
    if ulysses > 1:
        reasons.append(f"ulysses={ulysses} divides {work.heads} heads")
    if degrees.ring > 1:
        reasons.append(f"ring={degrees.ring} for the rest")
    return degrees, "; ".join(reasons) or "one rank"


def check_degrees(degrees: Degrees, work: Work) -> None:
    """Refuse degrees that cannot share this work, naming the nearest that can. Raises SettingError."""
    sequence = degrees.ring * degrees.ulysses
    if sequence > 1 and not work.tokens:
        raise SettingError(
            f"parallel {degrees}: this model has no sequence of tokens that ranks could share; "
            f"use the axes branch and data"
        )
    most = max(work.branch_costs)
    if degrees.branch > most:
        raise SettingError(f"parallel {degrees}: the guidance has {most} branches; at most branch={most}")
    if degrees.data > work.clips:
        raise SettingError(f"parallel {degrees}: the job has {work.clips} clips; at most data={work.clips}")
    if work.heads and degrees.ulysses > work.heads:
        raise SettingError(
            f"parallel {degrees}: the model has {work.heads} attention heads; at most ulysses={work.heads}, "
            f"the rest as ring"
        )
    _check_tokens(degrees, work)


def _check_tokens(degrees: Degrees, work: Work) -> None:
    if degrees.ring * degrees.ulysses > max(work.tokens, 1):
        raise SettingError(
            f"parallel {degrees}: a clip has {work.tokens} video tokens, too few for ring times ulysses"
        )


def _branch_degree(ranks: int, work: Work) -> int | None:
    """How many of the ranks share branches; None where nothing else can be shared and these are too many."""
    possible = [degree for degree in _divisors(ranks, ranks) if degree in work.branch_costs]
    if not work.tokens:
        return ranks if ranks in possible else None
    even = [d for d in possible if work.branch_costs[d] * d <= work.branch_costs[1] * (1 + _WASTE)]
    return max(even)


def _divisors(number: int, limit: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0]
