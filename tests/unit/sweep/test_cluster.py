"""Workers on a Ray cluster: how many fit, and what becomes of one that is lost. Ray itself is a stand-in."""

import sys
from types import SimpleNamespace

import pytest

from oseg_video.sweeps.engines.cluster import RayActors
from oseg_video.sweeps.engines.places import Places, plan_places
from oseg_video.sweeps.table import SweepError
from oseg_video.sweeps.worker import Outcome, Task
from tests.sweeps import table


def machines(*resources):
    return [{"GPU": gpus, "CPU": cpus} if gpus else {"CPU": cpus} for gpus, cpus in resources]


@pytest.mark.parametrize(
    ("cluster", "workers", "gpus", "places"),
    [
        (machines((3.0, 8.0), (3.0, 8.0)), None, 2, Places(2, True, 8)),
        (machines((8, 64), (4, 16), (0, 32)), None, 4, Places(3, True, 32)),
        (machines((8, 64)), 3, 1, Places(3, True, 21)),
        (machines((8, 4)), None, 1, Places(8, True, 1)),
        ([{"GPU": 2.0}], None, 1, Places(2, True, 1)),
        (machines((0, 8), (0, 8)), None, 1, Places(2, False, 8)),
        (machines((0, 30), (0, 2)), None, 1, Places(2, False, 15)),
        (machines((0, 8), (0, 5)), 3, 2, Places(3, False, 4)),
        ([{}, {"CPU": 4.0}], None, 1, Places(1, False, 4)),
    ],
)
def test_every_worker_fits_on_a_machine(cluster, workers, gpus, places):
    assert plan_places(cluster, workers, gpus) == places


@pytest.mark.parametrize(
    ("cluster", "workers", "gpus", "message"),
    [
        (
            machines((3, 8), (3, 8)),
            3,
            2,
            "workers 3, each with 2 GPUs on one machine: the cluster has room for 2",
        ),
        (machines((8, 8), (8, 8)), None, 16, "workers 1, each with 16 GPUs on one machine: .* room for 0"),
        (machines((0, 2), (0, 1)), 4, 1, "workers 4, each with a CPU: the cluster has room for 3"),
        ([], None, 1, "workers 1, each with a CPU: the cluster has room for 0"),
    ],
)
def test_more_workers_than_fit_are_refused(cluster, workers, gpus, message):
    with pytest.raises(SweepError, match=message):
        plan_places(cluster, workers, gpus)


@pytest.fixture
def ray(monkeypatch):
    """In place of Ray: actors that reply what the test has written down."""

    class Ray(SimpleNamespace):
        def __init__(self):
            super().__init__(on=True, actors=[], killed=[], replies=[], asked={})
            self.exceptions = SimpleNamespace(RayError=OSError)
            self.cluster = []

        def init(self, **_):
            pass

        def nodes(self):
            return [{"Alive": True, "Resources": one} for one in self.cluster] + [
                {"Alive": False, "Resources": {"GPU": 8.0}}
            ]

        def remote(self, _):
            def start(*arguments):
                actor = SimpleNamespace(
                    arguments=arguments, make=SimpleNamespace(remote=lambda task: f"{len(self.actors)}")
                )
                self.actors.append(actor)
                return actor

            def options(**options):
                self.asked = options
                return SimpleNamespace(remote=start)

            return SimpleNamespace(options=options)

        def wait(self, references, **_):
            return references[:1], references[1:]

        def get(self, _):
            return self.replies.pop(0)

        def kill(self, actor):
            self.killed.append(actor)

        def shutdown(self):
            self.on = False

    stand_in = Ray()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setitem(sys.modules, "ray._private", SimpleNamespace(ray_constants=SimpleNamespace()))
    return stand_in


def test_a_cluster_without_room_is_left_at_once(ray, tmp_path):
    ray.cluster = machines((3, 8), (3, 8))
    with pytest.raises(SweepError, match="room for 2"):
        RayActors(str(tmp_path), None, 3, 2)
    assert not ray.on and ray.actors == []


def test_actors_ask_for_what_a_machine_has(ray, tmp_path):
    ray.cluster = machines((3, 1), (3, 1))
    assert RayActors(str(tmp_path), None, None, 2).size == 2
    assert ray.asked == {"num_gpus": 2, "num_cpus": 0}
    ray.cluster = machines((0, 30), (0, 2))
    assert RayActors(str(tmp_path), None, None, 1).size == 2
    assert ray.asked == {"num_cpus": 15}


@pytest.mark.parametrize(("state", "actors"), [("failed", 1), ("lost", 2)])
def test_an_actor_that_says_it_is_lost_is_replaced(ray, tmp_path, state, actors):
    ray.cluster = machines((0, 2))
    engine = RayActors(str(tmp_path), None, None, 1)
    task = Task(table(tmp_path)[0])
    for reply in (state, "done"):
        ray.replies.append(Outcome(task.item.key, reply))
        engine.start(task)
        assert [one.state for one in engine.finished(0)] == [reply]
    assert len(ray.actors) == actors and ray.killed == ray.actors[: actors - 1]
