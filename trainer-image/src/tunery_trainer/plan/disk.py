"""The disk that a run takes: refused by its number, and not by an eviction in the middle of a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.fields import parse_quantity
from tunery_api.measured import DiskStatus
from tunery_api.methods import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.remedies import edit
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import DataFiles
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.plan.training_plan import TrainingPlan
from tunery_trainer.settings.units import compared, human_bytes

_PREPARED_BYTES: Final = 16
"""Of each token while rows are prepared: its id and label as int32, in the flat files and in the Arrow file."""
_ROW_BYTES: Final = 64
"""Of each row meanwhile: what finds its equals, in the survey and as rows are put in order (data/seen_rows.py)."""
_EXAMPLE_BYTES: Final = 40
"""Of each example, at most: its row and length, and where its texts lie, of which a pair has two (data/store.py)."""
_UNCOUNTED: Final = 3
"""Where tokens were not counted: prepared data is taken to be so many times as large as its files."""
_CHECKPOINT_BYTES: Final = 16
"""Of each trained parameter: weight and both moments of Adam in float32, and the best weight so far."""
_START_BYTES: Final = 4
"""Of each of them, too, where DPO or KTO goes on from a published adapter: that one, which they compare with."""
_HEADROOM: Final = 1.1


@dataclass(frozen=True)
class DiskUse:
    """Bytes on the work volume at the peak, by what they are."""

    model: int
    """Weights that are downloaded; 0 where they are used where they lie (claims, folders)."""
    data: int
    checkpoints: int

    @property
    def total(self) -> int:
        """All of it, and a tenth for what was not thought of."""
        return int(_HEADROOM * (self.model + self.data + self.checkpoints))


def estimate_disk(work_dir: Path, plan: TrainingPlan, files: DataFiles) -> DiskUse:
    """Return the disk below `work_dir` that training takes, from what preflight has seen."""
    spec, model = plan.basis.spec, plan.basis.base
    downloaded = sum(_size(root) for root in files.roots if root.is_relative_to(work_dir))
    tokens = plan.data.tokens
    prepared = _PREPARED_BYTES * tokens.tokens if tokens else _UNCOUNTED * downloaded
    rows = plan.data.rows + plan.data.evaluation_rows
    examples = max(rows, tokens.examples + plan.data.evaluation_rows if tokens else 0)
    noted = _ROW_BYTES * rows + _EXAMPLE_BYTES * examples
    # The Trainer holds `keep` and the one that it writes; one more may still be on its way to the bucket.
    kept = spec.checkpoint.keep + 2
    compared = spec.task in (TrainingTask.DPO, TrainingTask.KTO) and (spec.continue_from or spec.resume_from)
    parameter = _CHECKPOINT_BYTES + (_START_BYTES if compared else 0)
    return DiskUse(
        model=model.weight_bytes if model.folder.is_relative_to(work_dir) else 0,
        data=downloaded + prepared + noted,
        checkpoints=kept * parameter * plan.trainable_parameters,
    )


def disk_status(work: Workspace, use: DiskUse) -> DiskStatus:
    """Return what goes into status.disk."""
    return DiskStatus(estimate_bytes=use.total, available_bytes=_asked(work))


def check_disk(work: Workspace, use: DiskUse) -> None:
    """Raise TuneryError(WontFit) where the manifest itself asks for a disk that is too small.

    Where it leaves the size open the operator takes the estimate; without a cluster nothing limits the disk.
    """
    asked = _asked(work)
    if asked is None or use.total <= asked:
        return
    needed = f"{-(-use.total // 2**30)}Gi"
    takes, there = compared(use.total, asked)
    raise TuneryError(
        FailureReason.WONT_FIT,
        f"spec.resources.ephemeralStorage: training needs about {takes} of disk (model "
        f"{human_bytes(use.model)}, data {human_bytes(use.data)}, checkpoints {human_bytes(use.checkpoints)}, and a "
        f"tenth), it is {there}",
        edit(
            f"Set resources.ephemeralStorage to {needed} or more, or omit it: it then follows the model and the data",
            "resources.ephemeralStorage",
        ),
    )


def _asked(work: Workspace) -> int | None:
    resources = work.lora_job.resources
    if work.run.local or "ephemeral_storage" not in resources.model_fields_set:
        return None
    return int(parse_quantity(resources.ephemeral_storage))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
