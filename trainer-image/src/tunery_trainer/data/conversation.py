"""Conversations: OpenAI's messages (with tool calls) and ShareGPT's turns, checked and made one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tunery_trainer.data.nesting import too_deep
from tunery_trainer.data.rows import JsonObject, RowError
from tunery_trainer.data.validate import (
    json_value,
    list_field,
    object_value,
    optional_text,
    parsed,
    text_field,
    text_value,
)

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_SHARE_GPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
"""What data sets call reasoning; for a template that knows another name than the first, transformers adds it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Checked messages: role, content, and what belongs to reasoning and tool calls."""

    messages: tuple[JsonObject, ...]
    context: frozenset[int]
    """Indexes of the assistant's messages that are not to be learned."""


def conversation_from_openai(row: JsonObject) -> Conversation:
    """The checked turns of the field `messages`.

    Raises:
        RowError: with the path of the wrong field, such as `messages[1].content`.
    """
    turns = list_field(row, "messages")
    messages = tuple(_message(turn, f"messages[{index}].") for index, turn in enumerate(turns))
    return _conversation("messages", turns, messages)


def conversation_from_share_gpt(row: JsonObject) -> Conversation:
    """The turns of the field `conversations` (from, value) as messages; a column `system` goes first.

    Raises:
        RowError: with the path of the wrong field, such as `conversations[0].from`.
    """
    system = optional_text(row, "system")
    start = ({"role": "system", "content": system},) if system.strip() else ()
    turns = list_field(row, "conversations")
    converted = tuple(_turn(turn, f"conversations[{index}].") for index, turn in enumerate(turns))
    found = _conversation("conversations", turns, converted)
    return Conversation((*start, *converted), frozenset(index + len(start) for index in found.context))


def turns_of(row: JsonObject, field: str) -> tuple[JsonObject, ...]:
    """The checked turns of a prompt or of its answer, which bear no marks.

    Raises:
        RowError: with the path of the wrong field, such as `chosen[0].content`.
    """
    turns = list_field(row, field)
    for index, turn in enumerate(turns):
        mark = next((name for name in ("weight", "train") if turn.get(name) is not None), None)
        if mark:
            why = "is for format Messages; beside a prompt, all of the answer counts"
            raise RowError(f"{field}[{index}].{mark}", why)
    return tuple(_message(turn, f"{field}[{index}].") for index, turn in enumerate(turns))


def with_turns(row: JsonObject) -> JsonObject:
    """The row of a CSV file, which has texts only, with the cells parsed that hold turns as JSON.

    Any other list is a text: only turns have a role that is known in each object.
    """
    return {field: _turns_in(cell) or cell for field, cell in row.items()}


def _turns_in(cell: Any) -> list[JsonObject] | None:
    if not isinstance(cell, str) or cell.lstrip()[:1] != "[":
        return None
    try:
        turns = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if too_deep(turns, cell.count("[") + cell.count("{")):
        return None
    are_turns = isinstance(turns, list) and all(isinstance(t, dict) and t.get("role") in _ROLES for t in turns)
    return turns if are_turns else None


def tools_of(row: JsonObject) -> tuple[JsonObject, ...]:
    """The tool descriptions in the field `tools` (a list, or JSON in a string); empty where there are none."""
    return tuple(json_value(list_field(row, "tools"), "tools")) if row.get("tools") else ()


def _conversation(field: str, turns: Sequence[JsonObject], messages: tuple[JsonObject, ...]) -> Conversation:
    answers = {index for index, message in enumerate(messages) if message["role"] == "assistant"}
    if not answers:
        raise RowError(field, "has no answer of the assistant, so there is nothing to learn")
    marks = [_mark(turn, f"{field}[{index}].", answer=index in answers) for index, turn in enumerate(turns)]
    context = frozenset(index for index in answers if marks[index] is False)
    if context == answers:
        raise RowError(field, "marks every answer with weight 0 or train false, so there is nothing to learn")
    return Conversation(messages, context)


def _mark(turn: JsonObject, at: str, *, answer: bool) -> bool | None:
    """What OpenAI's `weight` (0 or 1) or axolotl's `train` (true or false) says of a turn; None: nothing."""
    if "weight" not in turn and "train" not in turn:
        return None
    marks = {name: _switch(turn[name], name, at) for name in ("weight", "train") if turn.get(name) is not None}
    if len(set(marks.values())) > 1:
        raise RowError(f"{at}train", "contradicts weight; keep one of the two")
    name, trained = next(iter(marks.items()), ("", None))
    if trained and not answer:
        raise RowError(f"{at}{name}", "only the assistant's turns are trained; leave it out")
    return trained


def _switch(value: Any, name: str, at: str) -> bool:
    if name == "train" and not isinstance(value, bool):
        raise RowError(f"{at}train", f"must be true or false, found {json.dumps(value, default=str)[:40]}")
    # A weight in a parquet file is often a float, and Python's True equals 1.
    if name == "weight" and (isinstance(value, bool) or value not in (0, 1)):
        raise RowError(f"{at}weight", f"must be 0 or 1, found {json.dumps(value, default=str)[:40]}")
    return bool(value)


def _turn(turn: JsonObject, at: str) -> JsonObject:
    role = _SHARE_GPT_ROLES.get(text_field(turn, "from", at))
    if role is None:
        raise RowError(f"{at}from", f"must be one of {', '.join(_SHARE_GPT_ROLES)}, found '{turn['from'][:40]}'")
    return {"role": role, "content": text_field(turn, "value", at, blank=role in ("system", "tool"))}


def _message(message: JsonObject, at: str) -> JsonObject:
    role = text_field(message, "role", at)
    if role not in _ROLES:
        raise RowError(f"{at}role", f"must be one of {', '.join(_ROLES)}, found '{role[:40]}'")
    # Parquet gives every message the columns of all of them, so null means absent.
    calls = list_field(message, "tool_calls", at) if message.get("tool_calls") else []
    if calls and role != "assistant":
        raise RowError(f"{at}tool_calls", f"only the assistant calls tools, found the role '{role}'")
    result: JsonObject = {"role": role, "content": _content(message, at, blank=bool(calls))}
    if calls:
        result["tool_calls"] = [_tool_call(call, f"{at}tool_calls[{index}]") for index, call in enumerate(calls)]
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            result[key] = text_field(message, key, at, blank=True)
    reasoning = next((key for key in _REASONING if message.get(key) is not None), None)
    if reasoning is not None:
        result["reasoning_content"] = text_field(message, reasoning, at, blank=True)
    return result


def _content(message: JsonObject, at: str, *, blank: bool) -> str:
    content = message.get("content")
    if content is None and blank:
        return ""
    if isinstance(content, list):
        parts = list_field(message, "content", at)
        content = "".join(_part(part, f"{at}content[{index}].") for index, part in enumerate(parts))
        return text_value(content, f"{at}content", blank=blank)
    return text_field(message, "content", at, blank=blank or message["role"] in ("system", "developer", "tool"))


def _part(part: JsonObject, at: str) -> str:
    if part.get("type") != "text":
        raise RowError(f"{at}type", f"must be text, found '{str(part.get('type'))[:40]}'")
    return text_field(part, "text", at, blank=True)


def _tool_call(call: JsonObject, at: str) -> JsonObject:
    """Arguments become an object, as chat templates expect; OpenAI writes them as JSON in a string."""
    function = object_value(call["function"], f"{at}.function") if call.get("function") is not None else call
    inner = f"{at}.function." if function is not call else f"{at}."
    arguments: Any = parsed(function.get("arguments") or {}, f"{inner}arguments")
    checked: JsonObject = {
        "name": text_field(function, "name", inner),
        "arguments": json_value(object_value(arguments, f"{inner}arguments"), f"{inner}arguments"),
    }
    identity = {"id": text_value(call["id"], f"{at}.id")} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": checked}
