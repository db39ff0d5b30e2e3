"""The store of views: the newest version wins, nothing deleted comes back, and indexes follow every change."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from tunery_api.kinds import Kind
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.store import Store, later


@dataclass(frozen=True)
class Item:
    name: str
    uid: str
    version: str
    color: str = ""
    namespace: str = "team"


def key(name: str) -> Key:
    return Key(Kind.LORAJOB, "team", name)


@pytest.fixture
def changes() -> list[tuple[str, str | None, bool]]:
    return []


@pytest.fixture
def store(changes: list[tuple[str, str | None, bool]]) -> Store[Item]:
    def on_change(item: Item, before: Item | None, deleted: bool) -> Iterable[Key]:
        changes.append((item.uid, before.version if before is not None else None, deleted))
        return [key(item.name)]

    by_color = {"color": lambda item: [item.color] if item.color else []}
    return Store(threading.RLock(), on_change, by_color, selects=lambda item: item.color != "hidden")


@pytest.mark.parametrize(("version", "known", "is_later"), [("10", "9", True), ("9", "10", False), ("9", "9", False)])
def test_versions_are_numbers(version: str, known: str, is_later: bool) -> None:
    assert later(version, known) is is_later


@pytest.mark.parametrize("version", ["9", "10"], ids=["older", "the same again"])
def test_a_version_that_is_not_newer_is_rejected(store: Store[Item], version: str) -> None:
    store.put(Item("a", "u1", "10", "red"))
    assert store.put(Item("a", "u1", version, "blue")) == set()
    assert store.get("team", "a") == Item("a", "u1", "10", "red")


def test_a_change_of_the_version_alone_is_stored_and_enqueues_nothing(store: Store[Item]) -> None:
    assert store.put(Item("a", "u1", "1")) == {key("a")}
    assert store.put(Item("a", "u1", "2")) == set()
    assert store.get("team", "a") == Item("a", "u1", "2")
    assert store.put(Item("a", "u1", "3", "red")) == {key("a")}


def test_a_deleted_object_does_not_come_back(store: Store[Item]) -> None:
    store.put(Item("a", "u1", "1"))
    assert store.delete(Item("a", "u1", "2")) == {key("a")}
    assert store.put(Item("a", "u1", "3")) == set()
    assert store.items() == []


def test_a_deletion_spares_the_next_object_of_the_name(store: Store[Item]) -> None:
    store.put(Item("a", "u1", "1"))
    store.put(Item("a", "u2", "3"))
    assert store.delete(Item("a", "u1", "2")) == set()
    assert store.get("team", "a") == Item("a", "u2", "3")


def test_an_object_of_another_uid_replaces_the_known_one(
    store: Store[Item], changes: list[tuple[str, str | None, bool]]
) -> None:
    store.put(Item("a", "u1", "1", "red"))
    store.put(Item("a", "u2", "3", "blue"))
    assert changes == [("u1", None, False), ("u1", "1", True), ("u2", None, False)]
    assert store.by_index("color", "red") == ()


def test_an_object_that_is_no_longer_selected_is_deleted(store: Store[Item]) -> None:
    store.put(Item("a", "u1", "1"))
    assert store.put(Item("a", "u1", "2", "hidden")) == {key("a")}
    assert store.put(Item("a", "u1", "3")) == set()
    assert store.items() == []


def test_indexes_follow_every_change(store: Store[Item]) -> None:
    store.put(Item("a", "u1", "1", "red"))
    store.put(Item("b", "u2", "2", "red"))
    store.put(Item("a", "u1", "3", "blue"))
    assert store.by_index("color", "red") == (Item("b", "u2", "2", "red"),)
    assert store.by_index("color", "blue") == (Item("a", "u1", "3", "blue"),)
    store.put(Item("b", "u2", "4", "red"))
    assert store.by_index("color", "red") == (Item("b", "u2", "4", "red"),), "the newest version"
    store.delete(Item("a", "u1", "5"))
    assert store.by_index("color", "blue") == ()


def test_a_list_deletes_what_it_lacks_and_what_is_not_newer(store: Store[Item]) -> None:
    for number in range(3):
        store.put(Item(f"n{number}", f"u{number}", str(10 * number)))
    store.put(Item("other", "u9", "1", namespace="elsewhere"))
    assert store.prune("team", {"u0"}, "15") == {key("n1")}
    assert {item.name for item in store.items()} == {"n0", "n2", "other"}
    assert [item.name for item in store.items("elsewhere")] == ["other"]
