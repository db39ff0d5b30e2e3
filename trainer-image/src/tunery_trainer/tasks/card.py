"""What is written beside every adapter of a LoRAJob: its curves, and its card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunery_api.manifest import Lineage
from tunery_trainer.diagnosis.answers import Answer
from tunery_trainer.inputs.workspace import Workspace
from tunery_trainer.reporting.curve_file import CURVE_FILE, write_curve
from tunery_trainer.reporting.curves import FILE_NAME, TITLE, draw_curves
from tunery_trainer.reporting.model_card import CARD_FILE, Shown, model_card
from tunery_trainer.tasks.rejected import rejected_uri


def write_card(
    work: Workspace, lineage: Lineage, history: list[dict[str, Any]], answers: Sequence[Answer] = ()
) -> None:
    """Write curves and card into the folder of the result; `history` is what was logged, step by step."""
    write_curve(history, lineage.metrics["baseEvalLoss"], work.result / CURVE_FILE)
    draw_curves(history, lineage.metrics["baseEvalLoss"], work.result / FILE_NAME, lineage.findings or ())
    uri = rejected_uri(work.run) if lineage.rejected else work.run.output_uri
    card = model_card(work.run.identity, lineage, uri, shown=Shown({TITLE: FILE_NAME}, answers))
    (work.result / CARD_FILE).write_text(card, "utf-8")
