"""data-report.json: all that is known of a data set, for programs; docs/data-report.md tells each field."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from tunery_api.failures import FailureStatus
from tunery_api.fields import OpenModel
from tunery_api.runspec import RunIdentity
from tunery_trainer.data.notes import InvalidKind, LengthNotes, Place, SameRow, ShownExample

FORMAT: Final = "tunery.dev/data-report"
VERSION: Final = 1
"""Rises only where a reader of the version before would misunderstand; fields may come at any time."""


class DataSet(OpenModel):
    """Which data set it is, and how its rows were read."""

    uri: str
    sha256: str
    files: list[str]
    evaluation_uri: str | None = None
    evaluation_sha256: str | None = None
    evaluation_files: list[str] = Field(default_factory=list)
    format: str
    task: str
    template: str | None = None
    """`tokenizer`, `chatml` (the tokenizer has none) or `none` (plain text); null without a tokenizer."""
    ignored_columns: list[str] = Field(default_factory=list)


class Invalid(OpenModel):
    """Rows that cannot be used."""

    rows: int
    allowed: int
    """spec.dataset.maxInvalidRows."""
    kinds: list[InvalidKind] = Field(default_factory=list)
    left_out: int = 0
    """Of `rows`, those that `invalidRows` does not list, since the file would be too large."""


class Same(OpenModel):
    """Rows that train the same as others."""

    rows: int
    first: list[SameRow] = Field(default_factory=list)


class Tokens(OpenModel):
    """What a tokenizer says; without one there is none of it."""

    max_length: int
    all: int
    """Of training and evaluation rows, after cutting."""
    taught: int
    taught_percent: float
    lengths: LengthNotes | None = None
    cut_percent: float
    """Share of examples longer than maxLength."""
    lost: int
    """Tokens beyond it."""
    first_cut: list[Place] = Field(default_factory=list)
    unlearnable_rows: int
    """Rows left out: cutting left nothing to learn."""
    first_unlearnable: list[Place] = Field(default_factory=list)
    examples: int
    """What the training rows became."""
    split_rows: int
    """Rows that became several examples, since the chat template rewrites earlier turns."""
    repeated: int
    """Tokens that appear once more because rows were split."""
    held_out_rows: int | None = None
    """Valid rows that are held out for evaluation; null where that was not reached, or none is drawn from them."""
    sequences: int | None = None
    """Sequences to train on; null where that was not reached."""
    packed: bool | None = None
    answers: int
    """Turns of the assistant; 0 where every token counts."""
    taught_answers: int
    context_answers: int
    """Turns that the rows mark as not to be learned."""
    lost_reasoning: int


class Preferences(OpenModel):
    """What only rows of DPO, ORPO and KTO have."""

    desirable: int | None = None
    undesirable: int | None = None
    chosen: LengthNotes | None = None
    rejected: LengthNotes | None = None


class DataReport(OpenModel):
    """The document; in the file the list `invalidRows` follows: file, line or row, field and reason of each."""

    format: str = FORMAT
    version: int = VERSION
    run: RunIdentity | None = None
    refused: FailureStatus | None = None
    """Why the job ended in preflight, where it did."""
    complete: bool
    """Whether every row was read; numbers are of those that were."""
    data: DataSet
    rows: int
    """Valid rows of the split, those held out for evaluation included."""
    evaluation_rows: int
    """Valid rows of an evaluation set of its own."""
    invalid: Invalid
    duplicates: Same
    overlap: Same
    """Rows of the evaluation set that are training rows, too."""
    tokens: Tokens | None = None
    preferences: Preferences | None = None
    warnings: list[str] = Field(default_factory=list)
    examples: list[ShownExample] = Field(default_factory=list)
