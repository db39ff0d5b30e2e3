"""What of a data set is less than its owner may believe, in sentences: nothing fails for it."""

from __future__ import annotations

from collections.abc import Iterator

from tunery_api.inputs import DatasetFormat
from tunery_trainer.data.options import DatasetReport, TokenReport


def warnings_of(report: DatasetReport) -> tuple[str, ...]:
    """The sentences, the weightiest first; none where every answer is trained whole."""
    found = [*_of_tokens(report.tokens, report.format)] if report.tokens else []
    if report.overlap:
        found.append(
            f"{report.overlap} of {report.evaluation_rows} rows of spec.dataset.evaluation are training rows, too: "
            "its loss is lower than that of new rows"
        )
    return tuple(found)


def _of_tokens(tokens: TokenReport, rows: DatasetFormat) -> Iterator[str]:
    wanted = tokens.assistant_turns - tokens.context_turns
    if tokens.trained_turns < wanted:
        yield (
            f"{wanted - tokens.trained_turns} of {wanted} answers are not trained: they lie beyond "
            "spec.training.maxLength"
        )
    if tokens.lost_reasoning:
        yield (
            f"the chat template leaves the reasoning of {tokens.lost_reasoning} of {wanted} answers out, so the model "
            "does not learn to reason from them"
        )
    if tokens.unlearnable_rows:
        left = "not both answers, or no difference" if rows is DatasetFormat.PREFERENCE else "nothing of any answer"
        yield f"{tokens.unlearnable_rows} rows are left out: spec.training.maxLength leaves {left}"
    if tokens.lost_tokens:
        yield (
            f"{tokens.truncated_percent:.4g} % of the examples are longer than spec.training.maxLength: "
            f"{tokens.lost_tokens} of their tokens are not trained"
        )
