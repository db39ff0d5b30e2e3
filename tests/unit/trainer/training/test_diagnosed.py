"""What a run finds of itself is told once, however many processes find it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from tunery_api.findings import TRAINING_CHECKS, CheckResult, CheckStatus, FindingStatus
from tunery_trainer.team.team import Team
from tunery_trainer.training import diagnosed
from tunery_trainer.training.diagnosed import Run, diagnose

FOUND = FindingStatus(type="LossSpikes", severity="Problem", step=5, message="It jumps.")
CHECK = CheckStatus(name=sorted(TRAINING_CHECKS)[0], result=CheckResult.WARNING, message="Look at it.")
SAID = f"Finding    Problem LossSpikes at step 5: It jumps.\nCheck      {CHECK.name}: Look at it.\n"


@pytest.mark.parametrize(("rank", "said"), [(0, SAID), (1, "")])
def test_the_first_of_two_nodes_alone_prints_what_both_find(
    rank: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge: Any = SimpleNamespace(findings=[FOUND], problem=None, pace=MagicMock())
    monkeypatch.setattr(diagnosed, "Judge", lambda subject: judge)
    monkeypatch.setattr(diagnosed, "measured_checks", lambda checks, found: [CHECK])
    monkeypatch.setattr(diagnosed, "strangers", lambda model: 0)
    model: Any = torch.nn.Linear(1, 1)
    reporter = MagicMock()
    run = Run(MagicMock(steps=10), MagicMock(), None, Team(rank, world=2, nodes=2))
    found = diagnose(run, model, MagicMock(), reporter)
    found.callback.on_log(MagicMock(), MagicMock(log_history=[]), MagicMock(), {})
    found.checks(model, 1.0, None)
    assert capsys.readouterr().out == said
    reporter.findings.assert_called_once_with([FOUND])
