"""From records to valid examples: the format is settled, bad rows are set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import PurePath
from typing import Final

from tunery_api.inputs import DatasetFormat, DatasetTemplate
from tunery_api.methods import TrainingTask
from tunery_api.reasons import FailureReason
from tunery_api.remedies import Remedy, recreate, retry
from tunery_common.errors import TuneryError
from tunery_trainer.data.conversation import with_turns
from tunery_trainer.data.invalid_rows import InvalidRows
from tunery_trainer.data.options import DataOptions
from tunery_trainer.data.row_formats import (
    FIELDS,
    OPTIONAL_FIELDS,
    PLAIN_FORMATS,
    columns_text,
    convert,
    detect,
    formats_of,
    known_fields,
)
from tunery_trainer.data.rows import Example, JsonObject, Record, RowError, RowPlace, encodable

_PREFERENCES: Final = formats_of(TrainingTask.KTO)
_LIKELY: Final = {
    DatasetFormat.PREFERENCE: f"{TrainingTask.DPO} (or {TrainingTask.ORPO})",
    DatasetFormat.UNPAIRED_PREFERENCE: f"{TrainingTask.KTO}",
}
"""The tasks for which rows that have these columns were written."""


@lru_cache
def _is_csv(file: str) -> bool:
    return ".csv" in PurePath(file).suffixes


class ExampleReader:
    """Turns records into examples; what it learned on the way stands in its attributes.

    `format` is AUTO until the first row that has one; from then on every row must be in it.
    """

    def __init__(self, options: DataOptions, invalid: InvalidRows) -> None:
        self.format = options.format
        self.ignored: set[str] = set()
        self._task, self._formats = options.task, formats_of(options.task)
        self._template = options.template
        self._columns = dict(options.columns)
        self._invalid = invalid
        self._columns_checked = False
        known = list(dict.fromkeys(field for name in self._formats for field in known_fields(name)))
        unknown = [field for field in self._columns if field not in known]
        if unknown:
            raise TuneryError(
                FailureReason.INVALID_SPEC,
                f"spec.dataset.columns: there is no field '{unknown[0]}'; fields: {', '.join(known)}",
            )

    def examples(self, records: Iterable[Record]) -> Iterator[Example]:
        """The valid rows of `records`; bad ones go to the InvalidRows given at the start.

        Raises:
            TuneryError: DatasetInvalid when `columns` names a column that the first row lacks, or when the rows are
                for another task; InvalidSpec when they are conversations and `template` is PLAIN.
        """
        for record in records:
            try:
                if isinstance(record.value, RowError):
                    raise record.value
                yield self._example(record.value, record.place)
            except RowError as error:
                self._invalid.add(record.place, error)

    def _example(self, value: JsonObject, place: RowPlace) -> Example:
        row = self._renamed(value, place)
        row = with_turns(row) if _is_csv(place.file) else row
        if self.format is DatasetFormat.AUTO:
            self.format = self._detected(row)
        if self._template is DatasetTemplate.PLAIN and self.format not in PLAIN_FORMATS:
            raise _needs_chat(self.format)
        example = convert(row, self.format, place, self._template)
        self.ignored.update(map(encodable, set(row).difference(known_fields(self.format))))
        return example

    def _renamed(self, value: JsonObject, place: RowPlace) -> JsonObject:
        if not self._columns:
            return value
        if not self._columns_checked:
            self._check_columns(value, place)
        taken = set(self._columns.values())
        row = {key: item for key, item in value.items() if key not in taken and key not in self._columns}
        return row | {field: value[column] for field, column in self._columns.items() if column in value}

    def _check_columns(self, value: JsonObject, place: RowPlace) -> None:
        missing = [
            f"spec.dataset.columns.{field}: {place.file} has no column '{column}'"
            for field, column in self._columns.items()
            if column not in value and field not in OPTIONAL_FIELDS
        ]
        if missing:
            raise TuneryError(
                FailureReason.DATASET_INVALID,
                f"{'; '.join(missing)}; {columns_text(value)}",
                recreate(
                    "Correct dataset.columns: each key is a field of the format, each value a column of the data",
                    "dataset.columns",
                ),
            )
        self._columns_checked = True

    def _detected(self, row: JsonObject) -> DatasetFormat:
        # Columns that the user named say what is meant, even if the row has those of another format too.
        named = {field: row[field] for field in self._columns if field in row}
        if (said := detect(named, self._formats)) is not None:
            return said
        found = detect(row, self._formats)
        other = self._other_task(row, found)
        if other is not None:
            raise self._of_another_task(other, found, row)
        if found is not None:
            return found
        why = f"is in no known format; {columns_text(row)} (known: {self._known()})"
        raise RowError("", why, columns=bool(row))

    def _other_task(self, row: JsonObject, found: DatasetFormat | None) -> DatasetFormat | None:
        """The format of another task that a row is in, where it is in none of this one, or that one says more.

        Of a prompt, a completion and a label, SFT would learn the unwanted answers, too.
        """
        if found is None:
            return detect(row)
        other = detect(row, _PREFERENCES) if self._task is TrainingTask.SFT else None
        return other if other and set(FIELDS[found]) < set(FIELDS[other]) else None

    def _known(self) -> str:
        return "; ".join(f"{name}: {', '.join(fields)}" for name, fields in self._formats.items())

    def _of_another_task(self, found: DatasetFormat, too: DatasetFormat | None, row: JsonObject) -> TuneryError:
        return TuneryError(
            FailureReason.DATASET_INVALID,
            f"spec.dataset: the rows are {found} ({columns_text(row)}), task {self._task} learns from {self._known()}",
            *self._with_that_task(found, too),
        )

    def _with_that_task(self, found: DatasetFormat, too: DatasetFormat | None) -> Iterator[Remedy]:
        """Yield the remedies for rows of another task: pairs and labels are written for one, other rows for any."""
        likely = _LIKELY.get(found)
        if likely is None:
            yield retry(f"Replace the rows by rows that task {self._task} learns from")
        yield recreate(f"Set task: {likely or ' or '.join(_tasks_for(found))}", "task")
        if likely is not None and too is not None:
            yield recreate(f"Set dataset.format: {too} to ignore the other columns", "dataset.format")
        yield recreate("Name other columns in dataset.columns", "dataset.columns")


def _tasks_for(found: DatasetFormat) -> list[str]:
    return [task for task in TrainingTask if found in formats_of(task)]


def _needs_chat(name: DatasetFormat) -> TuneryError:
    return TuneryError(
        FailureReason.INVALID_SPEC,
        f"spec.dataset.template: Plain is for prompts with completions, the data set is {name}: only a chat template "
        "can say who speaks",
        recreate("Omit dataset.template", "dataset.template"),
    )
