"""Whether a loss is as far below another as spec.evaluation.minImprovement asks for."""

from __future__ import annotations


def shortfall(before: float, after: float, asked: str, whose: str = "") -> str | None:
    """Say by how much the loss `after` misses the share of `before` that was asked for; None where it does not.

    `whose` stands before the first number, as in `the base's `.
    """
    reached, wanted = 1 - after / before, float(asked)
    if reached >= wanted:
        return None
    least = f"{-100 * wanted:+.1f} %" if wanted else "no rise"
    return (
        f"the evaluation loss went from {whose}{before:.4f} to {after:.4f} ({-100 * reached:+.1f} %), and "
        f"spec.evaluation.minImprovement asks for {least}"
    )
