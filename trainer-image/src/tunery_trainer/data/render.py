"""Examples as the text that the model sees, with the stretches of it that count in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jinja2.exceptions import TemplateError

from tunery_trainer.data.options import Loss
from tunery_trainer.data.rows import Example, JsonObject, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

DEFAULT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, for a tokenizer without a template. Its marks are plain text there: no token is added to the vocabulary,
so the adapter stays small."""

# What a template may raise over a row: its own raise_exception, or an operation on a value it did not expect.
_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, KeyError)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of one row."""

    text: str
    spans: tuple[Span, ...] | None
    """Characters [start, end) whose tokens count in the loss; None: every token counts."""
    special_tokens: bool
    """Whether the tokenizer is to add its own (a chat template of the tokenizer's writes them itself)."""
    append_eos: bool
    """False where the text already ends with it."""
    final_turn_only: bool = False


class Renderer:
    """Renders with the tokenizer's chat template, or ChatML where it has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, loss: Loss) -> None:
        self._tokenizer = tokenizer
        self._all = loss is Loss.ALL
        self._eos: str = tokenizer.eos_token or ""
        self.own_template = bool(tokenizer.chat_template)
        self._template = None if self.own_template else DEFAULT_TEMPLATE

    def render(self, example: Example) -> Rendered:
        """The text of a row and what of it counts.

        An answer is what follows the prompt that ends with its opening, up to where the next turn begins; that holds
        for any template in which a conversation begins with its own beginning. Where it does not (templates that drop
        the reasoning of earlier turns, for example), only the last answer counts.

        Raises:
            RowError: when the template refuses the row, or no answer can be found in what it made of it.
        """
        if example.text is not None:
            return Rendered(example.text, None, special_tokens=True, append_eos=self._lacks_eos(example.text))
        try:
            full = self._apply(example, len(example.messages))
        except _TEMPLATE_FAULTS as error:
            raise RowError("messages", f"the chat template refuses them: {error}") from error
        spans, final_only = (None, False) if self._all else self._answers(example, full)
        return Rendered(full, spans, not self.own_template, self._lacks_eos(full), final_only)

    def _answers(self, example: Example, full: str) -> tuple[tuple[Span, ...], bool]:
        turns = [index for index, message in enumerate(example.messages) if message["role"] == "assistant"]
        spans = [self._span(example, index, full) for index in turns]
        found = tuple(self._trimmed(span, full) for span in spans if span is not None)
        if len(found) == len(turns):
            return found, False
        last = spans[-1] or _search(example.messages, turns[-1], full)
        return (self._trimmed(last, full),), len(turns) > 1

    def _span(self, example: Example, index: int, full: str) -> Span | None:
        """Where answer `index` stands in `full`; None if the template does not keep beginnings as they were."""
        try:
            opened = self._apply(example, index, generate=True)
            closed = full if index + 1 == len(example.messages) else self._apply(example, index + 1)
            if not full.startswith(closed):
                return None
            if full.startswith(opened):
                return len(opened), len(closed)
            # The opening may hold more than a finished turn shows (`<think>`): then they part after the header.
            start = _common_length(opened, full)
            return (start, len(closed)) if start > len(self._apply(example, index)) else None
        except _TEMPLATE_FAULTS:
            return None

    def _apply(self, example: Example, count: int, *, generate: bool = False) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(example.messages[:count]),
                tools=list(example.tools) or None,
                chat_template=self._template,
                add_generation_prompt=generate,
                tokenize=False,
            )
        )

    def _lacks_eos(self, text: str) -> bool:
        return bool(self._eos) and not text.rstrip().endswith(self._eos)

    def _trimmed(self, span: Span, full: str) -> Span:
        """Without the white space after an end-of-sequence token: nothing comes after that."""
        visible = full[span[0] : span[1]].rstrip()
        return (span[0], span[0] + len(visible)) if self._eos and visible.endswith(self._eos) else span


def _common_length(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def _search(messages: Sequence[JsonObject], index: int, full: str) -> Span:
    content = str(messages[index]["content"]).strip()
    start = full.rfind(content) if content else -1
    if start < 0:
        raise RowError(f"messages[{index}]", "the chat template does not show this answer, so it cannot be trained on")
    return start, len(full) if index + 1 == len(messages) else start + len(content)
