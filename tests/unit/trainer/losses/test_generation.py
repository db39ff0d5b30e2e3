"""Held-out rows as questions, and the greedy answers to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunery_trainer.losses import generation
from tunery_trainer.losses.generation import Question, Speaker, questions


def row(*spans: tuple[int, bool]) -> dict[str, Any]:
    """Return a row of spans of so many tokens, each taught or not."""
    taught = [each for count, one in spans for each in [one] * count]
    ids = list(range(10, 10 + len(taught)))
    return {"input_ids": ids, "labels": [token if one else -100 for token, one in zip(ids, taught, strict=True)]}


@pytest.mark.parametrize(
    ("one", "asked"),
    [
        (row((3, False), (2, True)), Question([10, 11, 12], [13, 14])),
        (row((2, False), (2, True), (2, False), (1, True)), Question([10, 11, 12, 13, 14, 15], [16])),
        (row((2, False), (2, True), (3, False)), Question([10, 11], [12, 13])),  # what follows is not taught
    ],
)
def test_a_row_up_to_its_last_answer(one: dict[str, Any], asked: Question) -> None:
    assert questions([one], 5) == [asked]


@pytest.mark.parametrize("one", [row((4, True)), row((4, False))], ids=["no-prompt", "no-answer"])
def test_rows_that_are_no_questions(one: dict[str, Any]) -> None:
    assert questions([one], 5) == []


def test_the_rows_are_spread_over_all() -> None:
    rows = [row((place + 1, False), (1, True)) for place in range(100)]
    assert [len(each.prompt) - 1 for each in questions(rows, 4)] == [0, 25, 50, 75]
    assert len(questions(rows[:3], 16)) == 3


@pytest.fixture
def speaker(tiny_model: Path) -> Speaker:
    return Speaker(AutoTokenizer.from_pretrained(tiny_model), max_new_tokens=12)


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def asked_of(speaker: Speaker, *texts: str) -> list[Question]:
    return [Question(speaker.tokenizer.encode(text), []) for text in texts]


def greedy(model: Any, speaker: Speaker, prompt: list[int]) -> str:
    """Return the answer by hand, one whole forward pass for each token."""
    ids, ends = list(prompt), {speaker.tokenizer.eos_token_id, model.generation_config.eos_token_id}
    for _ in range(speaker.max_new_tokens):
        with torch.no_grad():
            token = int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token in ends:
            break
    return speaker.text(ids[len(prompt) :])


def test_answers_are_the_likeliest_tokens_whatever_stands_beside_them(model: Any, speaker: Speaker) -> None:
    asked = asked_of(speaker, "say red 5", "hi", "a rather longer question than the others", *"abcdefgh")
    model.train()
    said = speaker.answers(model, asked)
    assert model.training
    assert said == [greedy(model, speaker, each.prompt) for each in asked]


def test_fewer_rows_go_at_once_where_memory_runs_out(
    model: Any, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_of(speaker, *"abcdefgh")
    plain, whole, sizes = speaker.answers(model, asked), type(model).generate, []

    def generate(self: Any, input_ids: torch.Tensor, **more: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(model), "generate", generate)
    assert speaker.answers(model, asked) == plain
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert generation._AT_ONCE == 8


def test_one_row_that_does_not_fit_is_said_so(model: Any, speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "generate", generate)
    with pytest.raises(torch.OutOfMemoryError):
        speaker.answers(model, asked_of(speaker, "a", "b"))
