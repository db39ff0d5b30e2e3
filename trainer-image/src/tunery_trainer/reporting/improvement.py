"""Whether a loss is as far below another as spec.evaluation.minImprovement asks for."""

from __future__ import annotations

from tunery_api.measured import change_text


def shortfall(before: float, after: float, asked: float, whose: str = "", *, error: float | None = None) -> str | None:
    """Say by how much the loss `after` misses the share of `before` that was asked for; None where it does not.

    `whose` stands before the first number, as in `the base's `; `error` is the standard error of that share.
    """
    reached = 1 - after / before
    if reached >= asked:
        return None
    least = change_text(-asked) if asked else "no rise"
    return (
        f"the evaluation loss went from {whose}{before:.4f} to {after:.4f}, {change_text(-reached, error)}, and "
        f"spec.evaluation.minImprovement asks for {least}"
    )
