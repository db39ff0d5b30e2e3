"""Where tokens begin and end by their bytes: the same as the tokenizer says when it is asked for their characters."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase

from tunery_trainer.data.byte_level import ByteLevel
from tunery_trainer.data.encode import Encoder
from tunery_trainer.data.mask import token_stretches
from tunery_trainer.data.render import Rendered

from kit.tiny_models import CHATML, build_tokenizer

WORDS = [
    "Hello",
    " there",
    " ",
    "  ",
    "\n",
    "naïve",
    "é",
    "e\u0301",
    "🙂",
    "🙂🙂",
    "\u3000",
    "<|im_start|>",
    "x<|im_end|>",
]
Spans = list[tuple[int, int]]


def plain() -> PreTrainedTokenizerBase:
    return build_tokenizer(CHATML)


def as_qwen() -> PreTrainedTokenizerBase:
    tokenizer = plain()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def as_llama() -> PreTrainedTokenizerBase:
    tokenizer = plain()
    cut = pre_tokenizers.Split(Regex(r"\s+(?!\S)|\s+|\p{L}+|[^\s\p{L}]+"), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_only])
    return tokenizer


def with_start() -> PreTrainedTokenizerBase:
    tokenizer = plain()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_start|>", special_tokens=[("<|im_start|>", start)]
    )
    return tokenizer


@st.composite
def spanned(draw: st.DrawFn) -> tuple[str, Spans]:
    """A text with stretches of it, in order."""
    text = "".join(draw(st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=12)))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, list(zip(places[::2], places[1::2], strict=False))


def by_bytes(tokenizer: PreTrainedTokenizerBase, text: str, spans: Spans, special: bool) -> Spans | None:
    """Return what is found, None where nothing is; the tokens have to be the usual ones."""
    row = Rendered(text, tuple(spans), special_tokens=special, append_eos=False)
    (found,) = ByteLevel(tokenizer).located([row], special_tokens=special)
    if found is None:
        return None
    assert found[0].tolist() == tokenizer(text, add_special_tokens=special)["input_ids"]
    return found[1]


def by_characters(tokenizer: PreTrainedTokenizerBase, text: str, spans: Spans, special: bool) -> Spans:
    (encoding,) = tokenizer([text], add_special_tokens=special).encodings
    return token_stretches(encoding, spans)


@pytest.mark.slow
@pytest.mark.parametrize("build", [plain, as_qwen, as_llama, with_start])
@settings(max_examples=150)
@given(drawn=spanned(), special=st.booleans())
@example(drawn=("🙂🙂 e\u0301<|im_end|>", [(0, 1), (1, 3)]), special=False)
@example(drawn=("", []), special=True)
def test_they_are_where_the_tokenizer_says(
    build: Callable[[], PreTrainedTokenizerBase], drawn: tuple[str, Spans], special: bool
) -> None:
    tokenizer, (text, spans) = build(), drawn
    found = by_bytes(tokenizer, text, spans, special)
    if found is None:
        assert build is as_qwen, "only what is composed otherwise is not looked at"
    else:
        assert found == by_characters(tokenizer, text, spans, special)


def test_white_space_that_a_tokenizer_leaves_out_of_its_tokens_is_theirs_all_the_same() -> None:
    """Llama 3's gives " there" the characters of "there"."""
    tokenizer = plain()
    text, spans = "Hello there  <|im_end|>", [(5, 11), (11, 13)]
    wanted = by_characters(tokenizer, text, spans, False)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert by_bytes(tokenizer, text, spans, False) == wanted


def swallowing() -> PreTrainedTokenizerBase:
    tokenizer = plain()
    tokenizer.add_tokens([AddedToken("<|gap|>", lstrip=True, rstrip=True, special=True)])
    return tokenizer


def of_words() -> PreTrainedTokenizerBase:
    tokenizer = plain()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def with_prefix() -> PreTrainedTokenizerBase:
    tokenizer = plain()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def lower() -> PreTrainedTokenizerBase:
    tokenizer = plain()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


@pytest.mark.parametrize("build", [swallowing, of_words, with_prefix, lower])
def test_tokens_that_are_not_the_text_from_end_to_end_are_asked_for_their_characters(
    build: Callable[[], PreTrainedTokenizerBase],
) -> None:
    tokenizer, text = build(), "Hello  <|gap|>  There"
    rows = [Rendered(text, ((start, len(text)),), special_tokens=False, append_eos=False) for start in (0, 7, 16)]
    assert by_bytes(tokenizer, text, list(rows[0].spans or ()), False) is None
    encoder = Encoder(tokenizer, 64)
    for row, encoded in zip(rows, encoder.encode(rows), strict=True):
        ((first, last),) = by_characters(tokenizer, text, list(row.spans or ()), False)
        assert np.flatnonzero(encoded.labels != -100).tolist() == list(range(first, last + 1))


def test_what_is_found_of_a_row_does_not_hang_on_its_neighbours() -> None:
    tokenizer = as_qwen()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    plain_row, decomposed = (
        Rendered(text, ((5, len(text)),), special_tokens=False, append_eos=False)
        for text in ("Hello there  ", "Hello e\u0301  ")
    )
    encoder = Encoder(tokenizer, 64)
    (alone,) = encoder.encode([plain_row])
    for together in (encoder.encode([decomposed, plain_row])[1], encoder.encode([plain_row, decomposed])[0]):
        assert (together.input_ids.tolist(), together.labels.tolist()) == (
            alone.input_ids.tolist(),
            alone.labels.tolist(),
        )


def test_what_a_tokenizer_json_cuts_or_pads_is_neither() -> None:
    tokenizer = plain()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    text = "Hello there, naïve 🙂"
    (row,) = Encoder(tokenizer, 64).encode([Rendered(text, None, special_tokens=False, append_eos=False)])
    assert tokenizer.decode(row.input_ids.tolist()) == text
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"] is None
