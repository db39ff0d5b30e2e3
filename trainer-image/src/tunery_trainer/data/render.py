"""Rows as the texts that the model sees, with the stretches of them that count in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tunery_api.training import Loss
from tunery_trainer.data.required_text import check_shown
from tunery_trainer.data.rows import Example, RowError
from tunery_trainer.data.template import ChatTemplate
from tunery_trainer.data.template_skeleton import Pieces, Shape, Skeleton, pieces_of, shape_of, skeleton_of
from tunery_trainer.data.tokenizer import Tokenizer

Span = tuple[int, int]

_MARK: Final = "tunery.dev/answer"
"""An answer that shows where answers begin."""
_MAX_KNOWN: Final = 2**25
"""Characters that are kept of the shapes, whose texts may hold descriptions of many tools."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of one example."""

    text: str
    spans: tuple[Span, ...] | None
    """Characters [start, end) whose tokens count in the loss, one for each turn; None: every token counts."""
    special_tokens: bool
    """Whether the tokenizer is to add its own (a chat template of the tokenizer's writes them itself)."""
    append_eos: bool
    """False where the text already ends with it."""
    rejected: Rendered | None = None
    """Of a pair: the other answer, which begins with the same prompt."""
    desirable: bool | None = None
    """Of a single answer: whether it is wanted; None where nobody says."""

    @property
    def sides(self) -> tuple[Rendered, ...]:
        """Itself, and the other answer of a pair."""
        return (self,) if self.rejected is None else (self, self.rejected)


@dataclass(frozen=True, slots=True)
class RenderedRow:
    """A row: one example, or several where the chat template rewrites earlier turns."""

    examples: tuple[Rendered, ...]
    turns: int = 0
    """Turns of the assistant, or 1 for a completion; 0 where every token counts."""
    context_turns: int = 0
    """Those of them that are read only."""
    lost_reasoning: int = 0
    """Turns to learn whose reasoning the template leaves out."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn to learn, at the end of the conversation up to it."""

    index: int
    text: str
    span: Span
    thought: bool
    """False where its reasoning is left out."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A conversation up to its last turn that is learned from this cut."""

    text: str
    turns: tuple[int, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """What rows of a shape become."""

    skeletons: tuple[Skeleton, ...] = ()
    lost_reasoning: int = 0

    @property
    def size(self) -> int:
        return sum(skeleton.size for skeleton in self.skeletons)


class Renderer:
    """Renders with the tokenizer's chat template, or ChatML where it has none."""

    def __init__(self, tokenizer: Tokenizer, loss: Loss) -> None:
        self._template = ChatTemplate(tokenizer)
        self._all = loss is Loss.ALL
        self.own_template = self._template.own
        self._known: dict[Shape, _Known] = {}
        self._room = _MAX_KNOWN

    def render(self, example: Example) -> RenderedRow:
        """The texts of a row and what of them counts.

        Each turn to learn stands in exactly one of them, as the model would be asked for it: after the conversation
        before it as the template writes it at that moment. Turns share an example where the template keeps what it
        wrote; what comes after the last turn to learn is left out. With Loss.ALL, the whole conversation is one text.

        Raises:
            RowError: when the template refuses the row, or does not show what is to be learned.
        """
        if example.text is not None:
            return self._plain(example, example.text)
        if self._all:
            return self._whole(example)
        pieces = pieces_of(example)
        shape = shape_of(example, pieces)
        known = self._known.get(shape)
        cuts = _rebuilt(known, pieces, self._template, example) if known else None
        lost = known.lost_reasoning if known else 0
        if cuts is None:
            turns = [self._turn(example, index) for index in example.trained]
            cuts, lost = _grouped(turns), sum(not turn.thought for turn in turns)
            self._learn(shape, cuts, pieces, lost)
        rendered = tuple(self._rendered(cut) for cut in cuts)
        return RenderedRow(rendered, len(example.answers), len(example.context), lost)

    def _plain(self, example: Example, text: str) -> RenderedRow:
        learned = example.completion_at is not None and not self._all
        spans = ((example.completion_at or 0, len(text)),) if learned else None
        return RenderedRow((Rendered(text, spans, True, self._lacks_eos(text)),), turns=int(learned))

    def _whole(self, example: Example) -> RenderedRow:
        if example.context:
            why = "is not to be trained, but spec.training.loss: All counts every token; use Completion"
            raise RowError(f"messages[{min(example.context)}]", why)
        text = self._template.text(example.messages, example.tools)
        return RenderedRow((Rendered(text, None, not self.own_template, self._lacks_eos(text)),))

    def _rendered(self, cut: _Cut) -> Rendered:
        return Rendered(cut.text, cut.spans, not self.own_template, self._lacks_eos(cut.text))

    def _learn(self, shape: Shape, cuts: tuple[_Cut, ...], pieces: Pieces, lost: int) -> None:
        skeletons = tuple(skeleton_of(cut.text, cut.spans, cut.turns, pieces) for cut in cuts)
        known = _Known(tuple(skeleton for skeleton in skeletons if skeleton is not None), lost)
        room = self._room + self._known.get(shape, _Known()).size - known.size
        if len(known.skeletons) == len(skeletons) and room >= 0:
            self._known[shape], self._room = known, room

    def _turn(self, example: Example, index: int) -> _Turn:
        text = self._template.text(example.messages[: index + 1], example.tools)
        message, name = example.messages[index], f"messages[{index}]"
        span = self._span(text, self._start(example, index, text))
        try:
            thought = check_shown(message, name, text[span[0] : span[1]])
        except RowError:
            # The answer itself may begin as the rest of an opening does (`<think>`), and stand in its place.
            wider = self._span(text, self._header(example, index, text))
            if wider[0] >= span[0]:
                raise
            span, thought = wider, check_shown(message, name, text[wider[0] : wider[1]])
        return _Turn(index, text, span, thought)

    def _span(self, text: str, start: int) -> tuple[int, int]:
        return self._template.outside_special(text, self._template.trimmed(text, (start, len(text))))

    def _start(self, example: Example, index: int, text: str) -> int:
        """Where answer `index`, which ends `text`, begins: after the opening that the model is asked with."""
        before, tools = example.messages[:index], example.tools
        start, floor = len(text), -1
        if before:
            opened = self._template.text(before, tools, asked=True)
            if text.startswith(opened):
                return len(opened)
            # The opening may hold more than a finished turn shows (`<think>`): then they part after the header.
            floor = _common_length(self._template.text(before, tools), text)
            parted = _common_length(opened, text)
            start = parted if parted > floor else start
        # No template opens the first message, and an answer may begin as the rest of an opening does.
        start = min(start, self._header(example, index, text))
        if not floor < start < len(text):
            raise RowError(f"messages[{index}]", "the chat template does not show this answer, so it cannot be trained")
        return start

    def _header(self, example: Example, index: int, text: str) -> int:
        """Where any answer in place of `index` would begin; the end of `text` where the template does not tell."""
        answer = {"role": "assistant", "content": _MARK}
        try:
            marked = self._template.text([*example.messages[:index], answer], example.tools)
        except RowError:
            return len(text)
        before, mark, _ = marked.rpartition(_MARK)
        return _common_length(before, text) if mark else len(text)

    def _lacks_eos(self, text: str) -> bool:
        return bool(self._template.eos) and not text.rstrip().endswith(self._template.eos)


def _rebuilt(known: _Known, pieces: Pieces, template: ChatTemplate, example: Example) -> tuple[_Cut, ...] | None:
    """The cuts of a row of a known shape, at one template call each; None where it is written in another way."""
    cuts = []
    for skeleton in known.skeletons:
        text = template.text(example.messages[: skeleton.last + 1], example.tools)
        spans = skeleton.spans(pieces, text)
        if spans is None:
            return None
        cuts.append(_Cut(text, (), spans))
    return tuple(cuts)


def _grouped(turns: list[_Turn]) -> tuple[_Cut, ...]:
    """As few cuts as keep each turn as it was when it was the last one; in order."""
    cuts: list[_Cut] = []
    left = turns
    while left:
        text = left[-1].text
        kept = [turn for turn in left if text.startswith(turn.text)]
        cuts.append(_Cut(text, tuple(turn.index for turn in kept), tuple(turn.span for turn in kept)))
        left = [turn for turn in left if not text.startswith(turn.text)]
    return tuple(reversed(cuts))


def _common_length(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
