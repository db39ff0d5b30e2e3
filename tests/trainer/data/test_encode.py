"""The loss counts exactly the answers, whatever the chat template does."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from tunery_trainer.data.encode import Encoded, Encoder
from tunery_trainer.data.options import Loss
from tunery_trainer.data.render import Renderer
from tunery_trainer.data.rows import Example, Place, RowError

from .conftest import CHATML, build_tokenizer

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
    rendered = Renderer(tokenizer, loss).render(Example(Place("a", 1), **example))
    (row,) = Encoder(tokenizer, max_length).encode([rendered])
    return row


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
    assert not row.final_turn_only


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


def test_no_end_is_learned_after_a_question() -> None:
    tokenizer = build_tokenizer(CHATML, eos="<|endoftext|>")
    row = encode(tokenizer, messages=TURNS[:4])
    assert counted(tokenizer, row) == ["Naïve 🙂<|im_end|>\n"]
    assert (row.input_ids[-1], row.labels[-1]) == (tokenizer.eos_token_id, -100)


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


def test_a_template_that_rewrites_earlier_turns_trains_on_the_last_answer() -> None:
    tokenizer = build_tokenizer(FORGETFUL)
    first = {"role": "assistant", "content": "<think>hm</think>One"}
    row = encode(tokenizer, messages=(TURNS[1], first, TURNS[3], TURNS[4]))
    assert counted(tokenizer, row) == ["Fine 🙂🙂<|im_end|>"]
    assert row.final_turn_only
    single = encode(tokenizer, messages=(TURNS[1], first))
    assert counted(tokenizer, single) == ["<think>hm</think>One<|im_end|>"]
    assert not single.final_turn_only


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


def test_cutting_keeps_the_start_and_knows_the_full_length(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode(tokenizer, messages=TURNS)
    cut = encode(tokenizer, messages=TURNS, max_length=9)
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[:9]
    assert (cut.full_length, cut.loss_tokens) == (len(whole.input_ids), 0)


def test_batches_give_what_single_rows_give(tokenizer: PreTrainedTokenizerBase) -> None:
    renderer, encoder = Renderer(tokenizer, Loss.COMPLETION), Encoder(tokenizer, 64)
    rows = [renderer.render(Example(Place("a", n), messages=TURNS[: 3 + 2 * (n % 2)])) for n in range(40)]
    together = encoder.encode(rows)
    for row, rendered in zip(together, rows, strict=True):
        (alone,) = encoder.encode([rendered])
        assert row.input_ids.tolist() == alone.input_ids.tolist()
        assert row.labels.tolist() == alone.labels.tolist()
