"""Text to tokens in batches, with the labels that mask everything but the answers."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunery_api.reasons import FailureReason
from tunery_api.remedies import recreate
from tunery_common.errors import TuneryError
from tunery_trainer.data.byte_level import ByteLevel, Located
from tunery_trainer.data.mask import IGNORED, labels_of, token_stretches
from tunery_trainer.data.render import Rendered, RenderedRow
from tunery_trainer.data.rows import RowPlace
from tunery_trainer.data.tokenizer import Tokenizer

Tokens = npt.NDArray[np.int32]

BATCH_ROWS: Final = 512
BATCH_CHARACTERS: Final = 1_000_000
_NOTHING_ELSE: Final = {"return_attention_mask": False, "return_token_type_ids": False}
"""Lists of as many numbers as there are tokens, which nobody reads."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example of at most maxLength tokens; of a pair, the chosen answer with the other one beside it."""

    input_ids: Tokens
    """Shape (tokens,)."""
    labels: Tokens
    """Shape (tokens,): the token itself where it counts in the loss, else -100."""
    full_length: int
    """Tokens before cutting."""
    turns: int
    """Turns of which at least one token counts; 0 where every token does."""
    rejected: Encoded | None = None
    desirable: bool | None = None

    @property
    def loss_tokens(self) -> int:
        """How many tokens count; none if cutting left no answer."""
        return int(np.count_nonzero(self.labels != IGNORED))

    @property
    def sides(self) -> tuple[Encoded, ...]:
        """Itself, and the other answer of a pair."""
        return (self,) if self.rejected is None else (self, self.rejected)


class ValidRow(NamedTuple):
    """A row that can be used."""

    digest: bytes
    """Of Example.digest()."""
    place: RowPlace
    rendered: RenderedRow


class Encoder:
    """Tokenizes rendered rows, many in one call.

    Raises:
        TuneryError: ModelUnsupported when the tokenizer does not know which characters a token stands for.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise TuneryError(
                FailureReason.MODEL_UNSUPPORTED,
                f"spec.model.uri: the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json",
                recreate("Use a model whose folder has a tokenizer.json", "model.uri"),
            )
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._eos: int | None = tokenizer.eos_token_id

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded]:
        """The rows in the same order: tokens, end of sequence once, labels, cut to maxLength."""
        texts = [text for row in rows for text in row.sides]
        encoded = iter(self._texts(texts))
        return [_joined(row, encoded) for row in rows]

    @cached_property
    def _byte_level(self) -> ByteLevel:
        return ByteLevel(self._tokenizer)

    def _texts(self, texts: Sequence[Rendered]) -> list[Encoded]:
        encoded: list[Encoded] = []
        for special, group in groupby(texts, key=lambda row: row.special_tokens):
            batch = list(group)
            located = self._byte_level.located(batch, special_tokens=special)
            others = [row for row, found in zip(batch, located, strict=True) if found is None]
            asked = iter(self._by_characters(others, special) if others else ())
            encoded += [self._row(row, *(found or next(asked))) for row, found in zip(batch, located, strict=True)]
        return encoded

    def _by_characters(self, batch: Sequence[Rendered], special: bool) -> list[Located]:
        # No truncation here: the full length goes into the report.
        encodings = self._tokenizer(
            [row.text for row in batch], add_special_tokens=special, verbose=False, **_NOTHING_ELSE
        ).encodings
        return [
            (
                np.array(encoding.ids, dtype=np.int32),
                None if row.spans is None else token_stretches(encoding, row.spans),
            )
            for row, encoding in zip(batch, encodings, strict=True)
        ]

    def _row(self, row: Rendered, ids: Tokens, stretches: list[tuple[int, int]] | None) -> Encoded:
        labels = labels_of(ids, stretches)
        if row.append_eos and self._eos is not None:
            # Some tokenizers add it themselves, at no place of the text.
            if not ids.size or ids[-1] != self._eos:
                ids, labels = np.append(ids, np.int32(self._eos)), np.append(labels, np.int32(IGNORED))
            # The last span ends the text: what comes after the last answer was left out.
            labels[-1] = self._eos
        length, cut = len(ids), self._max_length
        if length > cut:
            ids, labels = ids[:cut].copy(), labels[:cut].copy()
        turns = sum(first < cut for first, _ in stretches or ())
        return Encoded(ids, labels, length, turns)


def _joined(row: Rendered, encoded: Iterator[Encoded]) -> Encoded:
    """What a row became: the next of `encoded`, or the next two."""
    one = next(encoded)
    if row.rejected is not None:
        return paired(one, next(encoded))
    if row.desirable is not None:
        return dataclasses.replace(one, labels=_after_first(one.labels), desirable=row.desirable)
    return one


def paired(chosen: Encoded, rejected: Encoded) -> Encoded:
    """Both answers, counted from the same token on: the first of either, or the first that differs.

    So both count the same stretch of the text, also where an answer's beginning shares a token with the prompt's end.
    """
    length = min(len(chosen.input_ids), len(rejected.input_ids))
    differs = np.flatnonzero(chosen.input_ids[:length] != rejected.input_ids[:length])
    starts = [np.flatnonzero(side.labels != IGNORED)[:1] for side in (chosen, rejected)]
    start = int(min([length, *differs[:1], *(first[0] for first in starts if first.size)]))
    sides = []
    for side, first in zip((chosen, rejected), starts, strict=True):
        labels = side.labels.copy()
        if first.size:
            labels[start : first[0]] = side.input_ids[start : first[0]]
        sides.append(dataclasses.replace(side, labels=_after_first(labels)))
    return dataclasses.replace(sides[0], rejected=sides[1])


def _after_first(labels: Tokens) -> Tokens:
    """Labels without that of the first token, which nothing predicts."""
    return np.concatenate([np.full(1, IGNORED, np.int32), labels[1:]])[: len(labels)]


def encoded_ahead(
    rows: Iterable[ValidRow], encode: Callable[[Sequence[Rendered]], list[Encoded]]
) -> Iterator[tuple[list[ValidRow], list[Encoded]]]:
    """Yield the rows in batches, with their examples; while the tokenizer works on one batch, the next is read.

    Where reading ends with a TuneryError, every row before it is yielded all the same, and then it is raised.
    """
    waiting: list[tuple[list[ValidRow], Future[list[Encoded]]]] = []
    ended: list[TuneryError] = []
    with _nothing_older_examined(), ThreadPoolExecutor(1, "tokenize") as thread:
        for batch in _in_batches(_until_error(rows, ended)):
            texts = [example for row in batch for example in row.rendered.examples]
            waiting.append((batch, thread.submit(encode, texts)))
            if len(waiting) > 1:
                before, encoded = waiting.pop(0)
                yield before, encoded.result()
        yield from ((before, encoded.result()) for before, encoded in waiting)
    for error in ended:
        raise error


@contextmanager
def _nothing_older_examined() -> Iterator[None]:
    """Let the garbage collector look through what is made from now on only.

    Through the hundred thousands of objects that the libraries have made it takes 0.3 s, time and again.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _until_error(rows: Iterable[ValidRow], ended: list[TuneryError]) -> Iterator[ValidRow]:
    """Yield the rows up to a TuneryError, which is put into `ended`."""
    try:
        yield from rows
    except TuneryError as error:
        ended.append(error)


def _in_batches(rows: Iterable[ValidRow]) -> Iterator[list[ValidRow]]:
    """Groups of rows for one tokenizer call: few enough to bound memory, many enough to use every core."""
    batch: list[ValidRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(text.text) for example in row.rendered.examples for text in example.sides)
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
