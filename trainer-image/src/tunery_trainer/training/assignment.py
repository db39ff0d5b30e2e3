"""What training is given: a plan, rows, a folder, a checkpoint to go on from, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery_api.manifest import Lineage
from tunery_trainer.data.prepare import PreparedData
from tunery_trainer.plan.training_plan import TrainingPlan
from tunery_trainer.process.signals import StopSignal
from tunery_trainer.reporting.kept_curves import KeptCurves
from tunery_trainer.reporting.progress import ProgressReporter
from tunery_trainer.reporting.trackers import Tracker
from tunery_trainer.resuming.checkpoints import CheckpointUploader
from tunery_trainer.resuming.resume import Resumed
from tunery_trainer.settings.types import RunSettings
from tunery_trainer.team.team import ALONE, Team
from tunery_trainer.training.trained import Trained


@dataclass(frozen=True)
class Observers:
    """Who is told of training while it goes on, and who may end it."""

    stop: StopSignal
    reporter: ProgressReporter
    curves: KeptCurves
    uploader: CheckpointUploader | None
    """None where checkpoints stay on the disk."""
    trackers: Callable[[Mapping[str, Any]], AbstractContextManager[list[Tracker]]]
    """Opens what follows the curves, given the parameters of the run."""


@dataclass(frozen=True)
class Assignment:
    """All that training needs: nothing is fetched, and no setting decided, from here on."""

    plan: TrainingPlan
    data: PreparedData
    folder: Path
    """Where checkpoints are written."""
    resumed: Resumed | None
    observers: Observers
    describe: Callable[[Trained], Lineage]
    """Says where a result would come from, of one that is not finished, too: each checkpoint can be published."""
    team: Team = ALONE
    """Who trains this together, once they have met; each process has the same assignment, but its own folder and
    observers."""

    @property
    def settings(self) -> RunSettings:
        """Every setting of the run."""
        return self.plan.settings
