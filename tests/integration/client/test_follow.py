"""Following an object of a real API server: over broken connections, expired versions, deletion and replacement."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tunery import follow as follow_module
from tunery.cluster import PODS, Cluster, Json, WatchExpired, resource_of
from tunery.errors import TimedOut, TuneryError, Unavailable
from tunery.follow import follow
from tunery.objects import View, find

from kit.cut_connections import Breakable
from kit.operator.objects import Namespace, lorajob
from tools.cluster.controlplane import ControlPlane


def set_status(namespace: Namespace, name: str, **status: Any) -> None:
    """Write fields of a status, as the operator does."""
    namespace.api.patch(f"{namespace.path('lorajobs', name)}/status", {"status": status})


class Following:
    """Follows an object in a thread."""

    def __init__(self, cluster: Cluster, view: View, seconds: float | None = None) -> None:
        self.phases: list[str] = []
        self.error: TuneryError | None = None
        self._thread = threading.Thread(target=self._run, args=(cluster, view, seconds), daemon=True)
        self._thread.start()

    def _run(self, cluster: Cluster, view: View, seconds: float | None) -> None:
        try:
            for each in follow(cluster, view, seconds):
                self.phases.append(each.phase)
        except TuneryError as error:
            self.error = error

    def wait_for(self, phase: str) -> None:
        """Wait until a phase was seen."""
        end = time.monotonic() + 30
        while phase not in self.phases:
            assert self.error is None
            assert time.monotonic() < end, self.phases
            time.sleep(0.02)

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join(30)
        assert not self._thread.is_alive(), self.phases


@pytest.fixture
def job(cluster: Cluster, team: Namespace) -> View:
    """A job whose status the test writes."""
    team.apply(lorajob("a"))
    return find(cluster, "a")


@pytest.fixture
def breakable(control_plane: ControlPlane) -> Iterator[Breakable]:
    """A way to the API server that the test can cut."""
    proxy = Breakable("127.0.0.1", control_plane.ports["apiserver"])
    yield proxy
    proxy.close()


@pytest.fixture
def distant(cluster: Cluster, breakable: Breakable) -> Cluster:
    """The API server by that way."""
    cluster.client.configuration.host = f"https://127.0.0.1:{breakable.port}"
    return cluster


def test_each_state_is_yielded_until_the_end(cluster: Cluster, team: Namespace, job: View) -> None:
    following = Following(cluster, job)
    following.wait_for("Pending")
    for phase in ("Training", "Succeeded"):
        set_status(team, "a", phase=phase)
        following.wait_for(phase)
    following.join()
    assert following.phases == ["Pending", "Training", "Succeeded"]


def test_a_finished_object_needs_no_watch(cluster: Cluster, team: Namespace, job: View) -> None:
    set_status(team, "a", phase="Failed")
    assert [each.phase for each in follow(cluster, find(cluster, "a"))] == ["Failed"]


def test_a_requested_retry_is_waited_for(cluster: Cluster, team: Namespace, job: View) -> None:
    set_status(team, "a", phase="Failed")
    team.annotate("a", retry="1")
    following = Following(cluster, find(cluster, "a"))
    following.wait_for("Failed")
    set_status(team, "a", phase="Training", observedRetry="1")
    following.wait_for("Training")
    set_status(team, "a", phase="Succeeded")
    following.join()
    assert following.phases == ["Failed", "Training", "Succeeded"]


def test_what_happened_while_the_connection_was_broken_is_seen(
    distant: Cluster, breakable: Breakable, team: Namespace, job: View
) -> None:
    following = Following(distant, job)
    set_status(team, "a", phase="Training")
    following.wait_for("Training")
    breakable.cut(refuse=True)
    set_status(team, "a", phase="Evaluating")
    time.sleep(0.7)
    set_status(team, "a", phase="Succeeded")
    breakable.restore()
    following.join()
    assert (following.phases[-1], following.error) == ("Succeeded", None)


def test_an_expired_version_is_listed_again(
    cluster: Cluster, team: Namespace, job: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Versions of etcd start at 1, and the watch cache keeps only the latest.
    with pytest.raises(WatchExpired):
        list(cluster.watch(resource_of(job.kind), "1", seconds=1))
    lists = iter(["1"])
    real = cluster.items

    def items(*args: Any, **options: Any) -> tuple[list[Json], str]:
        found, version = real(*args, **options)
        return found, next(lists, version)

    monkeypatch.setattr(cluster, "items", items)
    set_status(team, "a", phase="Training")
    states = follow(cluster, job, 20)
    assert [next(states).phase, next(states).phase] == ["Pending", "Training"]
    set_status(team, "a", phase="Succeeded")
    assert [each.phase for each in states] == ["Succeeded"]
    assert next(lists, None) is None


def test_a_deleted_object_ends_it(cluster: Cluster, team: Namespace, job: View) -> None:
    following = Following(cluster, job)
    set_status(team, "a", phase="Training")
    following.wait_for("Training")
    team.delete("lorajobs", "a")
    following.join()
    assert isinstance(following.error, TuneryError)
    assert following.error.reason == "Deleted"


def test_another_object_of_that_name_is_not_followed(cluster: Cluster, team: Namespace, job: View) -> None:
    team.delete("lorajobs", "a")
    team.apply(lorajob("a"))
    with pytest.raises(TuneryError, match="another object of that name was created"):
        list(follow(cluster, job))


def test_it_ends_after_the_timeout(cluster: Cluster, job: View) -> None:
    began = time.monotonic()
    with pytest.raises(TimedOut, match="has not finished after 2 s; it continues"):
        list(follow(cluster, job, 2))
    assert time.monotonic() - began < 4


def test_it_gives_up_without_an_api_server(
    distant: Cluster, breakable: Breakable, job: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "GIVE_UP_SECONDS", 1.0)
    following = Following(distant, job)
    following.wait_for("Pending")
    breakable.cut(refuse=True)
    following.join()
    assert isinstance(following.error, Unavailable)
    assert following.error.reason == "ClusterUnavailable"


def test_a_watch_that_is_left_early_does_not_spoil_the_next_request(cluster: Cluster, team: Namespace) -> None:
    team.apply(lorajob("b"))
    for _ in follow(cluster, find(cluster, "b"), 5):
        set_status(team, "b", phase="Training")
        states = follow(cluster, find(cluster, "b"), 5)
        next(states)
        set_status(team, "b", phase="Evaluating")
        next(states)
        del states
        break
    assert [cluster.items(PODS)[0] for _ in range(3)] == [[], [], []]
