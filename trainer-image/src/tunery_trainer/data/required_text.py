"""What a chat template must show of a message that is trained: its text, and each tool call with its arguments."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

from tunery_trainer.data.rows import JsonObject, RowError

THINK_END: Final = "</think>"

_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_CODED: Final = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2}))")
_WRITING: Final = re.compile(r"\\+[nrtbf]|[\s\\/\"']")
"""What is written differently from template to template: escapes, quotes and white space."""


def thought_and_said(message: JsonObject) -> tuple[str, str]:
    """Reasoning and answer of a message, stripped; reasoning may stand in its content, before `</think>`."""
    content, reasoning = str(message["content"]), str(message.get("reasoning_content") or "")
    before, end, after = content.rpartition(THINK_END)
    if not end:
        return reasoning.strip(), content.strip()
    return (reasoning or before.rpartition("<think>")[2]).strip(), after.strip()


def check_shown(message: JsonObject, at: str, shown: str) -> bool:
    """Whether `shown`, what is trained of the message at `at`, holds its reasoning (True where there is none).

    Raises:
        RowError: where its answer is not in it, or a tool call's name or one of its arguments.
    """
    reasoning, answer = thought_and_said(message)
    if not _holds(shown, answer):
        raise RowError(f"{at}.content", "the chat template does not show this answer, so it cannot be trained")
    for index, call in enumerate(message.get("tool_calls") or ()):
        lost = _lost_of_call(call["function"], shown)
        if lost:
            why = f"the chat template does not show {lost} of this call; use a model whose template knows tools"
            raise RowError(f"{at}.tool_calls[{index}]", why)
    thought = _holds(shown, reasoning)
    if not (answer or message.get("tool_calls") or thought):
        raise RowError(at, "the chat template shows nothing of this turn, so it cannot be trained")
    return thought


def _lost_of_call(function: JsonObject, shown: str) -> str:
    """What of the call is missing in `shown`, in words; empty where nothing is."""
    if not _holds(shown, function["name"]):
        return f"the name '{function['name'][:40]}'"
    lost = next((leaf for leaf in leaves_of(function["arguments"]) if not _shows_value(shown, leaf)), None)
    return "" if lost is None else f"the argument {json.dumps(lost, ensure_ascii=False)[:60]}"


def leaves_of(value: Any) -> Iterator[Any]:
    """The keys and values below `value`; a key whose value is null may be left out by a template."""
    if isinstance(value, dict):
        for key, item in value.items():
            if item is not None:
                yield key
                yield from leaves_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves_of(item)
    elif value is not None:
        yield value


def _shows_value(shown: str, value: Any) -> bool:
    if isinstance(value, str):
        return _holds(shown, value)
    if isinstance(value, bool):
        return str(value).lower() in shown.lower()
    return str(value) in shown or any(float(number) == float(value) for number in _NUMBER.findall(shown))


def _holds(shown: str, text: str) -> bool:
    """Whether `text` stands in `shown`, in whatever writing: JSON or not, with other white space."""
    return text in shown or _letters(text) in _letters(shown)


def _letters(text: str) -> str:
    found = _CODED.sub(_character, html.unescape(text))
    # JSON escapes an emoji as two halves.
    whole = found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _WRITING.sub("", whole)


def _character(match: re.Match[str]) -> str:
    code = int(match[match.lastindex or 0], 16)
    return chr(code) if code <= sys.maxunicode else ""
