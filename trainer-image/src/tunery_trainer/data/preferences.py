"""A prompt with its answer, with one that is wanted or not, or with a chosen and a rejected one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

from tunery_trainer.data.conversation import tools_of, turns_of
from tunery_trainer.data.rows import Example, JsonObject, RowError, RowPlace
from tunery_trainer.data.validate import optional_text, text_field

Turns = tuple[JsonObject, ...]

_PAIR: Final = ("chosen", "rejected")
_LABELS: Final[Mapping[Any, bool]] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""Also 1 and 0, which equal them; the words are what a CSV file holds."""


def pair(row: JsonObject, place: RowPlace) -> Example:
    """Two answers to a prompt, as conversations that begin alike.

    The prompt is the field `prompt`, a text or turns; without it, or where the answers repeat it, what they have in
    common. Raises RowError.
    """
    start, answers = _prompt(row), [_turns(row, field) for field in _PAIR]
    if not start:
        _check_turns(row)
    if answers[0] == answers[1]:
        raise _same()
    whole = [turns[0]["role"] != "assistant" for turns in answers]
    if whole[0] != whole[1]:
        raise RowError("rejected", "must begin as chosen does: both with the prompt, or both with the answer")
    if whole[0] or not start:
        common = _common(answers)
        _check_repeated(row, answers[0][:common], "chosen")
        system = () if answers[0][0]["role"] == "system" else _system(row)
        start, answers = (*system, *answers[0][:common]), [turns[common:] for turns in answers]
    chosen, rejected = (_answer(row, start, turns, place) for turns in answers)
    return dataclasses.replace(chosen, rejected=rejected)


def plain_pair(row: JsonObject, place: RowPlace) -> Example:
    """Two texts that begin alike: with the field `prompt`, or with what both have in common. Raises RowError."""
    for field in ("prompt", *_PAIR):
        refuse_turns(row, field)
    chosen, rejected = (text_field(row, field) for field in _PAIR)
    if chosen == rejected:
        raise _same()
    start = text_field(row, "prompt") if "prompt" in _filled(row) else ""
    shared = 0 if start else _shared(chosen, rejected)
    start = _plain_system(row) + (start or chosen[:shared])
    texts = (Example(place, text=start + text[shared:], completion_at=len(start)) for text in (chosen, rejected))
    return dataclasses.replace(next(texts), rejected=next(texts))


def answered(row: JsonObject, place: RowPlace) -> Example:
    """One answer to a prompt, each a text or turns. Raises RowError."""
    start, turns = _prompt(row), _turns(row, "completion")
    if turns[0]["role"] != "assistant":
        start, turns = _split(row, turns)
    elif not start:
        raise RowError("prompt", "must not be null")
    return _answer(row, start, turns, place)


def labelled(row: JsonObject, place: RowPlace) -> Example:
    """One answer to a prompt, and whether it is wanted. Raises RowError."""
    return dataclasses.replace(answered(row, place), desirable=_label(row))


def plain_labelled(row: JsonObject, place: RowPlace) -> Example:
    """A prompt and a text after it, and whether that is wanted. Raises RowError."""
    for field in ("prompt", "completion"):
        refuse_turns(row, field)
    start = _plain_system(row) + text_field(row, "prompt")
    text = start + text_field(row, "completion")
    return Example(place, text=text, completion_at=len(start), desirable=_label(row))


def _filled(row: JsonObject) -> set[str]:
    """The fields that hold something: in a file of columns, null means absent."""
    return {field for field, value in row.items() if value is not None}


def _prompt(row: JsonObject) -> Turns:
    """The turns of the field `prompt`, with the system text before them; none where there is no prompt."""
    if "prompt" not in _filled(row):
        return ()
    if not isinstance(row["prompt"], list):
        return (*_system(row), {"role": "user", "content": text_field(row, "prompt")})
    turns = turns_of(row, "prompt")
    if turns[-1]["role"] == "assistant":
        raise RowError(f"prompt[{len(turns) - 1}].role", "must not be assistant: the answer is still to come")
    system = _system(row)
    if turns[0]["role"] == "system" and system not in ((), turns[:1]):
        raise RowError("system", "is another text than the system turn of the prompt; keep one of the two")
    return turns if turns[0]["role"] == "system" else (*system, *turns)


def _system(row: JsonObject) -> Turns:
    system = optional_text(row, "system")
    return ({"role": "system", "content": system},) if system.strip() else ()


def _plain_system(row: JsonObject) -> str:
    if tools_of(row):
        raise RowError("tools", "only a chat template can show tools; use spec.dataset.template: Chat")
    system = optional_text(row, "system")
    return f"{system}\n\n" if system.strip() else ""


def _turns(row: JsonObject, field: str) -> Turns:
    if isinstance(row[field], list):
        return turns_of(row, field)
    return ({"role": "assistant", "content": text_field(row, field)},)


def _check_turns(row: JsonObject) -> None:
    """Raise RowError where an answer without a prompt is a text, of which nobody could say where the prompt ends."""
    field = next((field for field in _PAIR if not isinstance(row[field], list)), None)
    if field:
        why = "is a text without a prompt; name the prompt's column in spec.dataset.columns, or use template: Plain"
        raise RowError(field, why)


def refuse_turns(row: JsonObject, field: str) -> None:
    """Raise RowError where a field of a plain text holds turns."""
    if isinstance(row.get(field), list):
        why = "is a conversation, and only a chat template can say who speaks; leave spec.dataset.template out"
        raise RowError(field, why)


def _common(answers: list[Turns]) -> int:
    """How many turns are the prompt of both: as many as are equal before an answer of the assistant in each.

    Raises RowError where there are none.
    """
    pairs = list(zip(*answers, strict=False))
    common = next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))
    while common and not _parts(answers, common):
        common -= 1
    if not common:
        raise RowError("rejected", "has no turn in common with chosen after which the assistant answers: no prompt")
    return common


def _parts(answers: list[Turns], at: int) -> bool:
    begins = all(len(turns) > at and turns[at]["role"] == "assistant" for turns in answers)
    return begins and answers[0][at - 1]["role"] != "assistant"


def _check_repeated(row: JsonObject, repeated: Turns, field: str) -> None:
    """Raise RowError unless the row's own prompt, where it has one, is in what the answers repeat."""
    if "prompt" not in _filled(row):
        return
    if isinstance(row["prompt"], list):
        turns = turns_of(row, "prompt")
        found = any(repeated[at : at + len(turns)] == turns for at in range(len(repeated)))
    else:
        asked = text_field(row, "prompt").strip()
        found = any(turn["role"] == "user" and turn["content"].strip() == asked for turn in repeated)
    if not found:
        raise RowError(field, "must begin with the assistant's answer, or repeat the prompt before it")


def _split(row: JsonObject, turns: Turns) -> tuple[Turns, Turns]:
    """The prompt that `completion` repeats, and the answer after it. Raises RowError."""
    ends = [at for at in range(1, len(turns)) if turns[at]["role"] == "assistant" != turns[at - 1]["role"]]
    for at in ends:
        try:
            _check_repeated(row, turns[:at], "completion")
        except RowError:
            continue
        system = () if turns[0]["role"] == "system" else _system(row)
        return (*system, *turns[:at]), turns[at:]
    raise RowError("completion", "must begin with the assistant's answer, or repeat the prompt before it")


def _answer(row: JsonObject, start: Turns, turns: Turns, place: RowPlace) -> Example:
    """A conversation of which the assistant's turns after the prompt are the answer."""
    messages = (*start, *turns)
    context = frozenset(index for index, turn in enumerate(start) if turn["role"] == "assistant")
    return Example(place, messages=messages, tools=tools_of(row), context=context)


def _shared(one: str, other: str) -> int:
    """Characters that two texts begin with; a space before the difference belongs to it, as tokens have it."""
    pairs = zip(one, other, strict=False)
    shared = next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
    return shared - 1 if shared and one[shared - 1] == " " else shared


def _label(row: JsonObject) -> bool:
    value = row["label"]
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, str | int | float) and key in _LABELS:
        return _LABELS[key]
    raise RowError("label", f"must be true or false, found {json.dumps(value, default=str)[:40]}")


def _same() -> RowError:
    return RowError("rejected", "is the same as chosen, so there is nothing to prefer")
