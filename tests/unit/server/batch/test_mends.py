"""Parts that are stored anew with ends that came later: storage that fails meanwhile damages none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import LocalStore, StorePath
from tunery_server.batch import keeping
from tunery_server.batch.answers import waiting
from tunery_server.batch.keeping import Keeper, Kept, PartSize
from tunery_server.batch.parts import DamagedPart, Parts
from unit.server.batch.test_parts import answer, lines, place


class Unheard(LocalStore):
    """A store whose removals fail as `fails` says: they are done, but not answered, or not even done."""

    fails: str = ""

    def delete(self, key: str) -> None:
        if self.fails != "refused":
            super().delete(key)
        if self.fails and key.endswith(".zst"):
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "it does not answer")


@pytest.mark.parametrize("fails", ["done", "refused"])
async def test_a_part_is_mended_though_its_old_file_cannot_be_removed(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(keeping, "_STORE_SECONDS", 1.0)
    (tmp_path / "store").mkdir()
    store = Unheard(tmp_path / "store", "file:///store", "x")
    store.fails = fails
    parts = Parts(StorePath(store, "parts"), "b")
    keeper = Keeper(parts, Kept.of(parts, []), PartSize(lines=10))
    for line in lines(10):
        keeper.take(waiting(line) if line.index == 7 else answer(line.index))
    keeper.take(answer(7))
    keeper.end()
    await keeper.keep(lambda _: None)
    assert keeper.damaged is None
    assert "which is not needed any more, cannot be removed: it does not answer" in caplog.text
    store.fails = ""
    (mark,) = Parts(parts.place, "b").load()
    assert (mark.lines, mark.waiting) == (10, 0)
    assert [record.data for record in parts.read(mark)] == [answer(index).data for index in range(10)]
    assert len(store.list("parts")) == 2, "what could not be removed goes with the next attempt"


def test_who_reads_a_part_that_another_has_mended_leaves_its_mark(tmp_path: Path) -> None:
    parts = Parts(place(tmp_path), "b")
    old = parts.save([answer(0), waiting(lines(2)[1])])
    new = parts.mend(old, [answer(1)])
    with pytest.raises(DamagedPart):
        list(parts.read(old))
    assert Parts(parts.place, "b").load() == [new]
