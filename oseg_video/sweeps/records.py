"""The index of a sweep: JSON lines, of which the last one of an item tells its state."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from oseg_video.sweeps.table import SweepItem

INDEX = "index.jsonl"
"""Name of the index in a sweep's folder. Below a URL every run writes its own, `index-RUN.jsonl`."""

State = Literal["pending", "done", "failed"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the index: an item, and what became of it."""

    item: str
    """Key of the item."""
    state: State
    file: str
    """Name of the clip in the folder; its manifest is beside it."""
    model: str
    method: str
    """Names in the recipe."""
    prompt: str | None
    image: str | None
    seed: int
    time: str
    """When the line was written, UTC."""
    seconds: float | None = None
    """done: wall clock of the clip, without loading the model."""
    seconds_per_step: float | None = None
    """done: mean over all steps but the first."""
    size: int | None = None
    """done: bytes of clip and manifest."""
    modified: int | None = None
    """done: when the later of them was written, in nanoseconds, where the storage has a time that stays."""
    reason: str | None = None
    """failed: why."""
    notes: tuple[str, ...] = ()
    """What the pipeline did to the item that its settings do not say, such as a prompt cut."""


def now() -> str:
    """The time for a line: UTC, ISO 8601, of equal length, so that later ones sort after earlier ones."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def record(item: SweepItem, state: State, **results: Any) -> Record:
    """A line about an item, as of now."""
    return Record(
        item=item.key,
        state=state,
        file=item.file,
        model=item.model,
        method=item.method,
        prompt=item.prompt,
        image=item.job.image,
        seed=item.seed,
        time=now(),
        **results,
    )


def to_lines(records: Iterable[Record]) -> str:
    """The text of records, one line each."""
    return "".join(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n" for one in records)


def from_lines(text: str) -> list[Record]:
    """The records in a text. What is none is left out: a line torn by a crash, or of a newer version."""
    names = {spec.name for spec in dataclasses.fields(Record)}
    records = []
    for line in text.split("\n"):  # not splitlines: a prompt may hold other line ends, such as U+2028
        try:
            values = {name: value for name, value in json.loads(line).items() if name in names}
            records.append(Record(**{**values, "notes": tuple(values["notes"])}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return records
