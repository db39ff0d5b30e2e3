"""What evaluations are compared with: a mark that moves only when it is surely better, and that a checkpoint keeps."""

from __future__ import annotations

import random
from pathlib import Path

from tunery_trainer.diagnosis.marks import Marks, marks_of
from tunery_trainer.diagnosis.paired import RowLosses


def rows(draw: random.Random, count: int = 64) -> RowLosses:
    counts = tuple(float(draw.randint(4, 40)) for _ in range(count))
    return RowLosses(tuple(each * draw.lognormvariate(0.5, 0.5) for each in counts), counts)


def better(before: RowLosses, share: float, draw: random.Random, noise: float) -> RowLosses:
    changed = (each * (1 - share + draw.gauss(0, noise)) for each in before.sums)
    return RowLosses(tuple(changed), before.counts)


def test_the_mark_moves_when_an_evaluation_is_better_for_sure_and_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    draw = random.Random(3)
    base = rows(draw)
    marks = Marks(base, base)
    first = marks.measured(5, better(base, 0.1, draw, 0.02))
    chance = marks.measured(10, better(marks.mark, 0.0, draw, 0.02))
    assert (first.mark_step, chance.mark_step, marks.step) == (0, 5, 5)
    marks.store(tmp_path)
    assert marks_of(base, tmp_path) == marks


def test_a_new_run_and_a_checkpoint_of_an_earlier_version_begin_with_the_base(tmp_path: Path) -> None:
    base = rows(random.Random(4))
    assert marks_of(base, None) == marks_of(base, tmp_path) == Marks(base, base)


def test_few_rows_leave_the_mark_where_it_is() -> None:
    draw = random.Random(5)
    base = rows(draw, 7)
    marks = Marks(base, base)
    found = marks.measured(5, better(base, 0.5, draw, 0.01))
    assert (found.base, found.mark, marks.step) == (None, None, 0)
    assert found.to_log() == {}
