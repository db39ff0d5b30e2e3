"""What preflight asks of a data set: is it good, and how large is it; no torch, nothing left on the disk."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from pathlib import Path

from tunery_common.errors import TuneryError
from tunery_trainer.data.arrange import Counted, arrange
from tunery_trainer.data.examples import ExampleReader
from tunery_trainer.data.invalid_rows import InvalidRows
from tunery_trainer.data.notebook import Notebook
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.read import read_records
from tunery_trainer.data.single_pass import Survey, find_files
from tunery_trainer.data.split import held_out
from tunery_trainer.data.tokenizer import Tokenizer


def scan(
    root: Path, options: DataOptions, tokenizer: Tokenizer | None = None, notebook: Notebook | None = None
) -> DatasetReport:
    """Read every row below `root` once; with a tokenizer also count tokens (`report.tokens`).

    What is found on the way stands in `notebook`, also where the data are refused.

    Raises:
        TuneryError: DatasetNotFound, DatasetInvalid or InvalidSpec, exactly where `prepare` would.
    """
    files = find_files(root, options)
    survey = Survey(files, options, notebook)
    sides = (survey.train, survey.evaluation)
    if tokenizer is None:
        for side in sides:
            deque(survey.digests(side), maxlen=0)
        report = survey.report()
        if not files.evaluation:
            held_out(survey.train.seen, options.evaluation_fraction, options.seed)
        return report
    folder = notebook.folder if notebook else None
    rows, apart = Counted(folder), Counted(folder)
    for side, counted in zip(sides, (rows, apart), strict=True):
        for digest, examples in survey.encoded(side, tokenizer):
            counted.add(digest, examples)
    found = arrange(files, options, survey.report(), rows, apart).report
    if notebook is not None:
        notebook.report = found
    return found


def count_rows(root: Path, options: DataOptions) -> int:
    """Return how many rows below `root` are valid, as far as they can be read.

    What is wrong with them the pass that tokenises tells, which finds all of it.

    Raises:
        TuneryError: DatasetNotFound or InvalidSpec.
    """
    files, rows = find_files(root, options), 0
    reader = ExampleReader(options, InvalidRows(options.max_invalid_rows))
    with suppress(TuneryError):
        for _ in reader.examples(read_records(files.train)):
            rows += 1
    return rows
