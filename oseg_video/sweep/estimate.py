"""What a sweep would run and about how long, before it runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from oseg_video.jobs.counted import count_job
from oseg_video.sweep.records import Record
from oseg_video.sweep.table import Variation

_TERA, _PETA = 1e12, 1e15


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
    flops: tuple[float, float]
    """Of a clip's denoiser, fewest and most: counted matrix products, convolutions and attention."""


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
    tflops: float | None = None,
    retry_failed: bool = False,
) -> Estimate:
    """Count what is to do and estimate its time.

    records: of every item, by `survey`; empty where it is not known how they stand. A model and size of which
    clips are finished goes at their rate of counted FLOPs a second; the rest at an assumed `tflops`, 10^12
    FLOPs a second and worker. Raises OsegVideoError as `count_job` does.
    """
    shares = [_share(variation, records, retry_failed) for variation in variations]
    rates = _measured(variations, shares, records)
    hours = []
    for place, (rate, count) in rates.items():
        same = [share for share in shares if _place(share) == place and share.todo]
        basis = (
            f"measured: {count} finished clips of the same model and size ran at {rate / _TERA:.3g} TFLOPS"
        )
        hours += _hours(same, basis, rate)
    rest = [share for share in shares if _place(share) not in rates and share.todo]
    if tflops:
        hours += _hours(rest, f"assumed: {tflops:g} TFLOPS, and no time but the denoiser's", tflops * _TERA)
    return Estimate(tuple(shares), tuple(hours), 0 if tflops else sum(share.todo for share in rest))


def describe(found: Estimate) -> Iterator[str]:
    """The estimate for the terminal, line by line."""
    total: Counter[str] = Counter()
    for share in found.shares:
        total.update(clips=share.clips, done=share.done, failed=share.failed, todo=share.todo)
    yield f"{total['clips']} clips: {total['done']} done, {total['failed']} failed, {total['todo']} to do"
    rows = [("model", "method", "frames x height x width", "steps", "to do", "passes", "PFLOPs")]
    for share in found.shares:
        size = f"{share.frames} x {share.height} x {share.width}"
        passes, work = (_times(pair, share.todo) for pair in (share.passes, share.flops))
        rows.append(
            (
                share.model,
                share.method,
                size,
                str(share.steps),
                str(share.todo),
                _span(passes, 1),
                _span(work, _PETA),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for part in found.hours:
        yield f"about {_span(part.hours, 1)} GPU hours (of one worker) for {part.clips} clips; {part.basis}"
    if found.unknown:
        yield f"no estimate for {found.unknown} clips: none is finished yet; --tflops X assumes a rate"


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
        flops=counted.flops,
    )


def _belongs(one: Record, variation: Variation) -> bool:
    first = variation.subjects[0]
    return (one.model, one.method, one.prompt is None, one.image is None) == (
        variation.model,
        variation.method,
        first.prompt is None,
        first.image is None,
    )


def _place(share: Share) -> tuple[Any, ...]:
    """Clips of one place go at one rate."""
    return share.model, share.frames, share.height, share.width


def _measured(
    variations: Sequence[Variation], shares: Sequence[Share], records: Sequence[Record]
) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Counted FLOPs a second, and of how many finished clips."""
    work: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for variation, share in zip(variations, shares, strict=True):
        flops = sum(share.flops) / 2
        times = [one.seconds for one in records if _belongs(one, variation) and one.seconds]
        work[_place(share)] += [(flops, seconds) for seconds in times]
    return {
        place: (sum(flops for flops, _ in pairs) / sum(seconds for _, seconds in pairs), len(pairs))
        for place, pairs in work.items()
        if pairs
    }


def _hours(shares: Sequence[Share], basis: str, rate: float) -> list[Hours]:
    """One entry, or none where nothing is to do. rate: FLOPs a second."""
    if not shares:
        return []
    seconds = [sum(share.todo * share.flops[end] for share in shares) / rate for end in (0, 1)]
    return [Hours(basis, sum(share.todo for share in shares), (seconds[0] / 3600, seconds[1] / 3600))]


def _times(pair: tuple[float, float], count: int) -> tuple[float, float]:
    return pair[0] * count, pair[1] * count


def _span(pair: tuple[float, float], unit: float) -> str:
    least, most = (f"{value / unit:.3g}" if value / unit < 1000 else f"{value / unit:,.0f}" for value in pair)
    return least if least == most else f"{least} to {most}"
