"""What is read live while watches tell of the same things."""

from __future__ import annotations

from typing import Any, cast

from tunery_api.kinds import Kind
from tunery_operator.client.client import KubeClient
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.reader import read_live

from kit.operator.api import Json
from kit.operator.objects import adaptermerge, lorajob

KEY = Key(Kind.LORAJOB, "n", "a")
WAITER = Key(Kind.ADAPTERMERGE, "n", "m")


def body(uid: str, version: str) -> Json:
    found = lorajob("a")
    found["metadata"] |= {"namespace": "n", "uid": uid, "resourceVersion": version}
    return found


class Absent:
    """An API server that has no such object, and makes one just after it has said so."""

    def __init__(self, cache: Cache, made: Json | None) -> None:
        self._cache = cache
        self._made = made

    def get(self, *_: Any) -> Json | None:
        if self._made is not None:
            self._cache.put_object(Kind.LORAJOB, self._made)
        return None


class Present:
    """An API server that has the object."""

    def __init__(self, found: Json) -> None:
        self._found = found

    def get(self, *_: Any) -> Json:
        return self._found


def client(cache: Cache, made: Json | None) -> KubeClient:
    return cast("KubeClient", Absent(cache, made))


def test_an_object_that_is_gone_is_forgotten() -> None:
    cache = Cache()
    cache.put_object(Kind.LORAJOB, body("one", "1"))
    assert read_live(client(cache, None), cache, KEY) is None
    assert cache.body(KEY) is None


def test_one_that_came_while_it_was_asked_for_is_not() -> None:
    cache = Cache()
    assert read_live(client(cache, body("two", "2")), cache, KEY) is None
    assert cache.body(KEY) is not None


def waited_for() -> Cache:
    """Return a cache in which a merge waits for the LoRAJob."""
    cache, merge = Cache(), adaptermerge("m", [{"loraJobRef": {"name": "a"}}])
    merge["metadata"] |= {"namespace": "n", "uid": "merge", "resourceVersion": "2"}
    cache.put_object(Kind.LORAJOB, body("one", "1"))
    cache.put_object(Kind.ADAPTERMERGE, merge)
    return cache


def test_who_waited_for_what_a_live_read_tells_is_reconciled_once() -> None:
    """The watch brings no news of it any more: without this the merge would wait for the next slow round."""
    cache, done = waited_for(), body("one", "3") | {"status": {"phase": "Succeeded"}}
    assert read_live(cast("KubeClient", Present(done)), cache, KEY) == done
    assert cache.drain_keys() == {WAITER}
    assert cache.drain_keys() == frozenset()


def test_who_waited_for_one_that_is_gone_is_reconciled_too() -> None:
    cache = waited_for()
    assert read_live(client(cache, None), cache, KEY) is None
    assert cache.drain_keys() == {WAITER}
