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

from tunery_trainer.data.render import Rendered, Span
from tunery_trainer.data.tokenizer import Tokenizer

Located = tuple[npt.NDArray[np.int32], list[tuple[int, int]] | None]
"""A text's tokens, and those stretches of them that count (`mask.token_stretches`), or None where all do."""

_ADDS_NOTHING: Final = frozenset(["ByteLevel", "Digits", "Split"])
"""Pre-tokenizers that cut a text, and put no character into it."""
_SETTLED: Final = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}


class ByteLevel:
    """A tokenizer of which each token stands for bytes of the text, as those of Llama 3, Qwen and SmolLM2 do.

    It need not keep note of every token's characters then, which is a seventh of its work: tokens that have together
    as many bytes as their text stand for it from end to end. Where they have not, the tokenizer is to be asked for the
    characters of that text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer([""], **_SETTLED)  # transformers sets truncation and padding at a call
        self._tokenizer = tokenizer.backend_tokenizer
        told = json.loads(self._tokenizer.to_str())
        self._composes = told["normalizer"] is not None
        self._lengths = _byte_lengths(told) if _is_byte_level(told) else None

    def located(self, rows: Sequence[Rendered], *, special_tokens: bool) -> list[Located | None]:
        """Return what is found of each row, whatever rows are beside it; None where characters are to be asked for."""
        known = [self._knows(row.text) for row in rows]
        texts = [row.text for row, own in zip(rows, known, strict=True) if own]
        encodings = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens) if texts else ())
        return [
            self._found(row, next(encodings), special_tokens) if own else None
            for row, own in zip(rows, known, strict=True)
        ]

    def _knows(self, text: str) -> bool:
        """Tell whether the tokens of a text stand for its own bytes, as far as can be known before."""
        if self._lengths is None:
            return False
        return not self._composes or text.isascii() or unicodedata.is_normalized("NFC", text)

    def _found(self, row: Rendered, encoding: Any, special_tokens: bool) -> Located | None:
        ids = np.array(encoding.ids, dtype=np.int32)
        if row.spans is None:
            return ids, None
        added = encoding.special_tokens_mask if special_tokens else None
        stretches = self.stretches(ids, added, row.text, row.spans)
        return None if stretches is None else (ids, stretches)

    def stretches(
        self, ids: npt.NDArray[np.int32], added: Sequence[int] | None, text: str, spans: Sequence[Span]
    ) -> list[tuple[int, int]] | None:
        """Return what `mask.token_stretches` does; None where the tokens are not the text from end to end.

        Args:
            ids: the tokens of `text`. Shape (tokens,).
            added: 1 for each token that stands for no byte of it (`special_tokens_mask`); None: all of them do.
            text: what was encoded.
            spans: characters [start, end) of it.
        """
        if self._lengths is None:
            return None
        lengths = self._lengths[ids]
        if added is not None:
            lengths = lengths * (1 - np.array(added, np.int32))
        ends = np.cumsum(lengths)
        size = len(text) if text.isascii() else len(text.encode())
        if (int(ends[-1]) if ends.size else 0) != size:
            return None
        places = [place for start, end in spans if start < end for place in (start, end)]
        starts, stops = _in_bytes(text, places, size).reshape(-1, 2).T
        first, last = np.searchsorted(ends, starts, "right"), np.searchsorted(ends, stops - 1, "right")
        return list(zip(first.tolist(), last.tolist(), strict=True))


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
