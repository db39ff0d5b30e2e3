"""A storage that does not answer as a run publishes costs minutes, and not what was trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import OnBytes, Store, StorePath
from tunery_common.storage.published_folder import verify
from tunery_common.storage.publisher import Target
from tunery_trainer.tasks import patience

from kit.results import lineage, make_folder, run


class Clock:
    """Time that passes as somebody sleeps, and else stands still: other work on the machine takes none of it."""

    def __init__(self) -> None:
        self._now = 1e6

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "time", Clock())


class Silent:
    """A store that refuses its first uploads: a server that is told to do so, in place of one that is down."""

    def __init__(self, store: Store, reason: FailureReason, times: float = math.inf) -> None:
        self._store = store
        self._reason = reason
        self._times = times
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def upload_file(self, path: Path, key: str, progress: OnBytes | None = None, *, if_none_match: bool = False) -> str:
        self.asked += 1
        if self.asked <= self._times:
            raise TuneryError(self._reason, "503")
        return self._store.upload_file(path, key, progress, if_none_match=if_none_match)

    @property
    def target(self) -> Target:
        """A place in it; what it does not do itself its store does."""
        return Target(StorePath(cast("Store", self), "p"), run())


def test_it_is_published_once_storage_answers(
    s3_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = Silent(s3_store, FailureReason.STORAGE_UNAVAILABLE, times=5)
    done = patience.publish_patiently(make_folder(tmp_path / "out"), silent.target, lineage())
    assert verify(StorePath(s3_store, "p")).sha256 == done.manifest_sha256
    assert capsys.readouterr().out.count("Publishing fails, and is tried again in 10 s: 503\n") == 5


@pytest.mark.parametrize("reason", [FailureReason.STORAGE_ACCESS_DENIED, FailureReason.OUTPUT_EXISTS])
def test_what_the_user_must_mend_is_told_at_once(s3_store: Store, tmp_path: Path, reason: FailureReason) -> None:
    silent = Silent(s3_store, reason)
    with pytest.raises(TuneryError) as caught:
        patience.publish_patiently(make_folder(tmp_path / "out"), silent.target, lineage())
    assert (caught.value.reason, silent.asked) == (reason, 1)


def test_after_three_minutes_it_is_told(s3_store: Store, tmp_path: Path) -> None:
    silent = Silent(s3_store, FailureReason.STORAGE_UNAVAILABLE)
    with pytest.raises(TuneryError) as caught:
        patience.publish_patiently(make_folder(tmp_path / "out"), silent.target, lineage())
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    assert silent.asked == 19, "at first, and each 10 s for 180 s"


def test_a_folder_that_refuses_is_told_at_once(local_store: Store, tmp_path: Path) -> None:
    silent = Silent(local_store, FailureReason.STORAGE_UNAVAILABLE)
    with pytest.raises(TuneryError):
        patience.publish_patiently(make_folder(tmp_path / "out"), silent.target, lineage())
    assert silent.asked == 1
