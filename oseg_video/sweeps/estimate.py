"""What a sweep would run and about how long, before it runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from oseg_video.jobs.counted import count_job
from oseg_video.sweeps.recipe import Subject
from oseg_video.sweeps.records import Record
from oseg_video.sweeps.table import Variation


@dataclass(frozen=True)
class Share:
    """The clips of one model with one method."""

    model: str
    method: str
    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    steps: int
    clips: int
    done: int
    failed: int
    todo: int
    passes: tuple[float, float]
    """Of a clip through the denoiser, fewest and most."""
    idle: str | None
    """As of `CountedJob`."""


@dataclass(frozen=True)
class Hours:
    """An estimate for some of the clips."""

    basis: str
    """What it rests on, for the reader."""
    clips: int
    hours: tuple[float, float]
    """Of one worker, least and most."""


@dataclass(frozen=True)
class Estimate:
    """What is to do."""

    shares: tuple[Share, ...]
    hours: tuple[Hours, ...]
    unknown: int
    """Clips whose time cannot be told."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def estimate(
    variations: Sequence[Variation],
    records: Sequence[Record],
    *,
    seconds_per_pass: float | None = None,
    retry_failed: bool = False,
) -> Estimate:
    """Count what is to do and estimate its time.

    records: of every item, by `survey`; empty where it is not known how they stand. A pass takes what it took
    in finished clips of the same model and size, with its share of all else; where there are none,
    `seconds_per_pass`. Raises OsegVideoError as `count_job` does.
    """
    shares = [_share(variation, records, retry_failed) for variation in variations]
    measured = _measured(variations, shares, records)
    hours = []
    for place, (seconds, count) in measured.items():
        same = [share for share in shares if _place(share) == place and share.todo]
        basis = f"measured: {count} finished clips of the same model and size took {seconds:.3g} s a pass"
        hours += _hours(same, basis, seconds)
    rest = [share for share in shares if _place(share) not in measured and share.todo]
    if seconds_per_pass:
        basis = f"assumed: {seconds_per_pass:g} s a pass, and no time but the denoiser's"
        hours += _hours(rest, basis, seconds_per_pass)
    unknown = 0 if seconds_per_pass else sum(share.todo for share in rest)
    return Estimate(tuple(shares), tuple(hours), unknown)


def describe(found: Estimate) -> Iterator[str]:
    """The estimate for the terminal, line by line."""
    total: Counter[str] = Counter()
    for share in found.shares:
        total.update(clips=share.clips, done=share.done, failed=share.failed, todo=share.todo)
    yield f"{total['clips']} clips: {total['done']} done, {total['failed']} failed, {total['todo']} to do"
    rows = [("model", "method", "frames x height x width", "steps", "to do", "passes")]
    for share in found.shares:
        size = f"{share.frames} x {share.height} x {share.width}"
        rows.append(
            (share.model, share.method, size, str(share.steps), str(share.todo), _span(_all_passes([share])))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for share in found.shares:
        if share.idle:
            yield f"warning: {share.method} on {share.model}: {share.idle}"
    for part in found.hours:
        yield f"about {_span(part.hours)} GPU hours (of one worker) for {part.clips} clips; {part.basis}"
    if found.unknown:
        why = "none is finished yet; --seconds-per-pass X assumes a time"
        yield f"no estimate for {found.unknown} clips: {why}"


def _share(variation: Variation, records: Sequence[Record], retry_failed: bool) -> Share:
    job = variation.job
    counted = count_job(job)
    states = Counter(one.state for one in records if _belongs(one, variation))
    left = variation.count - states["done"] - (0 if retry_failed else states["failed"])
    return Share(
        model=variation.model,
        method=variation.method,
        frames=job.frames,
        height=job.height,
        width=job.width,
        steps=job.steps,
        clips=variation.count,
        done=states["done"],
        failed=states["failed"],
        todo=left,
        passes=counted.passes,
        idle=counted.idle,
    )


def _belongs(one: Record, variation: Variation) -> bool:
    subject = Subject(prompt=one.prompt, image=one.image)
    first = variation.subjects[0]
    return (one.model, one.method, subject.kind) == (variation.model, variation.method, first.kind)


def _place(share: Share) -> tuple[Any, ...]:
    """In clips of one place a pass takes one time."""
    return share.model, share.frames, share.height, share.width


def _measured(
    variations: Sequence[Variation], shares: Sequence[Share], records: Sequence[Record]
) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Seconds of a pass, and in how many finished clips."""
    taken: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for variation, share in zip(variations, shares, strict=True):
        passes = sum(share.passes) / 2
        times = [one.seconds for one in records if _belongs(one, variation) and one.seconds]
        taken[_place(share)] += [(seconds, passes) for seconds in times]
    return {
        place: (sum(seconds for seconds, _ in pairs) / sum(passes for _, passes in pairs), len(pairs))
        for place, pairs in taken.items()
        if pairs
    }


def _hours(shares: Sequence[Share], basis: str, seconds_per_pass: float) -> list[Hours]:
    """One entry, or none where nothing is to do."""
    if not shares:
        return []
    least, most = (passes * seconds_per_pass / 3600 for passes in _all_passes(shares))
    return [Hours(basis, sum(share.todo for share in shares), (least, most))]


def _all_passes(shares: Sequence[Share]) -> tuple[float, float]:
    """Of all clips to do, fewest and most."""
    fewest, most = (sum(share.todo * share.passes[end] for share in shares) for end in (0, 1))
    return fewest, most


def _span(pair: tuple[float, float]) -> str:
    least, most = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in pair)
    return least if least == most else f"{least} to {most}"
