"""The single pass over a data set that preflight and training share, and what it counts on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from tunery_api.inputs import DatasetFormat, DatasetTemplate
from tunery_api.methods import PREFERENCE_TASKS
from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.data.encode import Encoded, Encoder, ValidRow, encoded_ahead
from tunery_trainer.data.examples import ExampleReader
from tunery_trainer.data.invalid_rows import InvalidRows
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.notes import DataNotes, Place, SameRow
from tunery_trainer.data.options import DataOptions, DatasetReport, TokenReport
from tunery_trainer.data.read import read_records
from tunery_trainer.data.render import Renderer
from tunery_trainer.data.render_answers import AnswerRenderer
from tunery_trainer.data.rows import Example, RowError, RowPlace
from tunery_trainer.data.samples import Samples
from tunery_trainer.data.seen_rows import SeenRows
from tunery_trainer.data.sources import DataFile, content_digest, find_sources
from tunery_trainer.data.token_counts import NAMED_ROWS, TokenCounts
from tunery_trainer.data.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Files:
    """The files of both sides, and the digests of their content."""

    train: tuple[DataFile, ...]
    evaluation: tuple[DataFile, ...]
    """Empty where a fraction of the training rows is held out."""
    sha256: str
    evaluation_sha256: str

    @property
    def held_field(self) -> str:
        """The field that the held-out rows come from."""
        return "spec.dataset.evaluation" if self.evaluation else "spec.dataset"


def find_files(root: Path, options: DataOptions) -> Files:
    """What `options` names below `root`, hashed.

    Raises:
        TuneryError: DatasetNotFound, InvalidSpec, or DatasetInvalid where it is other content than is asked for.
    """
    train = find_sources(root, options.path, options.split)
    evaluation: list[DataFile] = []
    if options.evaluation_root is not None:
        evaluation = find_sources(options.evaluation_root, options.evaluation_path, options.evaluation_split)
    elif options.evaluation_split is not None:
        evaluation = find_sources(root, options.path, options.evaluation_split)
    evaluation_digest = content_digest(evaluation) if evaluation else ""
    files = Files(tuple(train), tuple(evaluation), content_digest(train), evaluation_digest)
    _compare("spec.dataset", files.sha256, options.sha256, options.sweep)
    _compare("spec.dataset.evaluation", files.evaluation_sha256, options.evaluation_sha256, options.sweep)
    return files


def _compare(field: str, digest: str, asked: str | None, sweep: str | None) -> None:
    """Raise DatasetInvalid where the content is not what the spec asks for, or what the sweep's trials read."""
    path = field.removeprefix("spec.")
    if asked not in (None, digest) and sweep is not None:
        template = field.replace("spec", "spec.template", 1)
        raise TuneryError(
            FailureReason.DATASET_INVALID,
            f"{field}: the data has changed: it has the digest {digest}, and the trials of LoRASweep {sweep} read "
            f"{asked}, as its first trial's preflight found it, or as {template}.sha256 says",
            retry("Restore the data that the sweep began with"),
            recreate("Use the new data", path),
        )
    if asked not in (None, digest):
        raise TuneryError(
            FailureReason.DATASET_INVALID,
            f"{field}.sha256: the data has the digest {digest}, and {asked} is asked for: it is not the same",
            retry("Restore the data with the digest that the manifest states"),
            recreate(f"If the new data is meant, set {path}.sha256 to its digest", f"{path}.sha256"),
        )


class Side:
    """The rows of one side (training or evaluation) as far as they were read."""

    def __init__(self, sources: tuple[DataFile, ...], folder: Path | None) -> None:
        self.sources = sources
        self.seen = SeenRows(folder)
        """Their notes are their lines."""
        self.kept = 0
        """Examples."""
        self._files: list[tuple[int, RowPlace]] = []
        """From which row on the rows are of which file."""

    @property
    def rows(self) -> int:
        """Valid rows."""
        return len(self.seen)

    def add(self, digest: bytes, place: RowPlace) -> None:
        """Note a valid row."""
        if not self._files or self._files[-1][1].file != place.file:
            self._files.append((len(self.seen), place))
        self.seen.add(digest, place.number)

    def place(self, ordinal: int, number: int) -> Place:
        """Return where a row stands."""
        of = next(place for start, place in reversed(self._files) if start <= ordinal)
        return Place.of(RowPlace(of.file, number, of.unit))


class _Same(NamedTuple):
    """Rows of a side that equal others."""

    rows: int
    first: list[SameRow]


def _same(side: Side, earlier: Side) -> _Same:
    """Return the rows of a side that stand in it again, or that `earlier`, another one, has too."""
    within = side is earlier
    pairs = side.seen.repeated(NAMED_ROWS) if within else side.seen.shared(earlier.seen, NAMED_ROWS)
    first = [
        SameRow(row=side.place(pair.ordinal, pair.note), same_as=earlier.place(pair.of_ordinal, pair.of_note))
        for pair in pairs.first
    ]
    return _Same(pairs.count, first)


class _Repeats(NamedTuple):
    """Rows that equal others, after so many were read."""

    rows: tuple[int, int]
    within: tuple[_Same, _Same]
    """Rows of training, and of evaluation, that stand in their side again."""
    overlap: _Same
    """Rows of evaluation that are training rows, too."""


class Survey:
    """Reads each side once, `train` before `evaluation`; then ask for the `report`.

    What it has found can be asked for at any time, also after it broke off: `counted` and `notes`.
    """

    def __init__(self, files: Files, options: DataOptions, notebook: Notebook | None = None) -> None:
        folder = notebook.folder if notebook is not None else None
        self.train, self.evaluation = Side(files.train, folder), Side(files.evaluation, folder)
        self.options = options
        self._files = files
        self._invalid = InvalidRows(options.max_invalid_rows)
        self._reader = ExampleReader(options, self._invalid)
        self._counts: TokenCounts | None = None
        self._samples: Samples | None = None
        self._template = "none"
        self._read = 0
        """Sides that were read to their end."""
        self._repeats: _Repeats | None = None
        """As they were asked for last."""
        if notebook is not None:
            self._invalid.listing = notebook.begin(self)

    def digests(self, side: Side) -> Iterator[bytes]:
        """The digest of each valid row of a side."""
        return (digest for digest, _, _ in self._valid(side, lambda example: example))

    def encoded(self, side: Side, tokenizer: Tokenizer) -> Iterator[tuple[bytes, list[Encoded]]]:
        """Digest and examples (most often one) of each row of a side; without those that have no answer left.

        A row that the chat template refuses, or of which it does not show what is to be learned, is a bad row like any
        other.
        """

        renderer, encoder = Renderer(tokenizer, self.options.loss), Encoder(tokenizer, self.options.max_length)
        render = renderer.render
        if self.options.task in PREFERENCE_TASKS:
            render = AnswerRenderer(renderer, self.options.task).render
        counts = self._counts = self._counts or TokenCounts()
        samples = self._samples = self._samples or Samples(tokenizer)
        rows = (ValidRow(*row) for row in self._valid(side, render))
        for batch, examples in encoded_ahead(rows, encoder.encode):
            if self._uses_template:
                self._template = "tokenizer" if renderer.own_template else "chatml"
            encoded = iter(examples)
            for row in batch:
                if kept := counts.add(row.place, row.rendered, list(islice(encoded, len(row.rendered.examples)))):
                    side.kept += len(kept)
                    if side is self.train:
                        samples.add(row.digest, row.place, kept)
                    yield row.digest, kept

    def report(self) -> DatasetReport:
        """What was found.

        Raises:
            TuneryError: DatasetInvalid: too many bad rows, or no row that is left.
        """
        train, evaluation = self.train, self.evaluation
        self._invalid.check(train.rows)
        if evaluation.sources and not evaluation.rows:
            raise TuneryError(FailureReason.DATASET_INVALID, "spec.dataset.evaluation: has no valid row")
        found = self.counted()
        if found.tokens is not None and not (train.kept and (evaluation.kept or not evaluation.sources)):
            raise self._nothing_left(found.tokens)
        return found

    def counted(self) -> DatasetReport:
        """What was counted so far, whether it is good or not."""
        train, evaluation = self.train, self.evaluation
        of_train, of_evaluation = (same.rows for same in self._repeated().within)
        return DatasetReport(
            rows=train.rows,
            evaluation_rows=evaluation.rows,
            invalid_rows=self._invalid.count,
            first_invalid=tuple(self._invalid.first),
            duplicates=of_train + of_evaluation,
            overlap=self._repeated().overlap.rows,
            sha256=self._files.sha256,
            format=self._reader.format,
            ignored_columns=tuple(sorted(self._reader.ignored)),
            tokens=self._counts.report(self._template, train.kept) if self._counts else None,
            evaluation_sha256=self._files.evaluation_sha256 or None,
            evaluation_duplicates=of_evaluation,
        )

    def notes(self) -> DataNotes:
        """What else was found so far."""
        counts, length = self._counts, self.options.max_length
        repeats = self._repeated()
        duplicates = [row for same in repeats.within for row in same.first]
        return DataNotes(
            files=[source.name for source in self._files.train],
            evaluation_files=[source.name for source in self._files.evaluation],
            complete=self._read == 2,
            invalid_kinds=self._invalid.kinds(),
            listed=self._invalid.listing.rows if self._invalid.listing else 0,
            duplicates=duplicates[:NAMED_ROWS],
            overlap=repeats.overlap.first,
            unlearnable=[Place.of(place) for place in counts.unlearnable_at] if counts else [],
            cut=[Place.of(place) for place in counts.cut_at] if counts else [],
            lengths=counts.lengths.notes(length) if counts else None,
            chosen=counts.chosen.notes(length) if counts else None,
            rejected=counts.rejected.notes(length) if counts else None,
            examples=self._samples.shown() if self._samples else [],
        )

    def _repeated(self) -> _Repeats:
        """Return the rows that equal others; all that was read is read again for it, so it is kept until more is."""
        train, evaluation = self.train, self.evaluation
        rows = (train.rows, evaluation.rows)
        if self._repeats is None or self._repeats.rows != rows:
            within = (_same(train, train), _same(evaluation, evaluation))
            self._repeats = _Repeats(rows, within, _same(evaluation, train))
        return self._repeats

    @property
    def _uses_template(self) -> bool:
        return self.options.template is DatasetTemplate.CHAT and self._reader.format is not DatasetFormat.TEXT

    def _valid(self, side: Side, render: Callable[[Example], T]) -> Iterator[tuple[bytes, RowPlace, T]]:
        for example in self._reader.examples(read_records(side.sources)):
            try:
                rendered = render(example)
            except RowError as error:
                self._invalid.add(example.place, error)
                continue
            digest = example.digest()
            side.add(digest, example.place)
            yield digest, example.place, rendered
        self._read += 1

    def _nothing_left(self, tokens: TokenReport) -> TuneryError:
        side = "training" if not self.train.kept else "evaluation"
        return TuneryError(
            FailureReason.DATASET_INVALID,
            f"spec.training.maxLength: {self.options.max_length} tokens leave nothing of any answer in the {side} rows "
            f"(half of all rows have {tokens.p50_length} tokens or more)",
            recreate("Raise training.maxLength", "training.maxLength"),
        )
