"""What a checkpoint remembers beside transformers' own files: tunery.json."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from tunery_api.manifest import CheckpointRecord, MergeInputRecord
from tunery_api.runspec import RunIdentity

MEMO_FILE: Final = "tunery.json"


class _Part(BaseModel):
    """Frozen, camelCase in JSON; what a later version added is read over."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class PassSplit(_Part):
    """How an optimizer step is cut into passes since memory ran out."""

    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    reason: str

    @property
    def rows(self) -> int:
        """Rows of an optimizer step."""
        return self.batch_size * self.gradient_accumulation


class Base(_Part):
    """The base model: by its commit where a hub has it, else by the digest of its files."""

    uri: str
    revision: str | None = None
    digest: str | None = None
    """Known only once its weights were read."""
    config_sha256: str
    """Of its config.json: known before its weights are there."""


class Origin(_Part):
    """What a run trains: another run that goes on from its checkpoint must train the same."""

    run: RunIdentity
    base: Base
    settings: dict[str, JsonValue]
    """By field of the spec, as far as a resume would be wrong with another value."""
    manifest: dict[str, JsonValue]
    """The fields of a spec that says all that it was resolved to, but for what the device decides."""
    steps: int
    """Optimizer steps in all."""

    def with_digest(self, digest: str | None) -> Origin:
        """Return it with the digest of the base."""
        return self.model_copy(update={"base": self.base.model_copy(update={"digest": digest})})


class Memo(_Part):
    """What a resume must not measure or try again, and what tells whether it may be one."""

    before: dict[str, float]
    """`loss` on the held-out rows before training, and a preference task's `reward_accuracy` and `reward_margin`."""
    finished: bool
    """Training is over: what is left is to evaluate and to publish."""
    origin: Origin
    split: PassSplit | None = None
    """None: memory never ran out."""
    continued_from: MergeInputRecord | None = None
    """The published adapter that training began with."""
    resumed_from: list[CheckpointRecord] = Field(default_factory=list)
    """The checkpoints of other runs that it went on from, the oldest first."""

    def write(self, checkpoint: Path) -> None:
        """Write it into the folder of a checkpoint."""
        text = self.model_dump_json(by_alias=True, exclude_none=True)
        (checkpoint / MEMO_FILE).write_text(text, "utf-8")


def read_memo(checkpoint: Path) -> Memo:
    """Return what the checkpoint in a folder remembers."""
    return Memo.model_validate_json((checkpoint / MEMO_FILE).read_bytes())
