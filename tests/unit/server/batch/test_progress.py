"""The speed and the time left of a batch are those of the lines that it answers."""

from __future__ import annotations

import pytest

from tunery_api.runspec import AnswersReport, TrainerStatus
from tunery_server.batch.progress import Progress


@pytest.fixture
def progress() -> Progress:
    progress = Progress()
    progress.close()
    return progress


def test_lines_that_are_asked_again_leave_no_negative_time(progress: Progress) -> None:
    """A part that the storage lost is taken from the count: what is reported then must still be valid."""

    def status(answered: int, tokens: int = 10) -> TrainerStatus:
        progress.count(lambda: AnswersReport(lines=100, answered=answered, completion_tokens=tokens * answered))
        return progress._status()

    status(20)
    faster = status(50)
    assert faster.estimated_remaining_seconds is not None
    fallen = status(10)
    assert (fallen.step, fallen.estimated_remaining_seconds, fallen.tokens_per_second) == (10, None, None)
    assert status(30).tokens_per_second is not None
    assert status(40, tokens=1).tokens_per_second is None, "shorter answers than those that were lost"
