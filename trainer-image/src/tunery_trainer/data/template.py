"""The tokenizer's chat template: conversations to text, and which places of a text lie inside a special token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jinja2.exceptions import TemplateError

from tunery_trainer.data.rows import JsonObject, RowError
from tunery_trainer.data.tokenizer import Tokenizer

DEFAULT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, for a tokenizer without a template. Its marks are plain text there: no token is added to the vocabulary,
so the adapter stays small."""

# What a template may raise over a row: its own raise_exception, or an operation on a value it did not expect.
_FAULTS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)


class ChatTemplate:
    """The tokenizer's own template, or ChatML where it has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.own = bool(tokenizer.chat_template)
        self._template = None if self.own else DEFAULT_TEMPLATE
        self.eos: str = tokenizer.eos_token or ""
        self._special = frozenset(token.content for token in tokenizer.added_tokens_decoder.values())
        self._lengths = sorted({len(token) for token in self._special}, reverse=True)
        self._firsts = frozenset(token[:1] for token in self._special)

    def text(self, messages: Sequence[JsonObject], tools: Sequence[JsonObject], *, asked: bool = False) -> str:
        """What the model reads; if `asked`, with the opening of the answer that is to come.

        Raises:
            RowError: when the template refuses the conversation.
        """
        try:
            rendered = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self._template,
                add_generation_prompt=asked,
                tokenize=False,
            )
        except _FAULTS as error:
            raise RowError("messages", f"the chat template refuses them: {error}") from error
        return str(rendered)

    def outside_special(self, text: str, span: tuple[int, int]) -> tuple[int, int]:
        """`span` (characters), made longer where it would begin or end inside a special token."""
        start, end = self._special_around(text, span[0])[0], self._special_around(text, span[1])[1]
        return start, end

    def _special_around(self, text: str, position: int) -> tuple[int, int]:
        longest = self._lengths[0] if self._lengths else 0
        for start in range(max(0, position - longest + 1), position):
            if text[start] not in self._firsts:
                continue
            for end in (start + length for length in self._lengths):
                if position < end <= len(text) and text[start:end] in self._special:
                    return start, end
        return position, position

    def trimmed(self, text: str, span: tuple[int, int]) -> tuple[int, int]:
        """`span` without the white space after an end-of-sequence token: nothing comes after that."""
        visible = text[span[0] : span[1]].rstrip()
        return (span[0], span[0] + len(visible)) if self.eos and visible.endswith(self.eos) else span
