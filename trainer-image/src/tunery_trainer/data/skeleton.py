"""What rows of one shape have in common once rendered, so that the next row of it needs one template call, not many.

To know where an answer begins and ends, and whether a template keeps a conversation's beginning as it was, takes two
calls for each turn. Both hang on the shape of a conversation (who speaks, with or without reasoning and tool calls),
not on what is said. So a row is taken apart once into the pieces that are its own and the text between them. Where the
next row of the same shape renders to exactly that text around its own pieces, its answers stand at the same places.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tunery_trainer.data.rows import Example, JsonObject
from tunery_trainer.data.shown import THINK_END, thought_and_said

Pieces = tuple[tuple[str, ...], ...]
"""Of each message what is its own: reasoning, answer, then name and arguments of each tool call."""
Shape = tuple[tuple[object, ...], ...]
Span = tuple[int, int]
_Mark = tuple[int, int]
"""A place: the number of a text between the pieces, and the characters into it."""

_REASONING: Final = 0


def pieces_of(example: Example) -> Pieces:
    """What of each message is its own."""
    return tuple(_pieces(message) for message in example.messages)


def shape_of(example: Example, pieces: Pieces) -> Shape:
    """Equal for conversations that a template is taken to treat alike."""
    trained = set(example.trained)
    messages = [
        (message["role"], index in trained, THINK_END in message["content"], *message, *map(bool, pieces[index]))
        for index, message in enumerate(example.messages)
    ]
    return (("tools", bool(example.tools)), *messages)


def _pieces(message: JsonObject) -> tuple[str, ...]:
    calls = (call["function"] for call in message.get("tool_calls") or ())
    written = [text for call in calls for text in (call["name"], json.dumps(call["arguments"], ensure_ascii=False))]
    return (*thought_and_said(message), *written)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """One example of a row, without what is the row's own."""

    last: int
    """Index of the message that ends it."""
    between: tuple[str, ...]
    """The texts before, between and after the pieces."""
    shown: tuple[tuple[int, int], ...]
    """The pieces that the template shows, in order: message and number of the piece."""
    marks: tuple[tuple[_Mark, _Mark], ...]
    """Where the spans begin and end."""

    def spans(self, pieces: Pieces, text: str) -> tuple[Span, ...] | None:
        """The spans in `text`, what a row of the same shape was rendered to; None where the text is another."""
        own = [pieces[message][piece] for message, piece in self.shown]
        parts = [part for pair in zip(self.between, [*own, ""], strict=True) for part in pair]
        if "".join(parts) != text:
            return None
        starts, position = [], 0
        for before, piece in zip(self.between, [*own, ""], strict=True):
            starts.append(position)
            position += len(before) + len(piece)
        return tuple((starts[first] + begin, starts[last] + end) for (first, begin), (last, end) in self.marks)


def skeleton_of(text: str, spans: Sequence[Span], turns: Sequence[int], pieces: Pieces) -> Skeleton | None:
    """Take apart a rendered conversation whose `turns` are trained at `spans` (characters), the last one at its end.

    None where a piece of a trained turn but its reasoning is written in another way than here (tool calls may be).
    """
    own = dict(zip(turns, spans, strict=True))
    found: list[tuple[tuple[int, int], Span]] = []
    position = 0
    for message in range(turns[-1] + 1):
        low, high = own.get(message, (position, len(text)))
        position = max(position, low)
        for number, piece in enumerate(pieces[message]):
            at = text.find(piece, position, high) if piece else -1
            if at >= 0:
                found.append(((message, number), (at, at + len(piece))))
                position = at + len(piece)
            elif piece and number != _REASONING and message in own:
                return None
        position = max(position, high if message in own else 0)
    gaps = _gaps([span for _, span in found], len(text))
    marks = [(_mark(start, gaps), _mark(end, gaps)) for start, end in spans]
    whole = [(start, end) for start, end in marks if start is not None and end is not None]
    if len(whole) < len(marks):
        return None
    between = tuple(text[start:end] for start, end in gaps)
    return Skeleton(turns[-1], between, tuple(piece for piece, _ in found), tuple(whole))


def _gaps(taken: Sequence[Span], length: int) -> list[Span]:
    starts = [0, *(end for _, end in taken)]
    ends = [*(start for start, _ in taken), length]
    return list(zip(starts, ends, strict=True))


def _mark(position: int, gaps: Sequence[Span]) -> _Mark | None:
    """Where a position lies; None inside of a piece."""
    places = ((number, position - start) for number, (start, end) in enumerate(gaps) if start <= position <= end)
    return next(places, None)
