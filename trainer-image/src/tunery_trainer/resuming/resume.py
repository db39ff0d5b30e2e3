"""The checkpoint that a run goes on from: its own newest one, else the one that spec.resumeFrom names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.manifest import CheckpointRecord
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Purpose
from tunery_api.status import ResolvedValue
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectMissing, StorePath
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.resuming.checkpoints import Checkpoint, complete_checkpoints, restore, step_of, step_place
from tunery_trainer.resuming.may_resume import check_base, check_origin, check_own
from tunery_trainer.resuming.memo import MEMO_FILE, Memo, Origin, read_memo
from tunery_trainer.resuming.taken_settings import NOTHING, Taken, with_device_taken, with_open_taken
from tunery_trainer.settings.decisions import text_of
from tunery_trainer.settings.types import RunSettings, SettingSource

_FIELD: Final = "spec.resumeFrom"


@dataclass(frozen=True)
class Resumed:
    """A checkpoint on the local disk that training goes on from."""

    step: int
    folder: Path
    memo: Memo
    own: bool
    """False: another run's."""

    def is_finished(self, steps: int) -> bool:
        """Tell whether nothing of a run of so many steps is left to train; an early end counts for its own run only."""
        return self.step >= steps or (self.own and self.memo.finished)


@dataclass(frozen=True)
class Peeked:
    """What is known of another run's checkpoint before any of its weights are read."""

    record: CheckpointRecord
    memo: Memo


@dataclass(frozen=True)
class CheckpointPlace:
    """Where spec.resumeFrom leads to: a place of checkpoints, and the one step that was named, if one was."""

    place: StorePath
    step: int | None

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete ones, the newest first."""
        found = complete_checkpoints(self.place)
        return [each for each in found if self.step in (None, each.step)]

    def missing(self, kind: str) -> TuneryError:
        """Return the failure that there is none of a kind, `complete` or `intact`."""
        of = f" of step {self.step}" if self.step is not None else ""
        message = f"{_FIELD}: {self.place.uri} holds no {kind} checkpoint{of}"
        return TuneryError(FailureReason.CHECKPOINT_MISSING, message)


def source_of(work: Workspace) -> CheckpointPlace | None:
    """Return what spec.resumeFrom names; None where the job has none. Nothing is contacted yet."""
    named = work.run.resume_uri
    if named is None:
        return None
    return checkpoint_place(named, lambda uri: work.open(Purpose.RESUME_FROM, uri, f"{_FIELD}.uri"))


def checkpoint_place(uri: str, open_at: Callable[[str], StorePath]) -> CheckpointPlace:
    """Return the place that `uri` names, of one checkpoint or of all of a run."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    step = step_of(name)
    return CheckpointPlace(open_at(uri if step is None else folder), step)


def peek(work: Workspace) -> Peeked | None:
    """Return what spec.resumeFrom leads to; None where the job has none. Raises what `peek_at` raises."""
    source = source_of(work)
    return peek_at(source) if source else None


def peek_at(source: CheckpointPlace) -> Peeked:
    """Return the newest checkpoint of a place, by its name and its memory alone.

    Raises TuneryError: CheckpointMissing, and the storage reasons.
    """
    try:
        return next(_peeked(source))
    except StopIteration:
        raise source.missing("complete") from None
    except TuneryError as error:
        raise error.about(_FIELD) from error


def _peeked(source: CheckpointPlace) -> Iterator[Peeked]:
    for checkpoint in source.checkpoints():
        memo = _memo_of(checkpoint)
        if memo is not None:
            yield Peeked(record_of(checkpoint.place.uri, checkpoint.step, memo), memo)


def with_taken(work: Workspace) -> tuple[LoRAJobSpec, Taken]:
    """Return the spec with what it leaves open taken from the checkpoint that it will go on from, and what that is.

    The job's own counts first: it may need the one of resumeFrom no more. Raises what `peek` raises.
    """
    spec, own = work.lora_job, _own_memo(work)
    if work.run.resume_uri is None:
        return with_device_taken(spec, own.origin) if own else (spec, NOTHING)
    source = peek(work) if own is None else None
    memo = source.memo if source else own
    return with_open_taken(spec, memo.origin) if memo else (spec, NOTHING)


def _own_memo(work: Workspace) -> Memo | None:
    place = work.checkpoints
    found = (_memo_of(each) for each in complete_checkpoints(place)) if place else iter(())
    return next((memo for memo in found if memo is not None), None)


def _memo_of(checkpoint: Checkpoint) -> Memo | None:
    """Return the memory of a checkpoint in a store; None where it is not what its marker says."""
    record = checkpoint.marker.files.get(MEMO_FILE)
    try:
        content = checkpoint.place.read_bytes(MEMO_FILE)
        intact = record is not None and hashlib.sha256(content).hexdigest() == record.sha256
        return Memo.model_validate_json(content) if intact else None
    except (ObjectMissing, ValidationError):
        return None


def record_of(uri: str, step: int, memo: Memo) -> CheckpointRecord:
    """Return how lineage names a checkpoint of another run."""
    return CheckpointRecord(uri=uri, step=step, run=memo.origin.run)


def resume(work: Workspace, origin: Origin, folder: Path, only: int | None = None) -> Resumed | None:
    """Download the checkpoint that a run of `origin` goes on from into `folder`; None where it begins anew.

    `only` is the step that another node goes on from. Its own counts first: an attempt that has gone on from another's
    needs that no more. Raises TuneryError: CheckpointMissing, InvalidSpec where it is of something else than what is
    trained here, and the storage reasons. The digest of a base that is still being read is not waited for: see
    `check_weights`.
    """
    place = work.checkpoints
    restored = restore(place, folder, only) if place else None
    if restored is not None:
        memo = read_memo(restored.folder)
        check_own(memo.origin, origin)
        print(f"Resuming from the checkpoint of step {restored.step}", flush=True)
        return Resumed(restored.step, restored.folder, memo, own=True)
    source = source_of(work)
    return _resume_other(source, origin, folder) if source else None


def _resume_other(source: CheckpointPlace, origin: Origin, folder: Path) -> Resumed:
    try:
        restored = restore(source.place, folder, source.step)
    except TuneryError as error:
        raise error.about(_FIELD) from error
    if restored is None:
        raise source.missing("intact")
    memo = read_memo(restored.folder)
    check_origin(memo.origin, restored.step, origin)
    at = record_of(step_place(source.place, restored.step).uri, restored.step, memo)
    print(f"Resuming from {told(at)}, {at.uri}", flush=True)
    memo = memo.model_copy(update={"resumed_from": [*memo.resumed_from, at]})
    return Resumed(restored.step, restored.folder, memo, own=False)


def check_weights(resumed: Resumed, origin: Origin) -> None:
    """Raise TuneryError(InvalidSpec) where the base of a checkpoint is another by the digest that is known by now."""
    check_base(resumed.memo.origin, origin.base, own=resumed.own)


def told(record: CheckpointRecord) -> str:
    """Return a checkpoint of another run in words."""
    run = record.run
    return f"the checkpoint of step {record.step} of {run.kind} {run.namespace}/{run.name}"


def with_resumed(resolved: RunSettings, record: CheckpointRecord | None) -> RunSettings:
    """Return the settings with what a run went on from among their values."""
    if record is None:
        return resolved
    value = ResolvedValue(name="resumeFrom", value=text_of(told(record)), source=SettingSource.MANIFEST.value)
    return replace(resolved, values=(value, *resolved.values))
