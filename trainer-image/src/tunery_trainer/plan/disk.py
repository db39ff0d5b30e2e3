"""The disk that a run takes: refused by its number, and not by an eviction in the middle of a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunery_api.fields import parse_quantity
from tunery_api.preference import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.runspec import RunSpec
from tunery_api.status import DiskStatus
from tunery_trainer.errors import TrainerError
from tunery_trainer.inputs.workspace import lora_spec

if TYPE_CHECKING:
    from tunery_trainer.data.options import DatasetReport
    from tunery_trainer.inputs.fetch import FetchedDataset, FetchedModel

_PREPARED_BYTES: Final = 16
"""Of each token while rows are prepared: its id and label as int32, in the flat files and in the Arrow file."""
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


def estimate_disk(
    run: RunSpec,
    model: FetchedModel,
    files: tuple[FetchedDataset, FetchedDataset | None],
    dataset: DatasetReport,
    trained_parameters: int,
) -> DiskUse:
    """Return the disk that training takes, from what preflight has seen."""
    spec, work = lora_spec(run), Path(run.work_dir)
    roots = {each.root for each in files if each is not None and each.root.is_relative_to(work)}
    downloaded = sum(_size(root) for root in roots)
    tokens = dataset.tokens
    prepared = _PREPARED_BYTES * tokens.tokens if tokens else _UNCOUNTED * downloaded
    # The Trainer holds `keep` and the one that it writes; one more may still be on its way to the bucket.
    kept = spec.checkpoint.keep + 2
    compared = spec.task in (TrainingTask.DPO, TrainingTask.KTO) and (spec.continue_from or spec.resume_from)
    parameter = _CHECKPOINT_BYTES + (_START_BYTES if compared else 0)
    return DiskUse(
        model=model.weight_bytes if model.folder.is_relative_to(work) else 0,
        data=downloaded + prepared,
        checkpoints=kept * parameter * trained_parameters,
    )


def disk_status(run: RunSpec, use: DiskUse) -> DiskStatus:
    """Return what goes into status.disk."""
    return DiskStatus(estimate_bytes=use.total, available_bytes=_asked(run))


def check_disk(run: RunSpec, use: DiskUse) -> None:
    """Raise TrainerError(WontFit) where the manifest itself asks for a disk that is too small.

    Where it leaves the size open the operator takes the estimate; without a cluster nothing limits the disk.
    """
    from tunery_trainer.model.memory import human_bytes

    asked = _asked(run)
    if asked is None or use.total <= asked:
        return
    needed = f"{-(-use.total // 2**30)}Gi"
    raise TrainerError(
        FailureReason.WONT_FIT,
        f"spec.resources.ephemeralStorage: training needs about {human_bytes(use.total)} of disk (model "
        f"{human_bytes(use.model)}, data {human_bytes(use.data)}, checkpoints {human_bytes(use.checkpoints)}, and a "
        f"tenth), it is {human_bytes(asked)}",
        f"Set spec.resources.ephemeralStorage to {needed} or more, which may change while no pod runs; left out, it "
        "follows the model and the data.",
    )


def _asked(run: RunSpec) -> int | None:
    resources = lora_spec(run).resources
    if run.local or "ephemeral_storage" not in resources.model_fields_set:
        return None
    return int(parse_quantity(resources.ephemeral_storage))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
