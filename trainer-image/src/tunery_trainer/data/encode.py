"""Text to tokens in batches, with the labels that mask everything but the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tunery_api.reasons import FailureReason
from tunery_trainer.data.mask import IGNORED, labels_of, token_stretches
from tunery_trainer.data.render import Rendered, RenderedRow
from tunery_trainer.errors import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = npt.NDArray[np.int32]

BATCH_ROWS: Final = 512
BATCH_CHARACTERS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example of at most maxLength tokens."""

    input_ids: Tokens
    """Shape (tokens,)."""
    labels: Tokens
    """Shape (tokens,): the token itself where it counts in the loss, else -100."""
    full_length: int
    """Tokens before cutting."""
    turns: int
    """Turns of which at least one token counts; 0 where every token does."""

    @property
    def loss_tokens(self) -> int:
        """How many tokens count; none if cutting left no answer."""
        return int(np.count_nonzero(self.labels != IGNORED))


class Encoder:
    """Tokenizes rendered rows, many in one call.

    Raises:
        TrainerError: ModelUnsupported when the tokenizer does not know which characters a token stands for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise TrainerError(
                FailureReason.MODEL_UNSUPPORTED,
                f"spec.model.uri: the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json",
                "Use a model whose folder has a tokenizer.json.",
            )
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._eos: int | None = tokenizer.eos_token_id

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded]:
        """The rows in the same order: tokens, end of sequence once, labels, cut to maxLength."""
        encoded: list[Encoded] = []
        for special, group in groupby(rows, key=lambda row: row.special_tokens):
            batch = list(group)
            # No truncation here: the full length goes into the report.
            encodings = self._tokenizer(
                [row.text for row in batch], add_special_tokens=special, verbose=False
            ).encodings
            encoded += [self._row(row, encoding) for row, encoding in zip(batch, encodings, strict=True)]
        return encoded

    def _row(self, row: Rendered, encoding: Any) -> Encoded:
        ids: list[int] = encoding.ids
        stretches = None if row.spans is None else token_stretches(encoding, row.spans)
        labels = labels_of(encoding, stretches)
        if row.append_eos and self._eos is not None:
            # Some tokenizers add it themselves, at no place of the text.
            if not ids or ids[-1] != self._eos:
                ids, labels = [*ids, self._eos], np.append(labels, np.int32(IGNORED))
            # The last span ends the text: what comes after the last answer was left out.
            labels[-1] = self._eos
        cut = self._max_length
        turns = sum(first < cut for first, _ in stretches or ())
        return Encoded(np.array(ids[:cut], dtype=np.int32), labels[:cut], len(ids), turns)


def in_batches(rows: Iterable[tuple[bytes, RenderedRow]]) -> Iterator[list[tuple[bytes, RenderedRow]]]:
    """Groups of rows for one tokenizer call: few enough to bound memory, many enough to use every core."""
    batch: list[tuple[bytes, RenderedRow]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(example.text) for example in row[1].examples)
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
