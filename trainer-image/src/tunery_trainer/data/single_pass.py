"""The single pass over a data set that preflight and training share, and what it counts on the way."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from tunery_api.inputs import DatasetFormat, DatasetTemplate
from tunery_api.preference import PREFERENCE_TASKS
from tunery_api.reasons import FailureReason
from tunery_trainer.data.encode import Encoded, Encoder, in_batches
from tunery_trainer.data.examples import ExampleReader, InvalidRows
from tunery_trainer.data.options import DataOptions, DatasetReport, TokenReport
from tunery_trainer.data.read import read_records
from tunery_trainer.data.render import RenderedRow, Renderer
from tunery_trainer.data.render_answers import AnswerRenderer
from tunery_trainer.data.rows import Example, RowError
from tunery_trainer.data.sources import DataFile, content_digest, find_sources
from tunery_trainer.data.tokenizer import Tokenizer
from tunery_trainer.errors import TrainerError

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
        TrainerError: DatasetNotFound or InvalidSpec.
    """
    train = find_sources(root, options.path, options.split)
    evaluation: list[DataFile] = []
    if options.evaluation_root is not None:
        evaluation = find_sources(options.evaluation_root, options.evaluation_path, options.evaluation_split)
    elif options.evaluation_split is not None:
        evaluation = find_sources(root, options.path, options.evaluation_split)
    evaluation_digest = content_digest(evaluation) if evaluation else ""
    return Files(tuple(train), tuple(evaluation), content_digest(train), evaluation_digest)


class TokenCounts:
    """Running totals over encoded rows; what is said of tokens and lengths is said of examples."""

    def __init__(self) -> None:
        self.lengths = array("q")
        self.tokens = self.loss_tokens = self.lost = self.cut = self.unlearnable = 0
        self.split = self.repeated = self.turns = self.context = self.trained = self.thoughtless = 0

    def add(self, row: RenderedRow, examples: Sequence[Encoded]) -> list[Encoded]:
        """Count a row; what is given back are its examples that have something left to learn."""
        kept = [example for example in examples if self._counted(example)]
        self.unlearnable += not kept
        if all(example.desirable is None for example in examples):
            self.split += len(examples) > 1
            lengths = [len(example.input_ids) for example in kept]
            self.repeated += sum(lengths) - max(lengths, default=0)
        self.turns += row.turns
        self.context += row.context_turns
        self.trained += sum(side.turns for example in kept for side in example.sides)
        self.thoughtless += row.lost_reasoning
        return kept

    def _counted(self, example: Encoded) -> bool:
        sides = example.sides
        self.lengths.append(max(side.full_length for side in sides))
        lost = sum(side.full_length - len(side.input_ids) for side in sides)
        self.cut += lost > 0
        self.lost += lost
        if not all(side.loss_tokens for side in sides) or _alike(sides):
            return False
        self.tokens += sum(len(side.input_ids) for side in sides)
        self.loss_tokens += sum(side.loss_tokens for side in sides)
        return True

    def report(self, template: str, examples: int) -> TokenReport:
        """The totals as they go into the status; `examples` are those of the training rows."""
        lengths = sorted(self.lengths)
        return TokenReport(
            tokens=self.tokens,
            loss_tokens=self.loss_tokens,
            truncated_percent=round(100 * self.cut / len(lengths), 2) if lengths else 0.0,
            lost_tokens=self.lost,
            p50_length=_percentile(lengths, 0.50),
            p99_length=_percentile(lengths, 0.99),
            unlearnable_rows=self.unlearnable,
            examples=examples,
            split_rows=self.split,
            repeated_tokens=self.repeated,
            assistant_turns=self.turns,
            context_turns=self.context,
            trained_turns=self.trained,
            lost_reasoning=self.thoughtless,
            template=template,
        )


def _alike(sides: Sequence[Encoded]) -> bool:
    """Whether cutting has left two equal answers."""
    return len(sides) > 1 and sides[0].input_ids.tolist() == sides[1].input_ids.tolist()


def _percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest rank; 0 of nothing."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0


class Side:
    """The rows of one side (training or evaluation) as far as they were read."""

    def __init__(self, sources: tuple[DataFile, ...]) -> None:
        self.sources = sources
        self.seen: set[bytes] = set()
        self.rows = self.duplicates = 0
        self.kept = 0
        """Examples."""

    def add(self, digest: bytes) -> None:
        """Count a valid row."""
        self.rows += 1
        self.duplicates += digest in self.seen
        self.seen.add(digest)


class Survey:
    """Reads each side once, `train` before `evaluation`; then ask for the `report`."""

    def __init__(self, files: Files, options: DataOptions) -> None:
        self.train, self.evaluation = Side(files.train), Side(files.evaluation)
        self._files = files
        self._invalid = InvalidRows(options.max_invalid_rows)
        self._reader = ExampleReader(options, self._invalid)
        self._max_length, self._loss, self._chat = (
            options.max_length,
            options.loss,
            options.template is DatasetTemplate.CHAT,
        )
        self._task = options.task
        self._overlap = 0
        self._counts: TokenCounts | None = None
        self._template = "none"

    def digests(self, side: Side) -> Iterator[bytes]:
        """The digest of each valid row of a side."""
        return (digest for digest, _ in self._valid(side, lambda example: example))

    def encoded(self, side: Side, tokenizer: Tokenizer) -> Iterator[tuple[bytes, list[Encoded]]]:
        """Digest and examples (most often one) of each row of a side; without those that have no answer left.

        A row that the chat template refuses, or of which it does not show what is to be learned, is a bad row like any
        other.
        """

        renderer, encoder = Renderer(tokenizer, self._loss), Encoder(tokenizer, self._max_length)
        render = renderer.render
        if self._task in PREFERENCE_TASKS:
            render = AnswerRenderer(renderer, self._task).render
        counts = self._counts = self._counts or TokenCounts()
        for batch in in_batches(self._valid(side, render)):
            if self._uses_template:
                self._template = "tokenizer" if renderer.own_template else "chatml"
            encoded = iter(encoder.encode([example for _, row in batch for example in row.examples]))
            for digest, row in batch:
                if kept := counts.add(row, list(islice(encoded, len(row.examples)))):
                    side.kept += len(kept)
                    yield digest, kept

    def report(self) -> DatasetReport:
        """What was found.

        Raises:
            TrainerError: DatasetInvalid: too many bad rows, or no row that is left.
        """
        train, evaluation = self.train, self.evaluation
        self._invalid.check(train.rows)
        if evaluation.sources and not evaluation.rows:
            raise TrainerError(FailureReason.DATASET_INVALID, "spec.dataset.evaluation: has no valid row")
        tokens = self._counts.report(self._template, train.kept) if self._counts else None
        if tokens is not None and not (train.kept and (evaluation.kept or not evaluation.sources)):
            raise self._nothing_left(tokens)
        return DatasetReport(
            rows=train.rows,
            evaluation_rows=evaluation.rows,
            invalid_rows=self._invalid.count,
            first_invalid=tuple(self._invalid.first),
            duplicates=train.duplicates + evaluation.duplicates,
            overlap=self._overlap,
            sha256=self._files.sha256,
            format=self._reader.format,
            ignored_columns=tuple(sorted(self._reader.ignored)),
            tokens=tokens,
            evaluation_sha256=self._files.evaluation_sha256 or None,
        )

    @property
    def _uses_template(self) -> bool:
        return self._chat and self._reader.format is not DatasetFormat.TEXT

    def _valid(self, side: Side, render: Callable[[Example], T]) -> Iterator[tuple[bytes, T]]:
        for example in self._reader.examples(read_records(side.sources)):
            try:
                rendered = render(example)
            except RowError as error:
                self._invalid.add(example.place, error)
                continue
            digest = example.digest()
            side.add(digest)
            self._overlap += side is self.evaluation and digest in self.train.seen
            yield digest, rendered

    def _nothing_left(self, tokens: TokenReport) -> TrainerError:
        side = "training" if not self.train.kept else "evaluation"
        return TrainerError(
            FailureReason.DATASET_INVALID,
            f"spec.training.maxLength: {self._max_length} tokens leave nothing of any answer in the {side} rows "
            f"(half of all rows have {tokens.p50_length} tokens or more)",
            "Raise spec.training.maxLength in a new job.",
        )
