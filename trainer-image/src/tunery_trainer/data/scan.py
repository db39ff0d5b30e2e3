"""What preflight asks of a data set: is it good, and how large is it; no torch, nothing written."""

from __future__ import annotations

from pathlib import Path

from tunery_trainer.data.arrange import Counted, arrange
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.single_pass import Survey, find_files
from tunery_trainer.data.split import held_out
from tunery_trainer.data.tokenizer import Tokenizer


def scan(root: Path, options: DataOptions, tokenizer: Tokenizer | None = None) -> DatasetReport:
    """Read every row below `root` once; with a tokenizer also count tokens (`report.tokens`).

    Raises:
        TrainerError: DatasetNotFound, DatasetInvalid or InvalidSpec, exactly where `prepare` would.
    """
    files = find_files(root, options)
    survey = Survey(files, options)
    sides = (survey.train, survey.evaluation)
    if tokenizer is None:
        train, _ = (list(survey.digests(side)) for side in sides)
        report = survey.report()
        if not files.evaluation:
            held_out(train, options.evaluation_fraction, options.seed)
        return report
    rows, apart = Counted(), Counted()
    for side, counted in zip(sides, (rows, apart), strict=True):
        for digest, examples in survey.encoded(side, tokenizer):
            counted.add(digest, examples)
    return arrange(files, options, survey.report(), rows, apart).report
