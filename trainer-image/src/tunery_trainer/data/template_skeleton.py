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

from tunery_trainer.data.required_text import THINK_END, leaves_of, thought_and_said
from tunery_trainer.data.rows import Example, JsonObject

Piece = tuple[str, ...]
"""A text as a whole and, of arguments, also each key and value: not every template writes them as JSON."""
Pieces = tuple[tuple[Piece, ...], ...]
"""Of each message what is its own: reasoning, answer, then name and arguments of each tool call."""
Shape = tuple[tuple[object, ...], ...]
Span = tuple[int, int]
_Mark = tuple[int, int]
"""A place: the number of a text between the pieces, and the characters into it."""

_REASONING: Final = 0
_EDGE: Final = 8
"""Characters of white space at either end of a text that tell shapes apart; with more a row may be taken apart anew."""


def pieces_of(example: Example) -> Pieces:
    """What of each message is its own."""
    return tuple([_pieces(message) for message in example.messages])


def shape_of(example: Example, pieces: Pieces) -> Shape:
    """Equal for conversations that a template is taken to treat alike."""
    trained = set(example.trained)
    messages = [
        (message["role"], index in trained, *_look(message["content"]), *message, _filled(pieces[index]))
        for index, message in enumerate(example.messages)
    ]
    return (("tools", bool(example.tools)), *messages)


def _look(content: str) -> tuple[bool, str, str]:
    """Tell whether a text holds reasoning, and the white space around it: a template keeps it, and pieces do not."""
    if not (content[:1].isspace() or content[-1:].isspace()):
        return THINK_END in content, "", ""
    begin, end = len(content) - len(content.lstrip()), len(content.rstrip())
    return THINK_END in content, content[: min(begin, _EDGE)], content[end : end + _EDGE]


def _filled(pieces: tuple[Piece, ...]) -> tuple[tuple[bool, ...], ...]:
    return tuple([tuple(map(bool, piece)) for piece in pieces])


def _pieces(message: JsonObject) -> tuple[Piece, ...]:
    thought, said = thought_and_said(message)
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    written = [piece for call in calls for piece in ((call["name"],), _arguments(call["arguments"]))]
    return ((thought,), (said,), *written)


def _arguments(arguments: JsonObject) -> Piece:
    leaves = (leaf if isinstance(leaf, str) else json.dumps(leaf) for leaf in leaves_of(arguments))
    return (json.dumps(arguments, ensure_ascii=False), *leaves)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """One example of a row, without what is the row's own."""

    last: int
    """Index of the message that ends it."""
    between: tuple[str, ...]
    """The texts before, between and after the pieces."""
    shown: tuple[tuple[int, int, int], ...]
    """What the template shows, in order: numbers of the message, of its piece, of the text in it."""
    marks: tuple[tuple[_Mark, _Mark], ...]
    """Where the spans begin and end."""

    @property
    def size(self) -> int:
        """Characters that it holds."""
        return sum(map(len, self.between))

    def spans(self, pieces: Pieces, text: str) -> tuple[Span, ...] | None:
        """The spans in `text`, what a row of the same shape was rendered to; None where the text is another."""
        own = [pieces[message][piece][which] for message, piece, which in self.shown]
        parts: list[str] = []
        starts, position = [], 0
        for before, piece in zip(self.between, [*own, ""], strict=True):
            starts.append(position)
            parts += (before, piece)
            position += len(before) + len(piece)
        if position != len(text) or "".join(parts) != text:
            return None
        return tuple((starts[first] + begin, starts[last] + end) for (first, begin), (last, end) in self.marks)


def skeleton_of(text: str, spans: Sequence[Span], turns: Sequence[int], pieces: Pieces) -> Skeleton | None:
    """Take apart a rendered conversation whose `turns` are trained at `spans` (characters), the last one at its end.

    None where a piece of a trained turn but its reasoning is written in another way than here (tool calls may be).
    """
    own = dict(zip(turns, spans, strict=True))
    found: list[tuple[tuple[int, int, int], Span]] = []
    position = 0
    for message in range(turns[-1] + 1):
        low, high = own.get(message, (position, len(text)))
        position = max(position, low)
        for number, piece in enumerate(pieces[message]):
            if not piece[0]:
                continue
            placed = _placed(piece, text, (position, high))
            if placed is None and number != _REASONING and message in own:
                return None
            found += [((message, number, which), span) for which, span in placed or ()]
            position = placed[-1][1][1] if placed else position
        position = max(position, high if message in own else 0)
    gaps = _gaps([span for _, span in found], len(text))
    marks = [(_mark(start, gaps), _mark(end, gaps)) for start, end in spans]
    whole = [(start, end) for start, end in marks if start is not None and end is not None]
    if len(whole) < len(marks):
        return None
    between = tuple(text[start:end] for start, end in gaps)
    return Skeleton(turns[-1], between, tuple(numbers for numbers, _ in found), tuple(whole))


def _placed(piece: Piece, text: str, within: Span) -> list[tuple[int, Span]] | None:
    """Where a piece stands: as a whole, or its parts in their order; None where it does not."""
    whole = _in_order(piece[:1], text, within)
    if whole is not None or len(piece) == 1:
        return None if whole is None else list(enumerate(whole))
    parts = _in_order(piece[1:], text, within)
    return None if parts is None else [(number, span) for number, span in enumerate(parts, 1)]


def _in_order(texts: Sequence[str], text: str, within: Span) -> list[Span] | None:
    spans, position = [], within[0]
    for wanted in texts:
        at = text.find(wanted, position, within[1])
        if at < 0:
            return None
        position = at + len(wanted)
        spans.append((at, position))
    return spans


def _gaps(taken: Sequence[Span], length: int) -> list[Span]:
    starts = [0, *(end for _, end in taken)]
    ends = [*(start for start, _ in taken), length]
    return list(zip(starts, ends, strict=True))


def _mark(position: int, gaps: Sequence[Span]) -> _Mark | None:
    """Where a position lies; None inside of a piece."""
    places = ((number, position - start) for number, (start, end) in enumerate(gaps) if start <= position <= end)
    return next(places, None)
