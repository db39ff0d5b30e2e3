"""The data report of a LoRAJob: beside the adapter, and until there is one at a place of its own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from tunery_api.lorajob import PreflightPolicy
from tunery_api.measured import DatasetStatus
from tunery_api.names import DATA_REPORT_JSON, DATA_REPORT_TEXT
from tunery_api.runspec import PreflightReport, RunResult
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath
from tunery_common.storage.publisher import Published
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.process.failures import explain, failure_status, subject_of
from tunery_trainer.reporting.data_report_files import Subject, data_report, write_data_report
from tunery_trainer.reporting.data_report_text import describe, example_text
from tunery_trainer.reporting.kept_curves import remove_curves
from tunery_trainer.reporting.status_parts import dataset_status

_NAMES = (DATA_REPORT_JSON, DATA_REPORT_TEXT)

_log = logging.getLogger(__name__)


def notebook_of(work: Workspace) -> Notebook:
    """Return where the passes of this run write down what they find."""
    return Notebook(work.folder("notes"))


def write_report(work: Workspace, notebook: Notebook) -> None:
    """Write and store the report of the rows that are about to be trained on, before a GPU works; see add_report.

    Preflight's is the same, but there may have been none.
    """
    try:
        _store(work, notebook, None)
    except Exception as error:  # noqa: BLE001 (a report is never a reason to fail)
        _log.warning("the data report is not stored: %s", explain(error).message)


def fetch_report(work: Workspace) -> None:
    """Bring the report that another task of this run has stored, for add_report; no failure where that cannot be."""
    place = work.reports
    if place is None:
        return
    try:
        for name in _NAMES:
            place.store.download(place.key(name), work.folder("report") / name)
    except TuneryError as error:
        _log.warning("the data report will not lie beside the adapter: %s", error.message)


def add_report(work: Workspace, folder: Path) -> None:
    """Put the report that write_report or fetch_report left on the disk beside what is published."""
    for path in map(work.folder("report").joinpath, _NAMES):
        if path.exists():
            shutil.copyfile(path, folder / path.name)


def name_report(
    work: Workspace, notebook: Notebook, error: TuneryError, otherwise: PreflightReport | RunResult
) -> None:
    """Store the report of refused data, add its URI to the failure's facts, and put what was found into its reach.

    That is `otherwise` where it has none yet. Whatever blocks the report, the failure stays what it is.
    """
    uri = None
    try:
        uri = _store(work, notebook, error)
        if uri is not None:
            error.facts["dataReport"] = uri
    except Exception as refusal:  # noqa: BLE001 (a report is never a reason to fail)
        error.facts["dataReportError"] = explain(refusal).message
    if notebook.report is not None:
        found = dataset_status(notebook.report).model_copy(update={"report": uri} if uri else {})
        error.reached = (error.reached or otherwise).model_copy(update={"dataset": found})


def told_and_stored(work: Workspace, notebook: Notebook, found: DatasetStatus | None) -> DatasetStatus | None:
    """Show an example, store the report of data that are good, and return status.dataset with its place.

    Where that cannot be done the log says so: nothing is lost but the report.
    """
    try:
        _show_example(work, notebook)
        uri = _store(work, notebook, None)
    except Exception as error:  # noqa: BLE001 (a report is never a reason to fail)
        print(f"Preflight  warning: the data report is not stored: {explain(error).message}", flush=True)
        return found
    if uri is None or found is None:
        return found
    moves = (
        "" if work.lora_job.preflight is PreflightPolicy.ONLY else ", and goes beside the adapter as that is published"
    )
    print(f"Preflight  data: the report is at {uri}{moves}", flush=True)
    return found.model_copy(update={"report": uri})


def _write(work: Workspace, notebook: Notebook, refused: TuneryError | None) -> list[Path]:
    """Write the report into a folder of the run, and return its files; none where no row was read."""
    spec = work.lora_job.dataset
    own = spec.evaluation.uri if spec.evaluation else None
    subject = Subject(spec.uri, own, work.run.identity)
    shown = failure_status(refused, subject_of(work.run)) if refused else None
    report = data_report(subject, notebook, shown)
    return write_data_report(report, notebook, work.folder("report")) if report else []


def _store(work: Workspace, notebook: Notebook, refused: TuneryError | None) -> str | None:
    """Put the report at the run's own place, over an earlier one, and return the URI of its text.

    None where no row was read, or nobody named a place. Raises TuneryError where it cannot be written.
    """
    files, place = _write(work, notebook, refused), work.reports
    if place is None or not files:
        return None
    for path in files:
        place.store.upload_file(path, place.key(path.name))
    return place.below(DATA_REPORT_TEXT).uri


def forget_report(work: Workspace) -> None:
    """Remove the report and the curves from their own place: the same lie beside the adapter now.

    No failure where they cannot be.
    """
    if work.reports is None:
        return
    try:
        remove_report(work.reports, tracked=work.lora_job.tracking is not None)
    except TuneryError as error:
        _log.warning("the reports at %s were not removed: %s", work.reports.uri, error.message)


def remove_report(place: StorePath, *, tracked: bool = True) -> None:
    """Remove a report and curves from their place, if they lie there; raises TuneryError where they cannot be."""
    for name in _NAMES:
        place.store.delete(place.key(name))
    remove_curves(place, tracked=tracked)


def say_where_it_lies(published: Published) -> None:
    """Print where the report lies now, where one lies beside what was published: what preflight named is gone."""
    if DATA_REPORT_TEXT in published.manifest.files:
        print(f"Data       the report is at {published.uri.rstrip('/')}/{DATA_REPORT_TEXT}", flush=True)


def _show_example(work: Workspace, notebook: Notebook) -> None:
    """Print the first row as the model sees it: where the manifest asks for it, and always without a cluster."""
    notes = notebook.read()
    if notes is None or not notes.examples or not (work.run.local or work.lora_job.diagnosis.show_example):
        return
    example = notes.examples[0]
    print(f"Example    {describe(example)}; [[ ]] is what is taught")
    print("\n".join(f"           {line}" for line in example_text(example).splitlines()), flush=True)
