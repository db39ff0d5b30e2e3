"""A few examples as the model sees them, with what of them is taught."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np

from tunery_trainer.data.encode import Encoded
from tunery_trainer.data.mask import IGNORED
from tunery_trainer.data.notes import Place, ShownExample, ShownText, Stretch
from tunery_trainer.data.rows import RowPlace
from tunery_trainer.data.tokenizer import Tokenizer

SHOWN_EXAMPLES: Final = 5
_MAX_STRETCHES: Final = 40
_MAX_TEXT: Final = 4000
"""Characters of one stretch; of a longer one both ends are shown."""
_HALF: Final = "\ufffd"
"""What a decoder writes for a part of a character."""


class Samples:
    """The first row, and the rows with the smallest digests: as if drawn, and the same each time in any order."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._first: tuple[RowPlace, list[Encoded]] | None = None
        self._drawn: dict[bytes, tuple[RowPlace, list[Encoded]]] = {}
        self._largest = b"\xff" * 16

    def add(self, digest: bytes, place: RowPlace, examples: list[Encoded]) -> None:
        """Look at a row of at least one example; most cost one comparison."""
        if self._first is None:
            self._first = (place, examples)
        elif digest < self._largest:
            self._drawn.setdefault(digest, (place, examples))
            if len(self._drawn) >= SHOWN_EXAMPLES:
                del self._drawn[max(self._drawn)]
            if len(self._drawn) == SHOWN_EXAMPLES - 1:
                self._largest = max(self._drawn)

    def shown(self) -> list[ShownExample]:
        """Return the rows in the order in which they stand, the first one first."""
        drawn = sorted(self._drawn.values(), key=lambda found: (found[0].file, found[0].number))
        return [self._show(place, examples) for place, examples in ([self._first] if self._first else []) + drawn]

    def _show(self, place: RowPlace, examples: list[Encoded]) -> ShownExample:
        one = examples[0]
        texts = [
            ShownText(
                tokens=len(side.input_ids),
                taught_tokens=side.loss_tokens,
                cut_tokens=side.full_length - len(side.input_ids),
                stretches=stretches_of(self._tokenizer.backend_tokenizer, side),
            )
            for side in one.sides
        ]
        return ShownExample(place=Place.of(place), texts=texts, desirable=one.desirable, parts=len(examples))


def stretches_of(decoder: Any, text: Encoded) -> list[Stretch]:
    """Return the text of an example, parted where taught tokens begin and end.

    `decoder` is a `tokenizers.Tokenizer`. What one token is part of is never parted: each stretch is what the text
    decoded up to its last token has more than the text decoded up to the one before.
    """
    ids, taught = text.input_ids.tolist(), text.labels != IGNORED
    if not ids:
        return []
    edges = [0, *(np.flatnonzero(taught[1:] != taught[:-1]) + 1).tolist(), len(ids)]
    whole = decoder.decode(ids, skip_special_tokens=False)
    ends = [_reached(decoder, ids[:edge], whole) for edge in edges[1:-1]]
    places = [0, *np.maximum.accumulate(ends).tolist(), len(whole)] if ends else [0, len(whole)]
    found = [
        Stretch(text=_ends(whole[start:end]), taught=bool(taught[edge]))
        for edge, (start, end) in zip(edges, pairwise(places), strict=False)
    ]
    left_out = len(found) - _MAX_STRETCHES
    if left_out > 0:
        middle = Stretch(text=f" … ({left_out} stretches are left out here) … ", taught=False)
        return [*found[: _MAX_STRETCHES // 2], middle, *found[-_MAX_STRETCHES // 2 :]]
    return found


def _reached(decoder: Any, ids: list[int], whole: str) -> int:
    """Return how many characters of `whole` the first tokens stand for."""
    part = decoder.decode(ids, skip_special_tokens=False).rstrip(_HALF)
    if whole.startswith(part):
        return len(part)
    return next(
        index for index, (one, other) in enumerate(zip(part + "\0", whole + "\0", strict=False)) if one != other
    )


def _ends(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]} … ({len(text) - 2 * half} characters are left out here) … {text[-half:]}"
