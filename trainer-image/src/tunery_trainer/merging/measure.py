"""What a merge is worth: the loss of the base, of each input and of the result on the data set of spec.evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from peft import PeftModel

from tunery_api.adaptermerge import MergeEvaluationSpec
from tunery_api.inputs import ModelSpec
from tunery_api.manifest import SourceRecord
from tunery_api.measured import DatasetStatus
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_api.runspec import Purpose
from tunery_common.errors import TuneryError
from tunery_common.inputs.fetch import OnBytesOfTotal, fetch_dataset, fetch_model
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.prepare import PreparedData, prepare
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.losses.evaluation import held_out_loss
from tunery_trainer.merging.adapter_files import Adapter
from tunery_trainer.merging.quantized import Quantization
from tunery_trainer.merging.verify import adapter_folder, embedding_rows, quantization_config
from tunery_trainer.model.finite import not_finite_base
from tunery_trainer.model.load import Loading, load_frozen, load_tokenizer
from tunery_trainer.model.quantization import dtype_of
from tunery_trainer.process.device import device_facts
from tunery_trainer.reporting.downloads import Downloads
from tunery_trainer.reporting.improvement import shortfall
from tunery_trainer.reporting.status_parts import dataset_status
from tunery_trainer.settings.loop import natural_precision
from tunery_trainer.settings.types import DeviceKind

_DATASET: Final = "spec.evaluation.dataset"
_WORDS: Final = {
    "spec.dataset": _DATASET,
    "task SFT learns from": "a merge is measured on",
    "spec.training.maxLength": "spec.evaluation.maxLength",
    "training.maxLength": "evaluation.maxLength",
    "are not trained": "are not measured",
    "in the training rows": "in the rows",
}
"""What the data layer says to a LoRAJob, and what that is in a merge."""
_FIELDS: Final = {"dataset": "evaluation.dataset", "training.maxLength": "evaluation.maxLength"}
"""Fields of a LoRAJob that remedies of the data layer name, and those of a merge."""
_ROWS_OF_SFT: Final = (
    retry("Use such rows"),
    recreate("Name their format in evaluation.dataset.format", "evaluation.dataset.format"),
)
"""The remedies where a LoRAJob could set another task."""


@dataclass(frozen=True)
class Yardstick:
    """What the adapters are measured with: a base model on the disk, and rows of tokens and labels."""

    base: Path
    rows: Dataset
    pad_token_id: int
    source: SourceRecord
    found: DatasetStatus
    quantization: Quantization | None = None
    """How the base was quantised when the inputs were trained, where all of them agree."""


@dataclass(frozen=True)
class Losses:
    """Mean negative log-likelihood of the labelled tokens, in nats."""

    base: float
    inputs: list[float]
    """In the order of spec.adapters."""
    result: float


def prepare_yardstick(
    work: Workspace,
    spec: MergeEvaluationSpec,
    model: ModelSpec,
    quantization: Quantization | None,
    downloads: Downloads,
) -> Yardstick:
    """Fetch the base model and the data set, telling that, and read every row.

    Raises TuneryError: those of fetch_dataset, fetch_model and the data layer, which name fields of
    spec.evaluation.dataset.
    """
    location = work.location(Purpose.MODEL, model.uri, model.revision)
    folder = fetch_model(location, work.folder("model"), progress=downloads.of("model")).folder
    tokenizer = load_tokenizer(folder)
    try:
        data = _rows(work, spec, tokenizer, downloads.of("data set"))
    except TuneryError as error:
        other_task = any("task" in remedy.fields for remedy in error.remedies)
        remedies = _ROWS_OF_SFT if other_task else [_remedy_of_a_merge(remedy) for remedy in error.remedies]
        raise error.with_(message=as_of_a_merge(error.message), remedies=remedies) from error
    found = _status(data.report)
    source = SourceRecord(uri=spec.dataset.uri, digest=found.sha256)
    return Yardstick(folder, data.train, int(tokenizer.pad_token_id), source, found, quantization)


def as_of_a_merge(text: str) -> str:
    """Return what the data layer says, in the terms of a merge."""
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    return text


def _remedy_of_a_merge(remedy: Remedy) -> Remedy:
    """Return a remedy with the fields that a merge has in place of those of a LoRAJob."""
    text, fields = remedy.text, list[str]()
    for path in remedy.fields:
        block = next((theirs for theirs in _FIELDS if path.startswith(theirs)), "")
        field = _FIELDS.get(block, "") + path.removeprefix(block)
        text, fields = text.replace(path, field), [*fields, field]
    return remedy.model_copy(update={"text": text, "fields": fields})


def measure(yardstick: Yardstick, inputs: Sequence[Adapter], result: Adapter) -> Losses:
    """Return the losses; the base is loaded once, onto the GPU where there is one.

    Raises TuneryError where one is not a number: ModelUnsupported where the base holds values that are none, else
    LossDiverged.
    """
    base, *others = list(_measured(yardstick, [*inputs, result]))
    for label, loss in zip(
        ("the base", *(adapter.label for adapter in inputs), "the result"), (base, *others), strict=True
    ):
        if not math.isfinite(loss):
            spoilt = not_finite_base(yardstick.base)
            if spoilt:
                raise spoilt
            raise TuneryError(FailureReason.LOSS_DIVERGED, f"spec.evaluation: the loss of {label} is {loss}")
    return Losses(base, others[:-1], others[-1])


def check_improvement(spec: MergeEvaluationSpec, losses: Losses) -> None:
    """Raise TuneryError(NotImproved) if the result is not better than the base by the share that was asked for."""
    missed = shortfall(losses.base, losses.result, spec.min_improvement, "the base's ")
    if missed:
        raise TuneryError(
            FailureReason.NOT_IMPROVED,
            f"{missed}; the best input reaches {min(losses.inputs):.4f}",
            recreate(
                "Compare methods, densities, and weights, or lower evaluation.minImprovement",
                "method",
                "density",
                "adapters[].weight",
                "evaluation.minImprovement",
            ),
        )


def _measured(yardstick: Yardstick, adapters: Sequence[Adapter]) -> Iterator[float]:
    """Yield the loss of the base, then of the base with each adapter."""
    count = len(adapters) + 1
    print(f"Measuring  the base (1 of {count})", flush=True)
    model: Any = _load(yardstick)
    yield held_out_loss(model, yardstick.rows, yardstick.pad_token_id, dtype=model.dtype)
    for number, adapter in enumerate(adapters, 2):
        print(f"Measuring  {adapter.label or 'the result'} ({number} of {count})", flush=True)
        rows = embedding_rows(adapter)
        if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        adapted = PeftModel.from_pretrained(model, str(adapter_folder(adapter)))
        yield held_out_loss(adapted, yardstick.rows, yardstick.pad_token_id, dtype=model.dtype)
        model = adapted.unload()


def _load(yardstick: Yardstick) -> torch.nn.Module:
    devices = device_facts(None)
    place = torch.device("cuda:0" if devices.kind is DeviceKind.CUDA else "cpu")
    quantization = quantization_config(yardstick.quantization)
    loading = Loading(dtype_of(natural_precision(devices)), place, quantization)
    model: torch.nn.Module = load_frozen(yardstick.base, loading)
    return model


def _rows(work: Workspace, spec: MergeEvaluationSpec, tokenizer: Any, progress: OnBytesOfTotal) -> PreparedData:
    """Return every row of the data set."""
    wanted = spec.dataset
    files = fetch_dataset(work.location(Purpose.DATASET, wanted.uri), work.folder("dataset"), progress)
    options = DataOptions(
        path=files.pattern,
        format=wanted.format,
        split=wanted.split,
        columns=dict(wanted.columns or {}),
        max_invalid_rows=wanted.max_invalid_rows,
        max_length=spec.max_length,
        packing=False,
        loss=spec.loss,
        evaluation_fraction=0,
    )
    return prepare(files.root, options, tokenizer, work.folder("prepared"))


def _status(report: DatasetReport) -> DatasetStatus:
    """Return what was found in the rows, in the terms of a merge."""
    found = dataset_status(report)
    said = [as_of_a_merge(warning) for warning in found.warnings or ()]
    return found.model_copy(update={"warnings": said or None})
