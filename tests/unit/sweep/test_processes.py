"""A worker of several ranks: when its task is over, and what is left of it when a rank fails or is lost."""

import multiprocessing

import pytest

from oseg_video.sweeps.engines import processes
from oseg_video.sweeps.engines.processes import WorkerProcesses
from oseg_video.sweeps.worker import Outcome, Task
from tests.sweeps import table


class Rank:
    """In place of a process: its end of the pipe is the test's."""

    def __init__(self):
        self.exitcode = None
        self.ours, self.theirs = multiprocessing.Pipe()

    def reply(self, key, state, **results):
        self.theirs.send(Outcome(key, state, results))

    def die(self, code):
        self.exitcode = code
        self.theirs.close()

    def terminate(self):
        if self.exitcode is None:
            self.exitcode = -15

    def kill(self):
        self.terminate()

    def join(self, timeout=None):
        pass


@pytest.fixture
def ranks(monkeypatch):
    """The ranks of the worker; new ones each time that it starts them."""
    started = []

    def spawn(self):
        started[:] = [Rank() for _ in self._gpus]
        self._processes = list(started)
        self.connections = [rank.ours for rank in started]

    monkeypatch.setattr(WorkerProcesses, "_spawn", spawn)
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.05)
    return started


@pytest.fixture
def worker(tmp_path):
    worker = WorkerProcesses(str(tmp_path), [None, None], threads=1)
    worker.task_given = Task(table(tmp_path)[0])
    return worker


def begin(worker, ranks):
    worker.start(worker.task_given)
    assert [rank.theirs.recv() for rank in ranks] == [worker.task_given] * 2
    assert worker.receive() is None and worker.task is not None
    return list(ranks), worker.task_given.item.key


def test_a_task_is_over_when_every_rank_is_done(worker, ranks):
    (first, second), key = begin(worker, ranks)
    second.reply(key, "done", size=None)
    assert worker.receive() is None
    first.reply(key, "done", size=3)
    assert worker.receive() == Outcome(key, "done", {"size": 3})
    assert worker.task is None and begin(worker, ranks)[0] == [first, second]


def test_ranks_that_all_fail_are_replaced(worker, ranks):
    """They may have failed at different places, with collectives under way."""
    pair, key = begin(worker, ranks)
    for rank in pair:
        rank.reply(key, "out of memory", reason="too big")
    assert worker.receive() == Outcome(key, "out of memory", {"reason": "too big"})
    assert [rank.exitcode for rank in pair] == [-15, -15]
    assert begin(worker, ranks)[0] != pair


@pytest.mark.parametrize(("state", "kept"), [("failed", True), ("out of memory", True), ("lost", False)])
def test_a_process_alone_survives_a_failure_but_not_its_own_loss(tmp_path, ranks, state, kept):
    worker = WorkerProcesses(str(tmp_path), [None], threads=1)
    task = Task(table(tmp_path)[0])
    worker.start(task)
    process = ranks[0]
    process.reply(task.item.key, state, reason="so")
    assert worker.receive() == Outcome(task.item.key, state, {"reason": "so"})
    assert (process.exitcode is None) is kept
    worker.start(task)
    assert (ranks[0] is process) is kept


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_alone_ends_the_one_that_waits_for_it(worker, ranks, failing):
    pair, key = begin(worker, ranks)
    pair[failing].reply(key, "out of memory", reason="too big")
    assert worker.receive() == Outcome(key, "out of memory", {"reason": "too big"})
    assert pair[1 - failing].exitcode == -15
    assert begin(worker, ranks)[0] != pair


@pytest.mark.parametrize("dying", [0, 1])
def test_a_lost_rank_takes_the_others_with_it(worker, ranks, dying):
    pair, key = begin(worker, ranks)
    pair[1 - dying].reply(key, "failed", reason="connection closed by peer")  # what it sees of the loss
    pair[dying].die(-9)
    outcome = worker.receive()
    assert (outcome.state, outcome.results) == (
        "lost",
        {"reason": "its worker process was killed by SIGKILL"},
    )
    assert begin(worker, ranks)[0] != pair


def test_a_rank_that_died_while_idle_is_a_loss_of_the_next_task(worker, ranks):
    pair, key = begin(worker, ranks)
    for rank in pair:
        rank.reply(key, "done")
    assert worker.receive().state == "done"
    pair[0].die(3)
    worker.start(worker.task_given)
    assert worker.receive().results == {"reason": "its worker process ended with exit code 3"}
