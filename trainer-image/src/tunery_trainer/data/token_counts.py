"""What is counted over encoded rows while a pass goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tunery_trainer.data.encode import Encoded
from tunery_trainer.data.lengths import Lengths
from tunery_trainer.data.options import TokenReport
from tunery_trainer.data.render import RenderedRow
from tunery_trainer.data.rows import RowPlace

NAMED_ROWS: Final = 10
"""So many rows of a kind are named by their places."""


class TokenCounts:
    """Running totals over encoded rows; what is said of tokens and lengths is said of examples."""

    def __init__(self) -> None:
        self.lengths, self.chosen, self.rejected = Lengths(), Lengths(), Lengths()
        """Of examples (of a pair, its longer answer); of pairs also each answer's own."""
        self.unlearnable_at: list[RowPlace] = []
        self.cut_at: list[RowPlace] = []
        self.tokens = self.loss_tokens = self.lost = self.cut = self.unlearnable = 0
        self.split = self.repeated = self.turns = self.context = self.trained = self.thoughtless = 0

    def add(self, place: RowPlace, row: RenderedRow, examples: Sequence[Encoded]) -> list[Encoded]:
        """Count a row; what is given back are its examples that have something left to learn."""
        cut = self.cut
        kept = [example for example in examples if self._counted(example)]
        if self.cut > cut and len(self.cut_at) < NAMED_ROWS:
            self.cut_at.append(place)
        if not kept:
            self.unlearnable += 1
            if len(self.unlearnable_at) < NAMED_ROWS:
                self.unlearnable_at.append(place)
        if all(example.desirable is None for example in examples):
            self.split += len(examples) > 1
            lengths = [len(example.input_ids) for example in kept]
            self.repeated += sum(lengths) - max(lengths, default=0)
        self.turns += row.turns
        self.context += row.context_turns
        self.trained += sum(side.turns for example in kept for side in example.sides)
        self.thoughtless += row.lost_reasoning
        return kept

    def _counted(self, example: Encoded) -> bool:
        sides = example.sides
        self.lengths.add(max(side.full_length for side in sides))
        if example.rejected is not None:
            self.chosen.add(example.full_length)
            self.rejected.add(example.rejected.full_length)
        lost = sum(side.full_length - len(side.input_ids) for side in sides)
        self.cut += lost > 0
        self.lost += lost
        taught = [side.loss_tokens for side in sides]
        if not all(taught) or _alike(sides):
            return False
        self.tokens += sum(len(side.input_ids) for side in sides)
        self.loss_tokens += sum(taught)
        return True

    def report(self, template: str, examples: int) -> TokenReport:
        """The totals as they go into the status; `examples` are those of the training rows."""
        total = self.lengths.total
        p50, p90, p99, longest = self.lengths.percentiles((0.50, 0.90, 0.99, 1.0))
        return TokenReport(
            tokens=self.tokens,
            loss_tokens=self.loss_tokens,
            truncated_percent=round(100 * self.cut / total, 2) if total else 0.0,
            lost_tokens=self.lost,
            p50_length=p50,
            p90_length=p90,
            p99_length=p99,
            longest=longest,
            unlearnable_rows=self.unlearnable,
            examples=examples,
            split_rows=self.split,
            repeated_tokens=self.repeated,
            assistant_turns=self.turns,
            context_turns=self.context,
            trained_turns=self.trained,
            lost_reasoning=self.thoughtless,
            template=template,
        )


def _alike(sides: Sequence[Encoded]) -> bool:
    """Whether cutting has left two equal answers."""
    return len(sides) > 1 and sides[0].input_ids.tolist() == sides[1].input_ids.tolist()
