"""The loss counts exactly the answers, whatever the chat template does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from tunery_api.reasons import FailureReason
from tunery_api.training import Loss
from tunery_common.errors import TuneryError
from tunery_trainer.data import encode as encode_module
from tunery_trainer.data.encode import Encoded, Encoder, ValidRow, encoded_ahead
from tunery_trainer.data.render import RenderedRow, Renderer
from tunery_trainer.data.rows import Example, RowError, RowPlace

from kit.tiny_models import CHATML, build_tokenizer

TURNS = (
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Naïve 🙂"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "Fine 🙂🙂"},
)
# As reasoning models' templates do: what was thought in earlier turns is dropped.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last or m.role != 'assistant' %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING_PROMPT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('must start with user') }}{% endif %}" + CHATML
SILENT = "{% for m in messages %}{{ m.role }}{% endfor %}"


def encode(
    tokenizer: PreTrainedTokenizerBase, *, loss: Loss = Loss.COMPLETION, max_length: int = 512, **example: Any
) -> Encoded:
    (row,) = encode_all(tokenizer, loss=loss, max_length=max_length, **example)
    return row


def encode_all(
    tokenizer: PreTrainedTokenizerBase, *, loss: Loss = Loss.COMPLETION, max_length: int = 512, **example: Any
) -> list[Encoded]:
    """What one row became."""
    rendered = Renderer(tokenizer, loss).render(Example(RowPlace("a", 1), **example))
    return Encoder(tokenizer, max_length).encode(rendered.examples)


def counted(tokenizer: PreTrainedTokenizerBase, row: Encoded) -> list[str]:
    """The stretches of tokens that count, as text."""
    stretches: list[list[int]] = [[]]
    for token, label in zip(row.input_ids.tolist(), row.labels.tolist(), strict=True):
        assert label in (token, -100)
        if label == -100:
            stretches.append([])
        else:
            stretches[-1].append(token)
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def test_every_answer_with_its_end_counts_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(tokenizer, messages=TURNS)
    assert counted(tokenizer, row) == ["Naïve 🙂<|im_end|>", "Fine 🙂🙂<|im_end|>"]
    whole = tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    assert tokenizer.decode(row.input_ids.tolist()) == whole
    assert row.turns == 2


def test_loss_all_counts_every_token(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(tokenizer, messages=TURNS, loss=Loss.ALL)
    assert row.labels.tolist() == row.input_ids.tolist()


def test_end_of_sequence_is_appended_once() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|endoftext|>")
    row = encode(tokenizer, messages=TURNS)
    assert row.input_ids.tolist().count(tokenizer.eos_token_id) == 1
    assert counted(tokenizer, row)[-1] == "Fine 🙂🙂<|im_end|>\n<|endoftext|>"
    for text in ("Hello", "Hello<|endoftext|>"):
        assert tokenizer.decode(encode(tokenizer, text=text).input_ids.tolist()) == "Hello<|endoftext|>"


def test_what_comes_after_the_last_answer_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    row, without = encode(tokenizer, messages=TURNS[:4]), encode(tokenizer, messages=TURNS[:3])
    assert row.input_ids.tolist() == without.input_ids.tolist()
    assert counted(tokenizer, row) == ["Naïve 🙂<|im_end|>"]


def test_the_end_counts_where_the_tokenizer_adds_it_itself() -> None:
    tokenizer = build_tokenizer(None, eos="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    row = encode(tokenizer, messages=TURNS[:3])
    assert counted(tokenizer, row) == ["Naïve 🙂<|im_end|>\n<|endoftext|>"]


def test_text_counts_in_full_and_gets_the_tokenizers_own_start() -> None:
    tokenizer = build_tokenizer(None, eos="<|endoftext|>")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    row = encode(tokenizer, text="Hello there")
    assert tokenizer.decode(row.input_ids.tolist()) == "<|im_start|>Hello there<|endoftext|>"
    assert row.labels.tolist() == row.input_ids.tolist()


def test_chatml_where_the_tokenizer_has_no_template() -> None:
    tokenizer = build_tokenizer(None, eos="<|endoftext|>")
    renderer = Renderer(tokenizer, Loss.COMPLETION)
    assert not renderer.own_template
    assert counted(tokenizer, encode(tokenizer, messages=TURNS[:3])) == ["Naïve 🙂<|im_end|>\n<|endoftext|>"]


def test_a_template_that_rewrites_earlier_turns_gets_an_example_for_each() -> None:
    tokenizer = build_tokenizer(FORGETFUL)
    first = {"role": "assistant", "content": "<think>hm</think>One"}
    turns = (TURNS[1], first, TURNS[3], TURNS[4])
    one, two = encode_all(tokenizer, messages=turns)
    assert counted(tokenizer, one) == ["<think>hm</think>One<|im_end|>"]
    assert counted(tokenizer, two) == ["Fine 🙂🙂<|im_end|>"]
    # Each as the model would be asked for it: the second answer never sees what was thought before the first.
    for row, asked in ((one, turns[:1]), (two, turns[:3])):
        prompt = tokenizer.apply_chat_template(list(asked), tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(row.input_ids[row.labels == -100].tolist()).startswith(prompt)


def test_turns_share_an_example_where_the_template_keeps_what_it_wrote() -> None:
    tokenizer = build_tokenizer(FORGETFUL)
    thoughtful = {"role": "assistant", "content": "<think>hm</think>One"}
    turns = (*TURNS[1:3], TURNS[3], thoughtful, TURNS[3], TURNS[4])
    one, two = encode_all(tokenizer, messages=turns)
    assert counted(tokenizer, one) == ["<think>hm</think>One<|im_end|>"]
    assert counted(tokenizer, two) == ["Naïve 🙂<|im_end|>", "Fine 🙂🙂<|im_end|>"]


def test_a_turn_that_is_context_is_shown_and_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(tokenizer, messages=TURNS, context=frozenset({2}))
    assert counted(tokenizer, row) == ["Fine 🙂🙂<|im_end|>"]
    assert tokenizer.decode(row.input_ids.tolist()) == tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    with pytest.raises(RowError, match=r"messages\[2\]: is not to be trained, but spec\.training\.loss: All"):
        encode(tokenizer, messages=TURNS, context=frozenset({2}), loss=Loss.ALL)


def test_a_plain_completion_counts_with_its_end_and_its_prompt_does_not() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|endoftext|>")
    row = encode(tokenizer, text="Hello there, how are you", completion_at=12)
    assert tokenizer.decode(row.input_ids.tolist()) == "Hello there, how are you<|endoftext|>"
    assert counted(tokenizer, row) == [" how are you<|endoftext|>"]
    everything = encode(tokenizer, text="Hello there, how are you", completion_at=12, loss=Loss.ALL)
    assert everything.labels.tolist() == everything.input_ids.tolist() == row.input_ids.tolist()


def test_an_opening_that_holds_more_than_a_finished_turn() -> None:
    tokenizer = build_tokenizer(THINKING_PROMPT)
    row = encode(tokenizer, messages=TURNS)
    assert counted(tokenizer, row) == ["Naïve 🙂<|im_end|>", "Fine 🙂🙂<|im_end|>"]


def test_a_row_that_the_template_refuses_is_a_bad_row() -> None:
    with pytest.raises(RowError, match="messages: the chat template refuses them: must start with user"):
        encode(build_tokenizer(STRICT), messages=TURNS)


def test_a_template_that_hides_the_answer_is_a_bad_row() -> None:
    # The rendered row begins as its own prompt does, so only the search for the answer can tell.
    with pytest.raises(RowError, match=r"messages\[2\]: the chat template does not show this answer"):
        encode(build_tokenizer(SILENT + "{{ messages | length }}"), messages=TURNS[:3])


@pytest.mark.parametrize("content", ["a", "s", "<b>", "assistant", "<think>a</think>a", "<think>\na"])
@pytest.mark.parametrize("template", [CHATML, THINKING_PROMPT], ids=["plain", "thinking"])
def test_an_answer_begins_after_its_header_whatever_it_says(template: str, content: str) -> None:
    answer = {"role": "assistant", "content": content}
    for turns in ((TURNS[1], answer), (answer,), (answer, TURNS[1], answer)):
        (row,) = (
            Renderer(TOKENIZERS[template], Loss.COMPLETION).render(Example(RowPlace("a", 1), messages=turns)).examples
        )
        found = [row.text[start:end] for start, end in row.spans or ()]
        assert found == [f"{content}<|im_end|>"] * sum(turn is answer for turn in turns)


# What looks like a template's own writing, or stands in it.
NASTY = st.lists(
    st.sampled_from(
        [
            "a",
            "s",
            "user",
            "assistant",
            "Fine",
            " ",
            "\n",
            "<|im_end|>",
            "<|im_start|>assistant\n",
            "<think>",
            "</think>",
        ]
    ),
    max_size=5,
).map("".join)
ROW = st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=3)


@pytest.mark.parametrize("template", [CHATML, FORGETFUL, THINKING_PROMPT, SILENT + CHATML], ids="ABCD")
@given(rows=st.lists(ROW, min_size=2, max_size=8))
@example(rows=[[("", "")], [("", "<think>\na")]])
@settings(max_examples=60)
def test_what_was_rendered_before_changes_nothing(template: str, rows: list[list[tuple[str, str]]]) -> None:
    tokenizer = TOKENIZERS[template]
    together = Renderer(tokenizer, Loss.COMPLETION)
    for row in rows:
        turns = [{"role": role, "content": text or "x"} for pair in row for role, text in zip(ROLES, pair, strict=True)]
        example = Example(RowPlace("a", 1), messages=tuple(turns))
        assert attempt(together, example) == attempt(Renderer(tokenizer, Loss.COMPLETION), example)


ROLES = ("user", "assistant")
TOKENIZERS = {template: build_tokenizer(template) for template in (CHATML, FORGETFUL, THINKING_PROMPT, SILENT + CHATML)}


def attempt(renderer: Renderer, example: Example) -> RenderedRow | str:
    """What becomes of a row, or why nothing does."""
    try:
        return renderer.render(example)
    except RowError as error:
        return str(error)


# Both begin with the same character, so the finished turn parts from its opening inside of a special token.
DRIFTING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}"
    "{% else %}:<|im_end|>{{ m.content }}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}:<|im_start|>{% endif %}"
)


def test_no_span_begins_inside_a_special_token() -> None:
    tokenizer = build_tokenizer(DRIFTING, eos="<|endoftext|>")
    call = {"type": "function", "function": {"name": "Hello", "arguments": {}}}
    turns = (TURNS[1], {"role": "assistant", "content": "", "tool_calls": [call]})
    # No content tells where the turn begins, and the call is not shown at all.
    with pytest.raises(RowError, match=r"messages\[1\]\.tool_calls\[0\]: the chat template does not show the name"):
        encode(tokenizer, messages=turns)
    shown = build_tokenizer(DRIFTING.replace("{{ m.content }}<|end", "{{ m.tool_calls[0].function.name }}<|end"))
    row = encode(shown, messages=turns, max_length=64)
    (text,) = Renderer(shown, Loss.COMPLETION).render(Example(RowPlace("a", 1), messages=turns)).examples
    assert [text.text[start:end] for start, end in text.spans or ()] == ["<|im_end|>Hello<|endoftext|>"]
    assert counted(shown, row) == ["<|im_end|>Hello<|endoftext|><|im_end|>"]


def test_cutting_keeps_the_start_and_knows_the_full_length(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode(tokenizer, messages=TURNS)
    cut = encode(tokenizer, messages=TURNS, max_length=9)
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[:9]
    assert (cut.full_length, cut.loss_tokens) == (len(whole.input_ids), 0)


def test_batches_give_what_single_rows_give(tokenizer: PreTrainedTokenizerBase) -> None:
    renderer, encoder = Renderer(tokenizer, Loss.COMPLETION), Encoder(tokenizer, 64)
    rows = [
        renderer.render(Example(RowPlace("a", n), messages=TURNS[: 3 + 2 * (n % 2)])).examples[0] for n in range(40)
    ]
    together = encoder.encode(rows)
    for row, rendered in zip(together, rows, strict=True):
        (alone,) = encoder.encode([rendered])
        assert row.input_ids.tolist() == alone.input_ids.tolist()
        assert row.labels.tolist() == alone.labels.tolist()


def test_while_one_batch_is_tokenized_the_next_is_read_and_an_error_loses_none(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "BATCH_ROWS", 1)
    render, encoder = Renderer(tokenizer, Loss.ALL).render, Encoder(tokenizer, 512)
    read: list[str] = []

    def rows() -> Iterator[ValidRow]:
        for text in ("one", "two", "three"):
            read.append(text)
            place = RowPlace("a", len(read))
            yield ValidRow(text.encode(), place, render(Example(place, text=text)))
        raise TuneryError(FailureReason.DATASET_INVALID, "too many bad rows")

    found: list[tuple[str, str, list[str]]] = []

    def look() -> None:
        for batch, (encoded,) in encoded_ahead(rows(), encoder.encode):
            text = tokenizer.decode(encoded.input_ids, skip_special_tokens=True)
            found.append((batch[0].digest.decode(), text, list(read)))

    with pytest.raises(TuneryError, match="too many bad rows"):
        look()
    assert found == [
        ("one", "one", ["one", "two"]),
        ("two", "two", ["one", "two", "three"]),
        ("three", "three", ["one", "two", "three"]),
    ]


def test_an_error_in_the_middle_of_a_batch_loses_no_row_before_it(tokenizer: PreTrainedTokenizerBase) -> None:
    render, encoder = Renderer(tokenizer, Loss.ALL).render, Encoder(tokenizer, 512)

    def rows() -> Iterator[ValidRow]:
        for number in range(3):
            place = RowPlace("a", number + 1)
            yield ValidRow(bytes([number]), place, render(Example(place, text="one")))
        raise TuneryError(FailureReason.DATASET_INVALID, "too many bad rows")

    ahead = encoded_ahead(rows(), encoder.encode)
    batch, examples = next(ahead)
    assert [row.place.number for row in batch] == [1, 2, 3]
    assert len(examples) == 3
    with pytest.raises(TuneryError, match="too many bad rows"):
        next(ahead)
