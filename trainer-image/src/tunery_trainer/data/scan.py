"""What preflight asks of a data set: is it good, and how large is it; no torch, nothing written."""

from __future__ import annotations

from pathlib import Path

from tunery_trainer.data.layout import check_held_out, training_layout, with_layout
from tunery_trainer.data.options import DataOptions, DatasetReport
from tunery_trainer.data.single_pass import Survey, find_files
from tunery_trainer.data.split import held_out, kinds_of
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
    digests, known = [], []
    for digest, examples in survey.encoded(survey.train, tokenizer):
        digests.append(digest)
        known.append([(len(example.input_ids), example.desirable) for example in examples])
    apart = [example.desirable for _, examples in survey.encoded(survey.evaluation, tokenizer) for example in examples]
    report = survey.report()
    kinds = kinds_of([[desirable for _, desirable in row] for row in known])
    held = None if files.evaluation else held_out(digests, options.evaluation_fraction, options.seed, kinds)
    of_training = [one for index, row in enumerate(known) if held is None or not held[index] for one in row]
    layout = training_layout([length for length, _ in of_training], options)
    report = with_layout(report, layout, [desirable for _, desirable in of_training])
    drawn = [desirable for index, row in enumerate(known) if held is not None and held[index] for _, desirable in row]
    check_held_out(apart if held is None else drawn, files.held_field)
    return report
