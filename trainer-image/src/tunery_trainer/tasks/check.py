"""The data report on a laptop: of data, with a tokenizer or without, or of the data of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import Remedy, retry
from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError
from tunery_common.inputs.location import FetchedModel
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.scan import scan
from tunery_trainer.inputs.workspace import Workspace, get_data, get_model
from tunery_trainer.process.device import expected_device
from tunery_trainer.process.environment import prepare_environment
from tunery_trainer.process.failures import failure_status, localize, show
from tunery_trainer.reporting.data_report_files import Subject, data_report, listed_rows, write_data_report
from tunery_trainer.reporting.data_report_text import LISTED_ROWS, as_text
from tunery_trainer.reporting.space_text import space_text
from tunery_trainer.tasks.frame import tell_of_loading
from tunery_trainer.tasks.question import Asked

_OPTIONS: Final[Mapping[str, str]] = {
    "dataset.columns": "--columns prompt=question,completion=answer",
    "dataset.format": "--format",
    "dataset.maxInvalidRows": "--max-invalid-rows",
    "dataset.split": "--split",
    "dataset.template": "--template",
    "dataset.uri": "the path to check",
    "model.uri": "--model",
    "task": "--task",
    "training.maxLength": "--max-length",
}
"""How the command line sets the fields of a manifest."""


def run_check(run: RunSpec, asked: Asked) -> ExitCode:
    """Say what a sweep would search, read every row, print the report, and write it where that is asked for.

    Returns DATA_ERROR where preflight would refuse the rows. Raises TuneryError where there was nothing to read.
    """
    if asked.sweep is not None:
        print(space_text(*asked.sweep), flush=True)
    notebook = Notebook(Path(run.work_dir, "notes"), max_bytes=None)
    by_manifest = asked.name == Workspace(run).lora_job.dataset.uri
    try:
        _read(run, asked, notebook)
    except TuneryError as error:
        failure = localize(error)
        if not by_manifest:
            failure = failure.with_(remedies=[_by_options(each) for each in failure.remedies])
        if notebook.read() is None:
            raise failure from error
        _tell(run, asked, notebook, failure)
        show(failure, error)
        return ExitCode.DATA_ERROR if error.reason is FailureReason.DATASET_INVALID else error.exit_code
    _tell(run, asked, notebook, None)
    return ExitCode.OK


def _by_options(remedy: Remedy) -> Remedy:
    """Return a remedy of data without a manifest, with the options that set its fields."""
    options = ", ".join(_OPTIONS[field] for field in remedy.fields if field in _OPTIONS)
    return retry(f"{remedy.text} ({options})" if options else remedy.text)


def _read(run: RunSpec, asked: Asked, notebook: Notebook) -> None:
    work = Workspace(run)
    spec, files = work.lora_job, get_data(work)
    if not asked.tokenizer:
        own = files.evaluation
        options = DataOptions.of(spec, files.train.pattern, own.root if own else None, own.pattern if own else "")
        scan(files.train.root, options, None, notebook)
        return
    prepare_environment(Path(run.work_dir), 0)
    base = FetchedModel(asked.model, None, 0) if asked.model else get_model(work, weights=False)
    tell_of_loading("Check")
    from tunery_trainer.plan.request import read_data

    read_data(run, base, expected_device(run, spec.resources.gpus), files, notebook)


def _tell(run: RunSpec, asked: Asked, notebook: Notebook, refused: TuneryError | None) -> None:
    """Print the report, and write its files where that is asked for."""
    own = Workspace(run).lora_job.dataset.evaluation
    shown = failure_status(refused, None) if refused else None
    report = data_report(Subject(asked.name, own.uri if own else None), notebook, shown)
    if report is None:
        return
    for piece in as_text(report, listed_rows(notebook), LISTED_ROWS):
        print(piece, end="")
    if asked.output is not None:
        paths = write_data_report(report, notebook, asked.output, None)
        print(f"Written: {', '.join(map(str, paths))}", flush=True)
