"""Which tokens count: from stretches of characters to labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

IGNORED: Final = -100
"""The label that the loss skips."""


def labels_of(ids: npt.NDArray[np.int32], stretches: Sequence[tuple[int, int]] | None) -> npt.NDArray[np.int32]:
    """Labels of the tokens `ids`: the token where it is within one of the `stretches`, else -100.

    Shape (tokens,). None means that every token counts.
    """
    if stretches is None:
        return ids.copy()
    labels = np.full_like(ids, IGNORED)
    for first, last in stretches:
        labels[first : last + 1] = ids[first : last + 1]
    return labels


def token_stretches(encoding: Any, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """First and last token that hold a character of each span; a span without any has no stretch.

    `spans` are characters [start, end) of the text that `encoding`, a `tokenizers.Encoding`, was made of.
    """
    found = ((_first_token(encoding, start, end), _last_token(encoding, start, end)) for start, end in spans)
    return [(first, last) for first, last in found if first is not None and last is not None]


def _first_token(encoding: Any, start: int, end: int) -> int | None:
    # Some tokenizers leave white space out of every token's characters, so the first one may have none.
    tokens = (encoding.char_to_token(character) for character in range(start, end))
    return next((token for token in tokens if token is not None), None)


def _last_token(encoding: Any, start: int, end: int) -> int | None:
    tokens = (encoding.char_to_token(character) for character in range(end - 1, start - 1, -1))
    token = next((token for token in tokens if token is not None), None)
    # One character can be several tokens (an emoji in bytes); char_to_token gives the first of them.
    while token is not None and _starts_within(encoding, token + 1, start, end):
        token += 1
    return token


def _starts_within(encoding: Any, token: int, start: int, end: int) -> bool:
    if token >= len(encoding):
        return False
    characters = encoding.token_to_chars(token)
    return characters is not None and characters[0] < characters[1] and start <= characters[0] < end
