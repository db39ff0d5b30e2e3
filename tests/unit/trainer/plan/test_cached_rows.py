"""What preflight has prepared is what training gets, and a cache changes no report and no refusal."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from integration.trainer.data.test_prepare import SMALL, documents, rows
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs.shared_cache import SharedCache
from tunery_trainer.data import prepare as prepare_module
from tunery_trainer.data import single_pass
from tunery_trainer.data.encode import Encoder
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.prepare import prepare
from tunery_trainer.data.scan import scan
from tunery_trainer.plan.prepared_rows import PREPARED, prepare_rows, survey
from tunery_trainer.plan.request import DataRequest

from kit.story import Write


def test_rows_are_tokenised_once(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, claim, own = write("train.jsonl", rows(100)), tmp_path / "claim", tmp_path / "own"
    asked = DataRequest(path, SMALL, rows=0)
    without = scan(path, SMALL, tokenizer)
    first = Notebook(tmp_path / "first")
    assert survey(asked, tokenizer, SharedCache(claim), first) == without
    expected = prepare(path, SMALL, tokenizer, tmp_path / "plain")
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_fill", lambda *_: pytest.fail("rows are prepared again"))
        patch.setattr(Encoder, "encode", lambda *_: pytest.fail("a row is tokenised again"))
        patch.setattr(single_pass, "read_records", lambda *_: pytest.fail("a row is read again"))
        hit, training = Notebook(tmp_path / "hit"), Notebook(tmp_path / "training")
        assert survey(asked, tokenizer, SharedCache(claim), hit) == without
        trained = prepare_rows(asked, tokenizer, SharedCache(claim), own, training)
    assert first.read() == hit.read() == training.read() is not None, "the data report is the same"
    assert documents(trained.train) == documents(expected.train)
    assert not own.exists()
    shorter = dataclasses.replace(asked, options=dataclasses.replace(SMALL, max_length=32))
    other = prepare_rows(shorter, tokenizer, SharedCache(claim), own)
    assert not other.from_cache
    assert own.exists()


def test_bad_rows_are_refused_and_leave_nothing(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write("train.jsonl", [*rows(5), {"prompt": "x", "completion": None}])
    messages = []
    for cache in (None, SharedCache(tmp_path / "claim")):
        with pytest.raises(TuneryError) as caught:
            survey(DataRequest(path, SMALL, rows=0), tokenizer, cache)
        assert caught.value.reason is FailureReason.DATASET_INVALID
        messages.append(caught.value.message)
    assert messages[0] == messages[1]
    assert not list((tmp_path / "claim" / "drafts").iterdir())
    assert not list((tmp_path / "claim" / PREPARED).iterdir())


def test_without_room_rows_are_looked_at_all_the_same(
    write: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("train.jsonl", rows(50))
    with caplog.at_level(logging.WARNING):
        cache = SharedCache(tmp_path / "claim", max_bytes=10)
        found = survey(DataRequest(path, SMALL, rows=0), tokenizer, cache)
    assert found == scan(path, SMALL, tokenizer)
    assert "prepared data is not cached: it has room for" in caplog.text
