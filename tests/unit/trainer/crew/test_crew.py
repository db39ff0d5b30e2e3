"""How a process of the crew has ended, as the first one reports it."""

from __future__ import annotations

from pathlib import Path

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.crew.crew import FAILURE, read_failure


def test_the_failure_of_another_process_keeps_its_remedies_and_facts(tmp_path: Path) -> None:
    error = TuneryError(FailureReason.WONT_FIT, "too large", retry("Free memory"), recreate("Use less", "method"))
    error.facts["curve"] = "file:///curve.csv"
    (tmp_path / FAILURE).write_text(error.failure.model_dump_json())
    found, is_echo = read_failure(tmp_path, ExitCode.USER_ERROR)
    assert (found.about("process 1 of 2").remedies, is_echo) == (error.remedies, False)
    assert found.about("process 1 of 2").facts == error.facts
