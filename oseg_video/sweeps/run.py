"""Carry out a sweep: hand out what is not there yet, and keep the index."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oseg_video import console
from oseg_video.sweeps.engines.base import Engine
from oseg_video.sweeps.records import Record, now, record
from oseg_video.sweeps.stores import Stat, Store
from oseg_video.sweeps.table import SweepError, SweepItem
from oseg_video.sweeps.validity import is_whole, item_stat, names_of
from oseg_video.sweeps.worker import Outcome, Task

_LOOK_SECONDS = 2.0
"""How often to look for what other runs have finished."""
_MOST_LOSSES = 3
"""Workers that an item may lose before it counts as failed."""
_MOST_LOSSES_IN_A_ROW = 5
"""Times the number of workers: then something is wrong with all of them."""


@dataclass(frozen=True)
class Summary:
    """What came of a run."""

    total: int
    done: int
    """Items whose clip is there, whoever made it."""
    made: int
    """Items that this run made."""
    failed: tuple[Record, ...]
    records: tuple[Record, ...]
    """How every item stands, in the order of the table."""


def survey(items: Sequence[SweepItem], store: Store) -> tuple[list[Record], list[Record]]:
    """How the items stand, by the index and by a look at the clips: a record of each, and those of them that
    are news to the index.

    A clip that is not as the index knows it is read frame by frame. Writes nothing. Raises StoreError.
    """
    known = {one.item: one for one in store.read_records()}
    listing = store.listing()
    looked_at = console.bar(items, "checking")
    records = [_standing(item, known.get(item.key), listing, store) for item in looked_at]
    news = [one for one in records if one is not known.get(one.item)]
    return [_named_as(item, one) for item, one in zip(items, records, strict=True)], news


def run_sweep(
    items: Sequence[SweepItem],
    store: Store,
    engine: Engine,
    *,
    retry_failed: bool = False,
    on_record: Callable[[Record], None] | None = None,
    check: Callable[[Sequence[SweepItem]], None] | None = None,
) -> Summary:
    """Make every item that is neither there nor in the work of another run; wait for those.

    A failed item is recorded with its reason and the rest goes on; later runs leave it alone unless
    `retry_failed`. on_record: called with the index's line as soon as an item is done or failed. check: is
    given the items to be made, before the first of them. Store and engine are closed in the end. Raises
    StoreError, what `check` raises, and SweepError when workers keep dying or clips cannot be written,
    which then stay pending.
    """
    run = _Run(store, engine)
    made = failed = 0
    try:
        todo = run.prepare(items, retry_failed=retry_failed, check=check)
        with console.bar(None, "sweep", total=len(todo)) as bar:
            for settled, ours in run.settle(todo):
                made += ours and settled.state == "done"
                failed += settled.state == "failed"
                bar.set_postfix(failed=failed, refresh=False)
                bar.update()
                if ours and on_record:
                    on_record(settled)
        return run.summary(items, made)
    finally:
        engine.close()
        run.leave()


class _Run:
    """One run of a sweep: its claims, its tries, its view of the index."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        self._began = now()
        self._records: dict[str, Record] = {}
        self._tasks: dict[str, Task] = {}
        """What this run has claimed, by key."""
        self._losses: Counter[str] = Counter()
        self._losses_in_a_row = 0
        self._unwritten: set[str] = set()
        """Items that were made and could not be written."""
        self._writes = True
        """Whether the last clip that was made could be written."""
        self._again: set[str] = set()
        """Items that came back to be tried again."""
        self._offloaded: set[tuple[Any, ...]] = set()
        """Models and sizes that ran out of memory."""

    def prepare(
        self,
        items: Sequence[SweepItem],
        *,
        retry_failed: bool,
        check: Callable[[Sequence[SweepItem]], None] | None = None,
    ) -> deque[SweepItem]:
        """Bring the index up to date, if `check` lets it; the items that are to be made."""
        self._store.discard_unfinished()
        records, news = survey(items, self._store)
        self._records = {one.item: one for one in records}
        wanted = ("pending", "failed") if retry_failed else ("pending",)
        todo = deque(item for item in items if self._records[item.key].state in wanted)
        if check:
            check(todo)
        if news:
            self._store.add_records(news)
        return todo

    def settle(self, todo: deque[SweepItem]) -> Iterator[tuple[Record, bool]]:
        """Have every item done or failed, and say so: its record, and whether this run made it so."""
        elsewhere: list[SweepItem] = []
        looked = time.monotonic()
        while todo or elsewhere or self._engine.busy:
            while todo and self._engine.busy < self._engine.size:
                item = todo.popleft()
                if not self._claim(item):
                    elsewhere.append(item)
                elif settled := self._settled_meanwhile(item):
                    ours = item.key in self._again  # held since, so it was finished before something failed
                    self._release(item)
                    yield settled, ours
                else:
                    self._engine.start(self._tasks[item.key])
            if self._engine.busy:
                for outcome in self._engine.finished(_LOOK_SECONDS):
                    item = self._tasks[outcome.key].item
                    if made := self._result(outcome):
                        self._write(made)
                        self._release(item)
                        yield made, True
                    elif outcome.state == "not written":
                        todo.append(item)  # by then it shows whether it is its own fault
                    else:
                        todo.appendleft(item)
            elif elsewhere and not todo:
                time.sleep(_LOOK_SECONDS)
            if elsewhere and not todo and time.monotonic() - looked >= _LOOK_SECONDS:
                todo.extend(elsewhere)
                elsewhere.clear()
                looked = time.monotonic()

    def summary(self, items: Sequence[SweepItem], made: int) -> Summary:
        """How the items stand in the end."""
        last = [_named_as(item, self._records[item.key]) for item in items]
        done = sum(one.state == "done" for one in last)
        failed = tuple(one for one in last if one.state == "failed")
        return Summary(len(items), done, made, failed, tuple(last))

    def leave(self) -> None:
        """Let go of what is unfinished."""
        for task in list(self._tasks.values()):
            self._release(task.item)
        self._store.discard_unfinished()
        self._store.close()

    def _claim(self, item: SweepItem) -> bool:
        if item.key not in self._tasks and not self._store.claim(item.key):
            return False
        size = _size(item)
        self._tasks[item.key] = Task(item, "model" if size in self._offloaded else None)
        return True

    def _release(self, item: SweepItem) -> None:
        del self._tasks[item.key]
        self._store.release(item.key)

    def _settled_meanwhile(self, item: SweepItem) -> Record | None:
        """The record of a claimed item that another run, or a worker that was lost, has settled."""
        self._records |= {one.item: one for one in self._store.read_records()}
        known = self._records.get(item.key)
        if known and known.state == "failed" and known.time > self._began:
            return known
        listing = self._store.listing(names_of(known.file if known else item.file))
        found = _standing(item, known, listing, self._store)
        if found.state != "done":
            return None
        if found is not known:
            self._write(found)
        return found

    def _result(self, outcome: Outcome) -> Record | None:
        """What to write about a task; None if it is to be tried again. Raises SweepError."""
        task = self._tasks[outcome.key]
        self._losses_in_a_row = self._losses_in_a_row + 1 if outcome.state == "lost" else 0
        self._again.add(outcome.key)
        if outcome.state == "done":
            retried = ("made with offload model, after the GPU's memory ran out",) if task.offload else ()
            notes = (*outcome.results["notes"], *retried)
            self._writes = True
            return record(task.item, "done", **{**outcome.results, "notes": notes})
        if outcome.state == "lost":
            if self._losses_in_a_row >= _MOST_LOSSES_IN_A_ROW * self._engine.size:
                raise SweepError(
                    f"workers keep dying, the last {self._losses_in_a_row} in a row: "
                    f"{outcome.results['reason']}"
                )
            self._losses[outcome.key] += 1
            if self._losses[outcome.key] < _MOST_LOSSES:
                return None
        if outcome.state == "not written":
            if not self._writes:  # making more would be for nothing
                raise SweepError(
                    f"{outcome.results['reason']}; finished clips are kept, and the same command goes on"
                )
            self._writes = False
            if outcome.key not in self._unwritten:
                self._unwritten.add(outcome.key)
                return None
        if outcome.state == "out of memory" and not task.offload and task.item.job.offload == "none":
            self._offloaded.add(_size(task.item))
            return None
        return record(task.item, "failed", **outcome.results)

    def _write(self, made: Record) -> None:
        self._store.add_records([made])
        self._records[made.item] = made


def _named_as(item: SweepItem, one: Record) -> Record:
    """A record under the names of this table; an earlier recipe may have called the method otherwise."""
    return dataclasses.replace(one, model=item.model, method=item.method)


def _standing(item: SweepItem, known: Record | None, listing: Mapping[str, Stat], store: Store) -> Record:
    """How an item stands: `known`, the index's last line about it, if that still holds, else a new line."""
    if known and known.state == "done":
        there = item_stat(known.file, listing)
        if there and there == Stat(known.size or 0, known.modified):
            return known
    there = item_stat(item.file, listing)
    if there and is_whole(store, item):
        return record(item, "done", size=there.size, modified=there.modified)
    return known if known and known.state != "done" else record(item, "pending")


def _size(item: SweepItem) -> tuple[Any, ...]:
    """What decides how much memory an item needs."""
    return item.model, item.job.frames, item.job.height, item.job.width
