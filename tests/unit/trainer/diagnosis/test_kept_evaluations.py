"""Evaluations beside the first, and beside a mark that moves only when it is surely better; a checkpoint keeps both."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tunery_trainer.diagnosis.evaluations import Evaluations, evaluations_in
from tunery_trainer.diagnosis.paired import RowLosses, paired


def rows(draw: random.Random, count: int = 64) -> RowLosses:
    counts = tuple(float(draw.randint(4, 40)) for _ in range(count))
    return RowLosses(tuple(each * draw.lognormvariate(0.5, 0.5) for each in counts), counts)


def better(before: RowLosses, share: float, draw: random.Random, noise: float) -> RowLosses:
    changed = (each * (1 - share + draw.gauss(0, noise)) for each in before.sums)
    return RowLosses(tuple(changed), before.counts)


def three(base: RowLosses, draw: random.Random) -> list[RowLosses]:
    """One that is better, one that is as good but for chance, and one that is worse than both."""
    first = better(base, 0.1, draw, 0.02)
    return [first, better(first, 0.0, draw, 0.02), better(base, 0.02, draw, 0.02)]


def everything(found: Evaluations) -> dict[str, Any]:
    return vars(found)


def test_the_mark_moves_when_an_evaluation_is_better_for_sure() -> None:
    draw = random.Random(3)
    base = rows(draw)
    found, measured = Evaluations(base), three(base, draw)
    for step, each in zip((5, 10, 15), measured, strict=True):
        found.add(step, each)
    found.add(15, measured[0])  # measured again after a resume: as it was
    assert [(each.step, each.loss) for each in found.done] == [
        (step, each.loss) for step, each in zip((5, 10, 15), measured, strict=True)
    ]
    assert [each.base for each in found.done] == [paired(each, base) for each in measured]
    assert [each.mark for each in found.done] == [
        paired(measured[0], base),
        *(paired(e, measured[0]) for e in measured[1:]),
    ]
    assert [each.mark_step for each in found.done] == [0, 5, 5]
    assert (found.mark, found.mark_step) == (measured[0], 5)


def test_a_checkpoint_keeps_all_of_it(tmp_path: Path) -> None:
    draw = random.Random(3)
    base = rows(draw)
    whole, measured = Evaluations(base), three(base, draw)
    whole.said = ["yes"]
    whole.add(5, measured[0])
    whole.store(tmp_path)
    resumed = evaluations_in(tmp_path)
    assert everything(resumed) == everything(whole)
    for each in (whole, resumed):
        each.add(10, measured[1])
    assert everything(resumed) == everything(whole)


def test_few_rows_leave_the_mark_where_it_is() -> None:
    draw = random.Random(5)
    base = rows(draw, 7)
    found = Evaluations(base)
    found.add(5, better(base, 0.5, draw, 0.01))
    assert (found.done[0].base, found.done[0].mark, found.mark) == (None, None, base)
    assert found.done[0].to_log() == {}
