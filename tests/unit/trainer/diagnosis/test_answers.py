"""Answers compared with what the rows say: word for word, and by ROUGE-L in any script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunery_trainer.diagnosis.answers import Answer, answer_metrics, exact_match, rouge_l, write_answers


def test_white_space_does_not_count() -> None:
    assert exact_match(["a  b\nc", "x", "y"], [" a b c ", "x", "Y"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("expected", "said", "score"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3.1
        ("police killed the gunman", "the gunman kill police", 0.5),
        ("Ja, natürlich.", "ja natürlich", 1.0),
        ("猫が好きです", "犬が好きです", 5 / 6),
        ("Да, конечно", "нет", 0.0),
        ("", "", 1.0),
        ("", "something", 0.0),
        ("!!!", "???", 1.0),  # neither has a word
    ],
)
def test_rouge_l(expected: str, said: str, score: float) -> None:
    assert rouge_l([expected], [said]) == pytest.approx(score)


def test_both_measures_before_and_after() -> None:
    answers = [Answer("q", "red two", "blue", "red two"), Answer("q", "one", "one", "one two")]
    found = answer_metrics(answers)
    assert found == pytest.approx({"exactMatch": 0.5, "baseExactMatch": 0.5, "rougeL": 5 / 6, "baseRougeL": 0.5})


def test_what_nobody_asked_before_is_not_measured() -> None:
    assert answer_metrics([Answer("q", "one", None, "one")]) == {"exactMatch": 1.0, "rougeL": 1.0}


def test_every_answer_is_a_line(tmp_path: Path) -> None:
    answers = [Answer("q\nq", "größer", None, "a"), Answer("q2", "b", "c", "")]
    write_answers(answers, tmp_path)
    lines = (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()
    assert [Answer(**json.loads(line)) for line in lines] == answers
    assert "größer" in lines[0]
