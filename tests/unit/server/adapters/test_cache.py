"""The adapters on the disk: room is made by what nobody needs, the oldest use first, and never by what is held."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tunery_api.manifest import Manifest
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Action
from tunery_api.runspec import DiskLimit
from tunery_common.errors import TuneryError
from tunery_common.storage.asker import GivenUp
from tunery_server.adapters import turns
from tunery_server.adapters.cache import AdapterCache, OverLimit, wanted_bytes
from tunery_server.adapters.turns import Heard

from kit.server.loader import Table, adapter_files, manifest_of

SIZE = sum(map(len, adapter_files().values()))


class Needs:
    def __init__(self) -> None:
        self.engine: set[str] = set()
        self.names: set[str] = set()

    def held(self, sha256: str) -> bool:
        return sha256 in self.engine

    def wanted(self) -> set[str]:
        return self.names


@pytest.fixture
def needs() -> Needs:
    return Needs()


def cache_of(tmp_path: Path, needs: Needs, limit: int) -> AdapterCache:
    (tmp_path / "model").mkdir(exist_ok=True)
    disk = DiskLimit(bytes=limit, field="spec.resources.ephemeralStorage")
    cache = AdapterCache(tmp_path / "adapters", tmp_path / "model", disk, needs)
    cache.prepare()
    return cache


def put(cache: AdapterCache, digit: str, files: dict[str, bytes] | None = None) -> str:
    files = files or adapter_files()
    manifest = manifest_of(files)
    draft = cache.draft(digit * 64, Manifest.model_validate_json(manifest), Heard())
    try:
        for name, data in files.items():
            (draft / name).write_bytes(data)
        cache.put(digit * 64, draft, manifest)
    finally:
        cache.give_up(draft)
    return digit * 64


def used_at(tmp_path: Path, sha256: str, second: int) -> None:
    os.utime(tmp_path / "adapters" / ".manifests" / f"{sha256}.json", (second, second))


def test_the_least_recently_used_of_what_nobody_needs_leaves_first(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 4 * SIZE)
    shas = [put(cache, digit) for digit in "1234"]
    for second, sha in enumerate((shas[2], shas[0], shas[1], shas[3])):
        used_at(tmp_path, sha, second)
    needs.engine, needs.names = {shas[2]}, {shas[0]}
    put(cache, "5")
    assert sorted(cache.on_disk()) == [shas[0], shas[2], shas[3], "5" * 64]
    put(cache, "6")
    assert (
        sorted(cache.on_disk()) == [shas[0], shas[2], *(digit * 64 for digit in "56")][:4] or len(cache.on_disk()) == 4
    )
    assert {shas[0], shas[2]} <= set(cache.on_disk())


def test_where_all_is_needed_the_disk_is_full_and_nothing_leaves(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 2 * SIZE)
    needs.engine = {put(cache, "1"), put(cache, "2")}
    with pytest.raises(TuneryError) as caught:
        put(cache, "3")
    assert caught.value.reason is FailureReason.DISK_FULL
    assert f"{SIZE:,} bytes are needed" in caught.value.message
    assert caught.value.remedies[0].fields == ["resources.ephemeralStorage"]
    assert sorted(cache.on_disk()) == ["1" * 64, "2" * 64]


def test_nobody_leaves_for_what_would_not_fit_even_so(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 3 * SIZE)
    needs.engine = {put(cache, "1")}
    for digit in "23":
        put(cache, digit)
    large = adapter_files(rank=64)
    needed = sum(map(len, large.values()))
    with pytest.raises(OverLimit) as caught:
        put(cache, "4", large)
    assert (caught.value.size, caught.value.missing) == (needed, needed - 2 * SIZE)
    assert sorted(cache.on_disk()) == [digit * 64 for digit in "123"]


def test_the_model_counts_once_and_what_is_on_its_way_counts_too(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 2 * SIZE + 1000)
    (tmp_path / "model" / "a").write_bytes(bytes(1000))
    os.link(tmp_path / "model" / "a", tmp_path / "model" / "b")
    (tmp_path / "elsewhere").write_bytes(bytes(1 << 20))
    (tmp_path / "model" / "c").symlink_to(tmp_path / "elsewhere")
    cache = cache_of(tmp_path, needs, 2 * SIZE + 1000 + len(str(tmp_path / "elsewhere")))
    manifest = Manifest.model_validate_json(manifest_of(adapter_files()))
    first = cache.draft("1" * 64, manifest, Heard())
    second = cache.draft("2" * 64, manifest, Heard())
    with pytest.raises(TuneryError):
        cache.draft("3" * 64, manifest, Heard())
    cache.give_up(first)
    cache.give_up(second)
    assert cache.draft("3" * 64, manifest, Heard()).is_dir()
    assert wanted_bytes(manifest) == SIZE


def test_room_that_was_kept_for_what_is_given_up_is_free_at_once(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, SIZE + 100)
    first, heard = manifest_model(), Heard()
    draft = cache.draft("1" * 64, first, heard)
    assert cache.on_its_way("1" * 64)
    assert not cache.has_room(SIZE)
    heard.give_up()
    assert not cache.on_its_way("1" * 64)
    assert cache.has_room(SIZE)
    assert cache.draft("1" * 64, first, Heard()).is_dir()
    assert not draft.exists()
    with pytest.raises(GivenUp):
        cache.put("1" * 64, draft, manifest_of(adapter_files()))


def test_who_needs_room_takes_that_of_quiet_stores_and_before_any_version_leaves(
    tmp_path: Path, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_of(tmp_path, needs, 2 * SIZE + 100)
    there, heard = put(cache, "1"), Heard()
    cache.draft("2" * 64, manifest_model(), heard)
    needs.names = {there}
    with pytest.raises(OverLimit, match="are kept for 1 that are on their way") as caught:
        cache.draft("3" * 64, manifest_model(), Heard())
    assert caught.value.remedies[0].action == Action.RETRY, "a larger disk is not what it lacks"
    assert not heard.over.is_set()
    needs.names = set()
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0)
    assert cache.draft("3" * 64, manifest_model(), Heard()).is_dir()
    assert heard.over.is_set(), "which its thread meets"
    assert cache.on_disk() == [there]


def test_a_bad_folder_is_removed_unless_the_engine_holds_it(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 1 << 30)
    sha = put(cache, "1")  # its manifest has another digest
    again = cache_of(tmp_path, needs, 1 << 30)
    needs.engine = {sha}
    assert again.find(sha) is None
    assert again.folder(sha).is_dir()
    needs.engine, needs.names = set(), {sha}
    assert again.find(sha) is None
    assert not again.folder(sha).exists()


@pytest.mark.parametrize("harm", ["more", "less", "link", "manifest"])
async def test_a_folder_that_is_not_what_its_manifest_says_is_not_found(tmp_path: Path, harm: str) -> None:
    table = Table(tmp_path)
    sha = table.publish("bot")
    table.want(table.item("bot", sha))
    await table.go()
    folder = Path(table.spec.adapters_dir, sha)
    cache = AdapterCache(folder.parent, tmp_path / "model", None, Needs())
    found = cache.find(sha)
    assert found is not None
    assert found.folder == folder
    if harm == "more":
        (folder / "adapter_model.bin").write_bytes(b"pickle")
    elif harm == "less":
        (folder / "adapter_config.json").unlink()
    elif harm == "link":
        (folder / "adapter_config.json").rename(tmp_path / "moved")
        (folder / "adapter_config.json").symlink_to(tmp_path / "moved")
    else:
        (folder.parent / ".manifests" / f"{sha}.json").write_text("{}")
    assert AdapterCache(folder.parent, tmp_path / "model", None, Needs()).find(sha) is None


def test_what_is_brought_twice_stays_the_first(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 1 << 30)
    sha = put(cache, "1")
    made = cache.folder(sha).stat().st_ino
    put(cache, "1")
    assert cache.folder(sha).stat().st_ino == made
    assert cache.glance(sha) == cache.find(sha)
    again = cache_of(tmp_path, needs, 1 << 30)  # has not read its files yet
    put(again, "1")
    assert again.find(sha)


def test_a_version_that_has_come_is_counted_once(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 2 * SIZE + 100)
    files = adapter_files()
    manifest = manifest_of(files)
    draft = cache.draft("1" * 64, manifest_model(), Heard())
    for name, data in files.items():
        (draft / name).write_bytes(data)
    cache.put("1" * 64, draft, manifest)
    needs.engine.add("1" * 64)
    # Another thread asks for room before the first has given its draft up.
    assert cache.draft("2" * 64, manifest_model(), Heard()).is_dir()


def test_a_version_whose_manifest_is_gone_is_brought_anew(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 1 << 30)
    sha = put(cache, "1")
    (tmp_path / "adapters" / ".manifests" / f"{sha}.json").unlink()
    cache.used(sha)
    again = cache_of(tmp_path, needs, 1 << 30)
    assert again.glance(sha) is None
    assert again.find(sha) is None
    assert not again.folder(sha).exists()
    assert cache_of(tmp_path, needs, SIZE + 100).draft("2" * 64, manifest_model(), Heard()).is_dir()


def manifest_model() -> Manifest:
    return Manifest.model_validate_json(manifest_of(adapter_files()))


def test_a_disk_that_cannot_be_written_is_no_fault_of_the_adapter(tmp_path: Path, needs: Needs) -> None:
    cache = cache_of(tmp_path, needs, 1 << 30)
    draft = cache.draft("1" * 64, manifest_model(), Heard())
    with pytest.raises(TuneryError, match=r"cannot be written: No such file") as caught:
        cache.put("1" * 64, draft, manifest_of(adapter_files()))  # nothing has come
    assert caught.value.reason is FailureReason.INTERNAL_ERROR
    cache.give_up(draft)
    (tmp_path / "adapters" / ".drafts").rmdir()
    (tmp_path / "adapters" / ".drafts").touch()
    with pytest.raises(TuneryError, match="cannot be written"):
        cache.draft("1" * 64, manifest_model(), Heard())


@pytest.mark.parametrize("note", [".served.json", ".used.json", ".strikes.json"])
async def test_without_its_notes_a_loader_goes_on(note: str, tmp_path: Path) -> None:
    table = Table(tmp_path)
    (Path(table.spec.adapters_dir) / note / "in the way").mkdir(parents=True)
    table.engine.dies_of = lambda name: name.startswith("poison")
    table.want(table.item("bot", table.publish("bot")), table.item("poison", table.publish("poison", adapter_files(9))))
    for start in (2, 3, 4):
        await table.go()
        if table.engine.number is None:
            table.engine.start(start)
    with table.routes.using(table.routes.resolve("bot")):
        pass
    await table.go(seconds=60)
    assert table.told("bot").state == "Served"
    assert table.told("poison").reason == "EngineFailed"


async def test_where_not_even_a_note_of_a_try_can_be_written_nothing_is_tried(tmp_path: Path) -> None:
    table = Table(tmp_path)
    (Path(table.spec.adapters_dir) / ".loading" / "in the way").mkdir(parents=True)
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert table.told("bot").reason == "DiskFull"
    assert table.engine.did("load") == []


def test_a_path_that_the_engine_would_look_up_on_a_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is relative"):
        AdapterCache(Path("adapters"), tmp_path, None, Needs())


async def test_a_disk_that_is_full_is_told_tried_again_and_holds_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(tmp_path)
    full = True
    plain = os.rename

    def rename(source: Any, target: Any) -> None:
        if full and Path(target).name == sha:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(source, target)

    sha = table.publish("bot")
    monkeypatch.setattr(os, "rename", rename)
    table.want(table.item("bot", sha), table.item("tone", table.publish("tone", adapter_files(3))))
    await table.go()
    told = table.told("bot")
    assert (told.state, told.reason) == ("Loading", "DiskFull")
    assert "no space left on the disk" in str(told.message)
    assert table.told("tone").state == "Served"
    full = False
    await table.go(steps=3, seconds=30)
    assert table.told("bot").state == "Served"


async def test_old_versions_leave_for_new_ones_where_the_disk_is_limited(tmp_path: Path) -> None:
    model = sum(path.stat().st_size for path in Table(tmp_path / "x").root.joinpath("model").iterdir())
    table = Table(tmp_path, disk=DiskLimit(bytes=model + int(2.5 * SIZE), field="spec.resources.ephemeralStorage"))
    for fill in range(1, 8):
        sha = table.publish("bot", adapter_files(fill))
        table.want(table.item("bot", sha))
        await table.go()
        assert table.told("bot").manifest_sha256 == sha
    folders = [path for path in Path(table.spec.adapters_dir).iterdir() if not path.name.startswith(".")]
    assert len(folders) == 2
