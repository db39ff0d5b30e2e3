"""The formats: which one a row is in, and how each becomes plain text or a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from tunery_api.inputs import FORMATS_OF_TASK, DatasetFormat, DatasetTemplate
from tunery_api.methods import TrainingTask
from tunery_api.redact import shorten
from tunery_trainer.data.conversation import (
    Conversation,
    conversation_from_openai,
    conversation_from_share_gpt,
    tools_of,
)
from tunery_trainer.data.preferences import answered, labelled, pair, plain_labelled, plain_pair, refuse_turns
from tunery_trainer.data.rows import Example, JsonObject, RowError, RowPlace
from tunery_trainer.data.validate import optional_text, text_field

FIELDS: Final[dict[DatasetFormat, tuple[str, ...]]] = {
    DatasetFormat.UNPAIRED_PREFERENCE: ("prompt", "completion", "label"),
    DatasetFormat.PREFERENCE: ("chosen", "rejected"),
    DatasetFormat.MESSAGES: ("messages",),
    DatasetFormat.SHARE_GPT: ("conversations",),
    DatasetFormat.ALPACA: ("instruction", "output"),
    DatasetFormat.PROMPT_COMPLETION: ("prompt", "completion"),
    DatasetFormat.TEXT: ("text",),
}
"""The fields that a row of each format must have, in the order in which AUTO looks for them."""

OPTIONAL_FIELDS: Final = ("input", "system", "tools")


def formats_of(task: TrainingTask) -> dict[DatasetFormat, tuple[str, ...]]:
    """What `task` learns from, with the fields of each format."""
    fitting = {name.value for name in FORMATS_OF_TASK[task]}
    return {name: fields for name, fields in FIELDS.items() if name.value in fitting}


def known_fields(name: DatasetFormat) -> tuple[str, ...]:
    """The fields that a row of format `name` may have."""
    if name is DatasetFormat.PREFERENCE:
        return ("prompt", *FIELDS[name], "system", "tools")
    if name is DatasetFormat.UNPAIRED_PREFERENCE:
        return (*FIELDS[name], "system", "tools")
    return (*FIELDS[name], *OPTIONAL_FIELDS)


def detect(
    row: Mapping[str, Any], formats: Mapping[DatasetFormat, tuple[str, ...]] = MappingProxyType(FIELDS)
) -> DatasetFormat | None:
    """The first of `formats` whose fields `row` has; None if it has those of none."""
    return next((name for name, fields in formats.items() if all(field in row for field in fields)), None)


def convert(
    row: JsonObject, name: DatasetFormat, place: RowPlace, template: DatasetTemplate = DatasetTemplate.CHAT
) -> Example:
    """One row of format `name` as an Example; with PLAIN, prompt and completion stay text.

    Raises:
        RowError: the field that is missing or wrong, and why.
    """
    for field in FIELDS[name]:
        if field not in row:
            raise _missing(field, row, name)
    converters = _PLAIN_CONVERTERS if template is DatasetTemplate.PLAIN else _CONVERTERS
    return converters[name](row, place)


def _missing(field: str, row: JsonObject, name: DatasetFormat) -> RowError:
    other = detect(row)
    if other is not None and other is not name:
        return RowError(field, f"is missing: the row looks like {other}, but the data set is {name}")
    return RowError(field, f"is missing; {columns_text(row)}", columns=bool(row))


def columns_text(row: Mapping[str, Any]) -> str:
    """The columns of a row as a phrase for messages."""
    shown = ", ".join(shorten(str(key), 40) for key in list(row)[:20])
    return f"columns: {shown}" if shown else "the row has no columns"


def _text(row: JsonObject, place: RowPlace) -> Example:
    return Example(place, text=text_field(row, "text"))


def _plain(row: JsonObject, prompt: str, completion: str, place: RowPlace) -> Example:
    """A prompt and its completion, one after the other; a system text stands before both."""
    if tools_of(row):
        raise RowError("tools", "only a chat template can show tools; use spec.dataset.template: Chat")
    system = optional_text(row, "system")
    start = f"{system}\n\n{prompt}" if system.strip() else prompt
    return Example(place, text=start + completion, completion_at=len(start))


def _exchange(row: JsonObject, prompt: str, answer: str, place: RowPlace) -> Example:
    system = optional_text(row, "system")
    start = ({"role": "system", "content": system},) if system.strip() else ()
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Example(place, messages=(*start, *turns), tools=tools_of(row))


def _plain_completion(row: JsonObject, place: RowPlace) -> Example:
    for field in ("prompt", "completion"):
        refuse_turns(row, field)
    return _plain(row, text_field(row, "prompt"), text_field(row, "completion"), place)


def _instruction(row: JsonObject) -> str:
    instruction, extra = text_field(row, "instruction"), optional_text(row, "input")
    return f"{instruction}\n\n{extra}" if extra.strip() else instruction


def _alpaca(row: JsonObject, place: RowPlace) -> Example:
    return _exchange(row, _instruction(row), text_field(row, "output"), place)


def _plain_alpaca(row: JsonObject, place: RowPlace) -> Example:
    # A prompt says itself where it ends; an instruction needs something between it and the output.
    return _plain(row, f"{_instruction(row)}\n\n", text_field(row, "output"), place)


def _share_gpt(row: JsonObject, place: RowPlace) -> Example:
    return _chat(row, conversation_from_share_gpt(row), place)


def _messages(row: JsonObject, place: RowPlace) -> Example:
    return _chat(row, conversation_from_openai(row), place)


def _chat(row: JsonObject, found: Conversation, place: RowPlace) -> Example:
    return Example(place, messages=found.messages, tools=tools_of(row), context=found.context)


_CONVERTERS: Final[dict[DatasetFormat, Callable[[JsonObject, RowPlace], Example]]] = {
    DatasetFormat.TEXT: _text,
    DatasetFormat.PROMPT_COMPLETION: answered,
    DatasetFormat.ALPACA: _alpaca,
    DatasetFormat.SHARE_GPT: _share_gpt,
    DatasetFormat.MESSAGES: _messages,
    DatasetFormat.PREFERENCE: pair,
    DatasetFormat.UNPAIRED_PREFERENCE: labelled,
}
_PLAIN_CONVERTERS: Final[dict[DatasetFormat, Callable[[JsonObject, RowPlace], Example]]] = {
    DatasetFormat.TEXT: _text,
    DatasetFormat.PROMPT_COMPLETION: _plain_completion,
    DatasetFormat.ALPACA: _plain_alpaca,
    DatasetFormat.PREFERENCE: plain_pair,
    DatasetFormat.UNPAIRED_PREFERENCE: plain_labelled,
}
PLAIN_FORMATS: Final = frozenset(_PLAIN_CONVERTERS)
"""The formats that need no chat template."""
