"""Where the tokens of a text begin and end, from how many bytes each of them stands for."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import pre_tokenizers

from tunery_trainer.data.render import Rendered
from tunery_trainer.data.tokenizer import Tokenizer

Located = tuple[npt.NDArray[np.int32], list[tuple[int, int]] | None]
"""A text's tokens, and those stretches of them that count (`mask.token_stretches`), or None where all do."""

_ADDS_NOTHING: Final = frozenset(["ByteLevel", "Digits", "Split"])
"""Pre-tokenizers that cut a text, and put no character into it."""


class ByteLevel:
    """A tokenizer of which each token stands for bytes of the text, as those of Llama 3, Qwen and SmolLM2 do.

    It need not keep note of every token's characters then, which is a seventh of its work: tokens that have together
    as many bytes as their text stand for it from end to end. Where they have not, the tokenizer is to be asked for the
    characters of that text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer([""])  # transformers sets truncation and padding at a call
        self._tokenizer = tokenizer.backend_tokenizer
        told = json.loads(self._tokenizer.to_str())
        self._composes = told["normalizer"] is not None
        self._lengths = _byte_lengths(told) if _is_byte_level(told) else None

    def located(self, rows: Sequence[Rendered], *, special_tokens: bool) -> list[Located | None]:
        """Return what is found of each row, whatever rows are beside it; None where characters are to be asked for."""
        if self._lengths is None:
            return [None] * len(rows)
        known = [self._is_composed(row.text) for row in rows]
        texts = [row.text for row, own in zip(rows, known, strict=True) if own]
        encodings = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens) if texts else ())
        return [
            _found(row, next(encodings), special_tokens, self._lengths) if own else None
            for row, own in zip(rows, known, strict=True)
        ]

    def _is_composed(self, text: str) -> bool:
        """Tell whether the tokenizer takes a text as it is."""
        return not self._composes or text.isascii() or unicodedata.is_normalized("NFC", text)


def _found(row: Rendered, encoding: Any, special_tokens: bool, lengths: npt.NDArray[np.int32]) -> Located | None:
    """Return the tokens of a row and its stretches; None where the tokens are not the text from end to end.

    `lengths` are the bytes of each token of the vocabulary. Shape (vocabulary,).
    """
    ids, text = np.array(encoding.ids, dtype=np.int32), row.text
    if row.spans is None:
        return ids, None
    stand_for = lengths[ids]
    if special_tokens:  # those that were added stand for no byte
        stand_for = stand_for * (1 - np.array(encoding.special_tokens_mask, np.int32))
    ends = np.cumsum(stand_for)
    size = len(text) if text.isascii() else len(text.encode())
    if (int(ends[-1]) if ends.size else 0) != size:
        return None
    places = [place for start, end in row.spans if start < end for place in (start, end)]
    starts, stops = _in_bytes(text, places, size).reshape(-1, 2).T
    first, last = np.searchsorted(ends, starts, "right"), np.searchsorted(ends, stops - 1, "right")
    return ids, list(zip(first.tolist(), last.tolist(), strict=True))


def _in_bytes(text: str, places: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    """How many bytes stand before each of `places`, characters of a text of `size` bytes, in order."""
    if size == len(text):
        return np.array(places, np.int64)
    steps = (len(text[start:end].encode()) for start, end in zip([0, *places], places, strict=False))
    return np.fromiter(accumulate(steps), np.int64)


def _is_byte_level(told: Mapping[str, Any]) -> bool:
    """Whether all bytes of a text come out as tokens, and nothing else does; `told` is a tokenizer.json."""
    model, normalizer = told["model"], told["normalizer"]
    cuts = told["pre_tokenizer"] or {}
    cuts = cuts["pretokenizers"] if cuts.get("type") == "Sequence" else [cuts]
    return (
        model["type"] == "BPE"
        and not any(model[name] for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and (normalizer is None or normalizer["type"] == "NFC")
        # What swallows the white space beside it would be found wanting in nearly every row of a chat.
        and not any(token["lstrip"] or token["rstrip"] for token in told["added_tokens"])
        and all(cut.get("type") in _ADDS_NOTHING for cut in cuts)
        and [cut["add_prefix_space"] for cut in cuts if cut["type"] == "ByteLevel"] == [False]
        # Without a token for what is not known, such bytes are left out, and then the sum is short.
        and (model["unk_token"] is None or set(pre_tokenizers.ByteLevel.alphabet()) <= set(model["vocab"]))
    )


def _byte_lengths(told: Mapping[str, Any]) -> npt.NDArray[np.int32]:
    """How many bytes each token stands for. Shape (vocabulary,)."""
    tokens = {number: len(token) for token, number in told["model"]["vocab"].items()}  # a character is a byte there
    tokens |= {token["id"]: len(token["content"].encode()) for token in told["added_tokens"]}
    lengths = np.zeros(max(tokens) + 1, np.int32)
    lengths[list(tokens)] = list(tokens.values())
    return lengths
