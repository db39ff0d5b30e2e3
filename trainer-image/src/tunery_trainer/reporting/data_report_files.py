"""From what a pass over a data set found to the two files of its report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunery_api.failures import FailureStatus
from tunery_api.names import DATA_REPORT_JSON, DATA_REPORT_TEXT
from tunery_api.runspec import RunIdentity
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.notes import DataNotes
from tunery_trainer.data.options import DataOptions, DatasetReport, TokenReport
from tunery_trainer.data.warnings import warnings_of
from tunery_trainer.reporting.data_report import DataReport, DataSet, Invalid, Preferences, Same, Tokens
from tunery_trainer.reporting.data_report_text import LISTED_ROWS, as_text


@dataclass(frozen=True)
class Subject:
    """What a report is about."""

    uri: str
    evaluation_uri: str | None = None
    run: RunIdentity | None = None
    """None: nobody's, on a laptop."""


def data_report(subject: Subject, notebook: Notebook, refused: FailureStatus | None = None) -> DataReport | None:
    """Return what the newest pass found; None where nothing was read."""
    notes, report, options = notebook.read(), notebook.report, notebook.options
    if notes is None or report is None or options is None:
        return None
    listed = notes.listed if notebook.listing is not None else 0
    return DataReport(
        run=subject.run,
        refused=refused,
        complete=notes.complete,
        data=_data_set(subject, notes, report, options),
        rows=report.rows,
        evaluation_rows=report.evaluation_rows,
        invalid=Invalid(
            rows=report.invalid_rows,
            allowed=options.max_invalid_rows,
            kinds=notes.invalid_kinds,
            left_out=report.invalid_rows - listed,
        ),
        duplicates=Same(rows=report.duplicates, first=notes.duplicates),
        overlap=Same(rows=report.overlap, first=notes.overlap),
        tokens=_tokens(report.tokens, notes, options.max_length) if report.tokens else None,
        preferences=_preferences(report.tokens, notes) if report.tokens else None,
        warnings=list(warnings_of(report)),
        examples=notes.examples,
    )


def write_data_report(
    report: DataReport, notebook: Notebook, folder: Path, shown: int | None = LISTED_ROWS
) -> list[Path]:
    """Write both files into `folder`, and return them; the bad rows are copied from the listing one by one.

    The text shows `shown` of them (None: all).
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / DATA_REPORT_JSON, folder / DATA_REPORT_TEXT]
    head = json.dumps(report.model_dump(mode="json", by_alias=True, exclude_none=True), indent=1, ensure_ascii=False)
    with paths[0].open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(head.removesuffix("\n}") + ',\n "invalidRows": [')
        before = "\n"
        for line in _lines(notebook):
            file.write(f"{before}  {line}")
            before = ",\n"
        file.write("\n ]\n}\n")
    with paths[1].open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(as_text(report, listed_rows(notebook), shown))
    return paths


def listed_rows(notebook: Notebook) -> Iterator[dict[str, Any]]:
    """Yield the bad rows of the listing: file, line or row, field and reason of each."""
    yield from map(json.loads, _lines(notebook))


def _lines(notebook: Notebook) -> Iterator[str]:
    if notebook.listing is not None:
        with notebook.listing.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)


def _data_set(subject: Subject, notes: DataNotes, report: DatasetReport, options: DataOptions) -> DataSet:
    return DataSet(
        uri=subject.uri,
        sha256=report.sha256,
        files=notes.files,
        evaluation_uri=subject.evaluation_uri,
        evaluation_sha256=report.evaluation_sha256,
        evaluation_files=notes.evaluation_files,
        format=report.format.value,
        task=options.task.value,
        template=report.tokens.template if report.tokens else None,
        ignored_columns=list(report.ignored_columns),
    )


def _tokens(tokens: TokenReport, notes: DataNotes, max_length: int) -> Tokens:
    return Tokens(
        max_length=max_length,
        all=tokens.tokens,
        taught=tokens.loss_tokens,
        taught_percent=percent(tokens.loss_tokens, tokens.tokens),
        lengths=notes.lengths,
        cut_percent=tokens.truncated_percent,
        lost=tokens.lost_tokens,
        first_cut=notes.cut,
        unlearnable_rows=tokens.unlearnable_rows,
        first_unlearnable=notes.unlearnable,
        examples=tokens.examples,
        split_rows=tokens.split_rows,
        repeated=tokens.repeated_tokens,
        held_out_rows=tokens.held_out_rows or None,
        sequences=tokens.sequences or None,
        packed=tokens.packed if tokens.sequences else None,
        answers=tokens.assistant_turns,
        taught_answers=tokens.trained_turns,
        context_answers=tokens.context_turns,
        lost_reasoning=tokens.lost_reasoning,
    )


def _preferences(tokens: TokenReport, notes: DataNotes) -> Preferences | None:
    wanted = tokens.desirable
    if wanted is None and notes.chosen is None:
        return None
    return Preferences(
        desirable=wanted,
        undesirable=tokens.sequences - wanted if wanted is not None else None,
        chosen=notes.chosen,
        rejected=notes.rejected,
    )


def percent(part: int, whole: int) -> float:
    """Return a share with two digits; 0 of nothing."""
    return round(100 * part / whole, 2) if whole else 0.0
