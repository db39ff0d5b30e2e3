"""Held-out rows that are answered before training and after it, where the manifest asks for that."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Any

from tunery_trainer.diagnosis.answers import Answer
from tunery_trainer.losses.answers import Rows
from tunery_trainer.losses.generation import Question, Speaker, questions
from tunery_trainer.model.quantization import dtype_of
from tunery_trainer.reporting.progress import say
from tunery_trainer.training.assignment import Assignment


@dataclass(frozen=True)
class Interview:
    """The rows that are answered, and how."""

    asked: list[Question]
    speaker: Speaker

    def answers(self, model: Any) -> list[str]:
        """Return what `model` says to each."""
        say(f"Answering  {len(self.asked)} held-out rows")
        return self.speaker.answers(model, self.asked)

    def compared(self, before: list[str] | None, after: list[str]) -> list[Answer]:
        """Return each row with what was said to it; `before` is None where nobody asked then."""
        tokenizer, known = self.speaker.tokenizer, before or cycle([None])
        return [
            Answer(str(tokenizer.decode(each.prompt)), self.speaker.text(each.expected), first, last)
            for each, first, last in zip(self.asked, known, after, strict=False)
        ]


def interview(job: Assignment, rows: Rows) -> Interview | None:
    """Return it for the held-out `rows`; None where none is asked for, or no row has a question and an answer."""
    wanted = job.settings.evaluation.generation
    asked = questions(rows, wanted.rows) if wanted else []
    if wanted is None or not asked:
        return None
    precision = dtype_of(job.settings.training.precision)
    speaker = Speaker(job.plan.basis.tokenizer, wanted.max_new_tokens, precision, job.team.sharded)
    return Interview(asked, speaker)
