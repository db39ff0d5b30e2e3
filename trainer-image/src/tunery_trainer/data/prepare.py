"""From files to two data sets that are ready to train on: read, convert, render, tokenize, mask, split, pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from tunery_api.reasons import FailureReason
from tunery_common.errors import DISK_FULL, TuneryError
from tunery_trainer.data.arrange import arrange
from tunery_trainer.data.cache import cache_key, new_entry, read_entry, write_report
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.single_pass import Files, Survey, find_files
from tunery_trainer.data.store import TokenStore, row_kind
from tunery_trainer.data.tokenizer import Tokenizer

_TRAIN, _EVALUATION = "train.arrow", "evaluation.arrow"


@dataclass(frozen=True)
class PreparedData:
    """Both sides, mapped from disk, with the columns input_ids and labels, and seq_lengths when packed.

    DPO, ORPO: those are the chosen answer's, rejected_input_ids and rejected_labels the other one's. KTO: desirable.
    """

    train: Dataset
    evaluation: Dataset
    report: DatasetReport
    from_cache: bool


def prepare(
    root: Path,
    options: DataOptions,
    tokenizer: Tokenizer,
    cache_dir: Path | Callable[[str], Path],
    notebook: Notebook | None = None,
) -> PreparedData:
    """The training and evaluation rows below `root` as tokens and labels (-100 where a token does not count).

    `cache_dir` is the folder that entries lie in, or tells it by the entry's key.

    A packed row, of training only, holds several examples, whose lengths are in `seq_lengths`; the trainer's own
    collator (`model/collator.py`) keeps attention inside each. Rows of preference tasks have the columns that
    `losses/answers.py` reads, and are not packed.

    What is found on the way stands in `notebook`, also where the data are refused, and also where the rows were
    prepared before.

    Raises:
        TuneryError: DatasetNotFound, DatasetInvalid, InvalidSpec, ModelUnsupported (no fast tokenizer) or DiskFull.
    """
    files = find_files(root, options)
    key = cache_key(files, options, tokenizer)
    cache_dir = cache_dir if isinstance(cache_dir, Path) else cache_dir(key)
    found = read_entry(cache_dir, key)
    if found is None:
        try:
            with new_entry(cache_dir, key) as folder:
                _fill(folder, files, options, tokenizer, notebook or Notebook(folder))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise TuneryError(FailureReason.DISK_FULL, "no space left to write the prepared data set") from error
    entry = found or read_entry(cache_dir, key)
    if entry is None:
        raise TuneryError(FailureReason.INTERNAL_ERROR, f"the prepared data in {cache_dir.name} is gone")
    path, report = entry
    if found is not None and notebook is not None:
        notebook.take(path, report, options)
    train, evaluation = (Dataset.from_file(str(path / name)) for name in (_TRAIN, _EVALUATION))
    return PreparedData(train, evaluation, report, from_cache=found is not None)


def _fill(folder: Path, files: Files, options: DataOptions, tokenizer: Tokenizer, notebook: Notebook) -> None:
    survey = Survey(files, options, notebook)
    kind = row_kind(options.task)
    with TokenStore(folder, "train", kind) as rows, TokenStore(folder, "evaluation", kind) as evaluation_rows:
        for side, store in ((survey.train, rows), (survey.evaluation, evaluation_rows)):
            for digest, examples in survey.encoded(side, tokenizer):
                store.add(digest, examples)
        found = arrange(files, options, survey.report(), rows, evaluation_rows)
        rows.write(found.train.blocks(found.layout.capacity), folder / _TRAIN, packed=found.layout.packed)
        source = evaluation_rows if files.evaluation else rows
        source.write(found.held.blocks(None), folder / _EVALUATION, packed=False)
    rows.remove()
    evaluation_rows.remove()
    notebook.keep(folder)
    notebook.report = found.report
    write_report(folder, found.report)
