"""What a pass over a data set found, in parts that go into the data report as they are."""

from __future__ import annotations

from pydantic import Field

from tunery_api.fields import OpenModel
from tunery_trainer.data.rows import RowPlace


class Place(OpenModel):
    """Where a row stands in the files."""

    file: str
    line: int | None = None
    row: int | None = None
    """In place of `line` where the file has no lines (parquet)."""

    @classmethod
    def of(cls, place: RowPlace) -> Place:
        """Return the same place, by name."""
        named = {place.unit: place.number}
        return cls(file=place.file, line=named.get("line"), row=named.get("row"))

    def __str__(self) -> str:
        return f"{self.file} line {self.line}" if self.row is None else f"{self.file} row {self.row}"


class InvalidKind(OpenModel):
    """One fault, and in how many rows it was met; digits and quoted text are left out."""

    field: str | None = None
    reason: str
    rows: int


class SameRow(OpenModel):
    """A row that trains the same as another one."""

    row: Place
    same_as: Place


class LengthBin(OpenModel):
    """Examples of more tokens than the bin before says, and of at most `up_to`."""

    up_to: int | None = None
    """None: no end."""
    examples: int


class LengthNotes(OpenModel):
    """How long examples are, in tokens, before they are cut."""

    p50: int
    p90: int
    p99: int
    longest: int
    histogram: list[LengthBin] = Field(default_factory=list)


class Stretch(OpenModel):
    """Text of an example as the model reads it, special tokens included."""

    text: str
    taught: bool
    """Whether its tokens count in the loss."""


class ShownText(OpenModel):
    """One text of an example, after it was cut to maxLength."""

    tokens: int
    taught_tokens: int
    cut_tokens: int
    stretches: list[Stretch]


class ShownExample(OpenModel):
    """An example as the model sees it; of a pair both answers, the chosen one first."""

    place: Place
    texts: list[ShownText]
    desirable: bool | None = None
    parts: int = 1
    """Examples that the row became; this is the first of them."""


class DataNotes(OpenModel):
    """What a pass found beside the numbers of the DatasetReport."""

    files: list[str]
    evaluation_files: list[str] = Field(default_factory=list)
    complete: bool
    """Whether every row was read; False where the pass broke off."""
    invalid_kinds: list[InvalidKind] = Field(default_factory=list)
    listed: int = 0
    """Bad rows that the listing holds."""
    duplicates: list[SameRow] = Field(default_factory=list)
    overlap: list[SameRow] = Field(default_factory=list)
    unlearnable: list[Place] = Field(default_factory=list)
    cut: list[Place] = Field(default_factory=list)
    lengths: LengthNotes | None = None
    chosen: LengthNotes | None = None
    rejected: LengthNotes | None = None
    examples: list[ShownExample] = Field(default_factory=list)
