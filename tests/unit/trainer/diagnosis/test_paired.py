"""The difference of two evaluations of the same rows, against a formula by hand and against resampling."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from tunery_trainer.diagnosis.paired import Difference, RowLosses, paired


def rows(draw: random.Random, count: int) -> RowLosses:
    """Return rows of 5 to 60 tokens, each with a difficulty of its own."""
    counts = [float(draw.randint(5, 60)) for _ in range(count)]
    return RowLosses(tuple(tokens * draw.lognormvariate(0.5, 0.6) for tokens in counts), tuple(counts))


def learned(before: RowLosses, share: float, draw: random.Random, noise: float = 0.05) -> RowLosses:
    """Return the same rows with a loss lower by about `share`."""
    return RowLosses(tuple(loss * (1 - share + draw.gauss(0, noise)) for loss in before.sums), before.counts)


def test_the_difference_is_that_of_the_losses() -> None:
    draw = random.Random(1)
    before = rows(draw, 40)
    now = learned(before, 0.2, draw)
    found = paired(now, before)
    assert found is not None
    assert found.value == pytest.approx(now.loss - before.loss, abs=1e-12)
    assert found.value < 0
    assert found.z < -9


def test_its_error_by_hand() -> None:
    before = RowLosses((2.0,) * 8, (1.0,) * 8)
    now = RowLosses((1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0), (1.0,) * 8)
    found = paired(now, before)
    assert found is not None
    # Changes of -1 and 0, mean -0.5, residuals of 0.5: sqrt(8 * 0.25 * 8 / 7) / 8.
    assert found.value == -0.5
    assert found.error == pytest.approx(math.sqrt(8 * 0.25 * 8 / 7) / 8)
    assert found.z == pytest.approx(-0.5 / found.error)


def test_its_error_is_what_other_rows_of_the_kind_would_move_it_by() -> None:
    draw = random.Random(2)
    values, errors = [], []
    for _ in range(400):
        before = rows(draw, 50)
        found = paired(learned(before, 0.1, draw), before)
        assert found is not None
        values.append(found.value)
        errors.append(found.error)
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert math.fsum(errors) / len(errors) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(("share", "noise"), [(0.03, 0.05), (0.36, 0.3), (0.95, 0.02), (-0.2, 0.3)])
def test_the_error_of_a_share_is_what_resampled_rows_say(share: float, noise: float) -> None:
    draw = random.Random(6)
    before = rows(draw, 60)
    now = learned(before, share, draw, noise)
    found = paired(now, before)
    assert found is not None
    shares = []
    for _ in range(2000):
        drawn = draw.choices(range(60), k=60)
        shares.append(math.fsum(now.sums[at] for at in drawn) / math.fsum(before.sums[at] for at in drawn) - 1)
    assert found.share_error(before.loss) == pytest.approx(statistics.stdev(shares), rel=0.1)


def test_where_every_row_lost_the_same_share_that_share_is_certain() -> None:
    before = rows(random.Random(7), 20)
    found = paired(RowLosses(tuple(0.5 * loss for loss in before.sums), before.counts), before)
    assert found is not None
    assert found.value == pytest.approx(-0.5 * before.loss)
    assert found.error > 0.01
    assert found.share_error(before.loss) == pytest.approx(0, abs=1e-12)


def test_a_share_that_an_older_version_measured_has_the_error_of_the_difference() -> None:
    assert Difference(-0.5, 0.1).share_error(2.0) == 0.05
    nothing = RowLosses((0.0,) * 9, (1.0,) * 9)
    assert paired(nothing, nothing) == Difference(0.0, 0.0, None)


def test_what_did_not_change_is_no_difference() -> None:
    before = rows(random.Random(3), 12)
    found = paired(before, before)
    assert found == Difference(0.0, 0.0, 0.0)
    assert found is not None
    assert found.z == 0.0
    assert Difference(-0.1, 0.0).z == -math.inf


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_rows_say_nothing(count: int) -> None:
    before = rows(random.Random(4), count)
    assert paired(before, before) is None


def test_other_rows_are_not_compared() -> None:
    draw = random.Random(5)
    assert paired(rows(draw, 20), rows(draw, 20)) is None


def test_rows_without_a_token_have_no_loss() -> None:
    assert math.isnan(RowLosses((), ()).loss)
    nothing = RowLosses((0.0,) * 9, (0.0,) * 9)
    assert math.isnan(nothing.loss)
    assert paired(nothing, nothing) is None
