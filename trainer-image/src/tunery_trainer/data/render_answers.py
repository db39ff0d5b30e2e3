"""Preferences as the texts that the model weighs: both answers of a row as one example, or each as its own."""

from __future__ import annotations

import dataclasses
from typing import Final

from tunery_api.methods import TrainingTask
from tunery_trainer.data.render import Rendered, RenderedRow, Renderer
from tunery_trainer.data.rows import Example, RowError

_PAIR: Final = ("chosen", "rejected")


class AnswerRenderer:
    """Renders each answer after its prompt, as a row of SFT is rendered of which the answer alone is learned."""

    def __init__(self, renderer: Renderer, task: TrainingTask) -> None:
        self._renderer = renderer
        self._apart = task is TrainingTask.KTO

    def render(self, example: Example) -> RenderedRow:
        """The texts of a row: a pair as one example, or, for KTO, its answers as two, the chosen one first.

        Raises:
            RowError: when the template refuses an answer, does not show it, or would rewrite its earlier turns.
        """
        if example.rejected is None:
            text = self._text(example, "completion")
            found = (dataclasses.replace(text, desirable=example.desirable),)
            return RenderedRow(found, _turns(example))
        chosen, rejected = (
            self._text(answer, name) for name, answer in zip(_PAIR, (example, example.rejected), strict=True)
        )
        if chosen.text == rejected.text:
            raise RowError("rejected", "reads the same as chosen to the model, so there is nothing to prefer")
        turns = _turns(example) + _turns(example.rejected)
        if self._apart:
            apart = (dataclasses.replace(chosen, desirable=True), dataclasses.replace(rejected, desirable=False))
            return RenderedRow(apart, turns)
        return RenderedRow((dataclasses.replace(chosen, rejected=rejected),), turns)

    def _text(self, answer: Example, field: str) -> Rendered:
        try:
            row = self._renderer.render(answer)
        except RowError as error:
            raise RowError(field, str(error)) from error
        if len(row.examples) > 1:
            why = "the chat template rewrites its earlier turns; move all but the last of the assistant into the prompt"
            raise RowError(field, why)
        return row.examples[0]


def _turns(answer: Example) -> int:
    """How many turns of the assistant an answer has; a text is one."""
    return len(answer.trained) or 1
